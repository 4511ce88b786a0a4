"""The feedback store: what was asked and what people said, append-only.

Items (pairs, rankings, single answers) are issued once, under an id made from their text. What
annotators do are events: an annotation, a later version of it, a skip, a deletion, an adjudication.
No event overwrites another; what stands now is derived, the last event of an annotation winning.
The database is SQLite in WAL mode, or PostgreSQL by URL. Several processes may write at once.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from feedback.connect import open_engine, shown
from feedback.errors import StoreError
from feedback.queries import current_events, insert_new_items, last_events
from feedback.recording import Skip, record_judgements, record_skips
from feedback.records import (
    event_row,
    item_of,
    item_of_pair,
    judgement_of,
    new_pair,
    pair_of,
)
from feedback.schema import Comparison, Item, Judgement, Kind, Pair, Text
from feedback.standing import Standing, standing_of
from feedback.tables import events_table, items_table
from feedback.transactions import Transactions

Result = TypeVar("Result")


@dataclass(frozen=True)
class StoreCounts:
    """What a store holds now, and how many events led there."""

    pairs: int  # items of every kind
    comparisons: int
    skips: int
    annotators: int
    events: int


class FeedbackStore:
    """A database of pairs and judgements; use it as a context manager or call `close`."""

    def __init__(self, url: str, *, create: bool = True):
        """Open the store at a SQLAlchemy URL such as `sqlite:///feedback.db`.

        Args:
            url: the database; SQLite's folder is created when it is missing, PostgreSQL's
                database is not.
            create: make the tables in an empty database; off, the store must exist.

        Raises:
            StoreError: a malformed URL, a folder that cannot be written, a database that is
                unreachable, of another make, or no feedback store.
            MissingDependencyError: the database's driver is not installed.
        """
        self._engine = open_engine(url, create)
        self.url = shown(self._engine.url)  # without the password
        self._transactions = Transactions(self._engine, self.url)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def __enter__(self) -> FeedbackStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def add_pair(
        self,
        prompt: Text,
        response_a: str,
        response_b: str,
        source_a: str = "",
        source_b: str = "",
        columns: Mapping[str, Any] | None = None,
        *,
        seed: int = 0,
        round: str = "",
    ) -> str:
        """Issue a pair and return its id; a pair that is already there is left as it is.

        The order it is to be shown in (`Pair.swapped`) is drawn from the id and `seed`.

        Raises:
            DataError: the answers are equal, or the text or columns cannot be stored.
        """
        pair = new_pair(
            prompt, response_a, response_b, source_a, source_b, columns or {}, seed, round
        )
        self.add_pairs([pair])
        return pair.id

    def add_pairs(self, pairs: Iterable[Pair]) -> int:
        """Issue many pairs in one transaction; returns how many were new."""
        return self.add_items(item_of_pair(pair) for pair in pairs)

    def add_items(self, items: Iterable[Item]) -> int:
        """Issue items of any kind in one transaction; returns how many were new."""
        rows = {item.id: vars(item) for item in items}
        return self.write(lambda connection: insert_new_items(connection, rows))

    def add_comparison(
        self,
        comparison: Comparison,
        *,
        annotation: str | None = None,
        raw: Mapping[str, Any] | None = None,
    ) -> str:
        """Record one judgement (and its pair, if it is new); returns the annotation's id.

        Args:
            comparison: the judgement; its label speaks of its own `response_a` and `response_b`.
            annotation: an id from outside. The same id again is a later version, and nothing is
                added when nothing changed. Default: a new annotation.
            raw: what was received, kept as it is.
        """
        return self.add_comparisons([comparison], annotations=[annotation], raws=[raw])[0]

    def add_comparisons(
        self,
        comparisons: Iterable[Comparison],
        *,
        annotations: Iterable[str | None] | None = None,
        raws: Iterable[Mapping[str, Any] | None] | None = None,
    ) -> list[str]:
        """Record many judgements in one transaction: all of them or none."""
        return self.add_judgements(comparisons, annotations=annotations, raws=raws)

    def add_judgements(
        self,
        judgements: Iterable[Judgement],
        *,
        annotations: Iterable[str | None] | None = None,
        raws: Iterable[Mapping[str, Any] | None] | None = None,
        adjudicated: bool = False,
    ) -> list[str]:
        """Record judgements of any kind in one transaction: all of them or none.

        Args:
            judgements: what was said. One that names its item (`item`, or a comparison's `pair`)
                belongs to that item if the store has it; otherwise its text makes the item.
            annotations: their ids from outside, see `add_comparison`.
            raws: what was received, kept as it is.
            adjudicated: these settle what others disagreed on; see `settled`.

        A version whose raw record says `updated_at` is left out where the store has one that was
        updated later.

        Raises:
            DataError: a judgement does not fit its item.
        """
        said = list(judgements)
        ids = [a or uuid.uuid4().hex for a in annotations or [None] * len(said)]
        kept = list(raws) if raws is not None else [None] * len(said)
        if not len(said) == len(ids) == len(kept):
            raise ValueError(
                f"{len(said)} comparisons, {len(ids)} annotations and {len(kept)} raws: "
                "give one of each per comparison."
            )
        self.write(
            lambda connection: record_judgements(
                connection, said, ids, kept, adjudicated=adjudicated
            )
        )
        return ids

    def add_skip(
        self,
        pair: str,
        annotator: str,
        *,
        annotation: str | None = None,
        raw: Mapping[str, Any] | None = None,
    ) -> str:
        """Record that an annotator declined to judge a pair; returns the annotation's id."""
        return self.add_skips([(pair, annotator, annotation, raw)])[0]

    def add_skips(self, skips: Iterable[Skip]) -> list[str]:
        """Record many skips in one transaction; returns the annotations' ids.

        Args:
            skips: (item, annotator, annotation or None, raw or None) of each, see `add_skip`.

        Raises:
            StoreError: the store has no such item.
        """
        given = list(skips)
        return self.write(lambda connection: record_skips(connection, given, self.url))

    def delete_annotation(self, annotation: str, raw: Mapping[str, Any] | None = None) -> None:
        """Record that an annotation was withdrawn; its versions stay in the record.

        Raises:
            StoreError: the store has no such annotation.
        """

        def write(connection: Connection) -> None:
            last = last_events(connection, [annotation]).get(annotation)
            if last is None:
                raise StoreError(
                    f"feedback store {self.url}: no annotation {annotation!r} to delete."
                )
            if last["kind"] != "deletion":
                row = event_row("deletion", annotation, last["item"], last["annotator"], raw)
                connection.execute(sa.insert(events_table).values(row))

        self.write(write)

    def items(self, kind: Kind | None = None) -> list[Item]:
        """Every item (of one kind), in the order of issue."""
        query = sa.select(items_table).order_by(items_table.c.position)
        if kind is not None:
            query = query.where(items_table.c.kind == kind)
        with self.reading() as connection:
            return [item_of(dict(row)) for row in connection.execute(query).mappings()]

    def pairs(self) -> list[Pair]:
        """Every pair, in the order of issue."""
        return [pair_of(item) for item in self.items("pair")]

    def judgements(self, *, adjudicated: bool = False) -> list[Judgement]:
        """What stands now, of every kind, in the order in which the annotations began.

        The last version of each annotation counts; deleted and skipped ones are left out.

        Args:
            adjudicated: the adjudications, which otherwise are left out.
        """
        kind = "adjudication" if adjudicated else "annotation"
        with self.reading() as connection:
            rows = connection.execute(current_events().where(events_table.c.kind == kind))
            return [judgement_of(dict(row)) for row in rows.mappings()]

    def standing(self) -> list[Standing]:
        """All that stands now under its annotation's id: judgements, adjudications and skips."""
        with self.reading() as connection:
            rows = connection.execute(
                current_events().where(events_table.c.kind != "deletion")
            ).mappings()
            return [standing_of(dict(row)) for row in rows]

    def comparisons(self) -> list[Comparison]:
        """The comparisons among `judgements()`: what annotators said, adjudicated or not."""
        return [item for item in self.judgements() if isinstance(item, Comparison)]

    def adjudications(self) -> list[Comparison]:
        """The comparisons that settle their pair: adjudicators' words, and gold answers."""
        found = self.judgements(adjudicated=True)
        return [item for item in found if isinstance(item, Comparison)]

    def settled(self) -> list[Comparison]:
        """Comparisons to train on: an adjudicated pair has its adjudications and no other vote."""
        final = self.adjudications()
        closed = {comparison.pair for comparison in final}
        return [c for c in self.comparisons() if c.pair not in closed] + final

    def history(self, annotation: str | None = None) -> list[dict[str, Any]]:
        """Every event (of one annotation), oldest first, with the raw record of each."""
        query = sa.select(events_table).order_by(events_table.c.position)
        if annotation is not None:
            query = query.where(events_table.c.annotation == annotation)
        with self.reading() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def counts(self) -> StoreCounts:
        """How much the store holds."""
        current = current_events().subquery()
        with self.reading() as connection:
            kinds = Counter(connection.scalars(sa.select(current.c.kind)))
            people = sa.select(sa.func.count(current.c.annotator.distinct()))
            count = sa.select(sa.func.count())
            return StoreCounts(
                pairs=connection.scalar(count.select_from(items_table)) or 0,
                comparisons=kinds["annotation"],
                skips=kinds["skip"],
                annotators=connection.scalar(people.where(current.c.kind == "annotation")) or 0,
                events=connection.scalar(count.select_from(events_table)) or 0,
            )

    def reading(self) -> AbstractContextManager[Connection]:
        """A connection that reads one moment's state; failures become `StoreError`."""
        return self._transactions.reading()

    def write(self, work: Callable[[Connection], Result]) -> Result:
        """Run `work` in one transaction, alone among writers: what it reads stays true.

        Raises:
            DataError: a value cannot be stored.
            StoreError: the database refused or is out of reach; nothing of this call was kept.
        """
        return self._transactions.write(work)
