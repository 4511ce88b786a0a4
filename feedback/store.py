"""The feedback store: what was asked and what people said, append-only.

Pairs are issued once, under an id made from their text. What annotators do are events: an
annotation, a later version of it, a skip, a deletion. No event overwrites another; the current
`Comparison`s are derived, the last event of an annotation winning. Any SQLAlchemy URL works;
SQLite runs in WAL mode. Several processes may write at once.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from feedback.errors import DataError, StoreError
from feedback.records import comparison_of, judgement_of, new_pair, pair_of
from feedback.schema import Comparison, Pair, Text, pair_id
from feedback.tables import events_table, open_engine, pairs_table

Result = TypeVar("Result")
CHUNK = 500  # ids per query: databases limit the parameters of one statement


@dataclass(frozen=True)
class StoreCounts:
    """What a store holds now, and how many events led there."""

    pairs: int
    comparisons: int
    skips: int
    annotators: int
    events: int


class FeedbackStore:
    """A database of pairs and judgements; use it as a context manager or call `close`."""

    def __init__(self, url: str, *, create: bool = True):
        """Open the store at a SQLAlchemy URL such as `sqlite:///feedback.db`.

        Args:
            url: the database; SQLite's folder is created when it is missing.
            create: make the tables in an empty database; off, the store must exist.

        Raises:
            StoreError: a malformed URL, a folder that cannot be written, a database that is
                unreachable, or one that is not a feedback store.
            MissingDependencyError: the database's driver is not installed.
        """
        self._engine = open_engine(url, create)
        self.url = self._engine.url.render_as_string(hide_password=True)

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
        rows = {pair.id: asdict(pair) for pair in pairs}
        return self._write(lambda connection: _insert_new_pairs(connection, rows))

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
        items = list(comparisons)
        ids = [a or uuid.uuid4().hex for a in annotations or [None] * len(items)]
        kept = list(raws) if raws is not None else [None] * len(items)
        if not len(items) == len(ids) == len(kept):
            raise ValueError(
                f"{len(items)} comparisons, {len(ids)} annotations and {len(kept)} raws: "
                "give one of each per comparison."
            )
        pairs: dict[str, dict[str, Any]] = {}
        for item in items:
            pair = new_pair(
                item.prompt, item.response_a, item.response_b, item.source_a, item.source_b, {}
            )
            pairs.setdefault(pair.id, asdict(pair))
        names = [pair_id(item.prompt, item.response_a, item.response_b) for item in items]

        def write(connection: Connection) -> None:
            _insert_new_pairs(connection, pairs)
            first_answers = _first_answers(connection, list(pairs))
            last = _last_events(connection, ids)
            now = datetime.now(UTC)
            for item, pair, annotation, raw in zip(items, names, ids, kept, strict=True):
                turned = item.response_a != first_answers[pair]
                judgement = judgement_of(item, turned)
                row = {
                    "kind": "annotation",
                    "annotation": annotation,
                    "pair": pair,
                    "annotator": item.annotator,
                    "judgement": judgement,
                    "raw": dict(raw or {}),
                    "created_at": item.created_at,
                    "recorded_at": now,
                }
                if not _unchanged(last.get(annotation), row):
                    connection.execute(sa.insert(events_table).values(row))
                    last[annotation] = row

        self._write(write)
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
        return self._add_event("skip", annotation or uuid.uuid4().hex, pair, annotator, raw)

    def delete_annotation(self, annotation: str, raw: Mapping[str, Any] | None = None) -> None:
        """Record that an annotation was withdrawn; its versions stay in the record.

        Raises:
            StoreError: the store has no such annotation.
        """
        with self._reading() as connection:
            last = _last_events(connection, [annotation]).get(annotation)
        if last is None:
            raise StoreError(f"feedback store {self.url}: no annotation {annotation!r} to delete.")
        if last["kind"] != "deletion":
            self._add_event("deletion", annotation, last["pair"], last["annotator"], raw)

    def pairs(self) -> list[Pair]:
        """Every pair, in the order of issue."""
        with self._reading() as connection:
            rows = connection.execute(sa.select(pairs_table).order_by(pairs_table.c.position))
            return [pair_of(dict(row)) for row in rows.mappings()]

    def comparisons(self) -> list[Comparison]:
        """The judgements that stand now, in the order in which their annotations began.

        The last version of each annotation counts; deleted and skipped ones are left out.
        """
        with self._reading() as connection:
            rows = connection.execute(_current().where(events_table.c.kind == "annotation"))
            return [comparison_of(dict(row)) for row in rows.mappings()]

    def history(self, annotation: str | None = None) -> list[dict[str, Any]]:
        """Every event (of one annotation), oldest first, with the raw record of each."""
        query = sa.select(events_table).order_by(events_table.c.position)
        if annotation is not None:
            query = query.where(events_table.c.annotation == annotation)
        with self._reading() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def counts(self) -> StoreCounts:
        """How much the store holds."""
        current = _current().subquery()
        with self._reading() as connection:
            kinds = Counter(connection.scalars(sa.select(current.c.kind)))
            people = sa.select(sa.func.count(current.c.annotator.distinct()))
            count = sa.select(sa.func.count())
            return StoreCounts(
                pairs=connection.scalar(count.select_from(pairs_table)) or 0,
                comparisons=kinds["annotation"],
                skips=kinds["skip"],
                annotators=connection.scalar(people.where(current.c.kind == "annotation")) or 0,
                events=connection.scalar(count.select_from(events_table)) or 0,
            )

    def _add_event(
        self,
        kind: str,
        annotation: str,
        pair: str,
        annotator: str,
        raw: Mapping[str, Any] | None,
    ) -> str:
        now = datetime.now(UTC)
        row = {
            "kind": kind,
            "annotation": annotation,
            "pair": pair,
            "annotator": annotator,
            "judgement": {},
            "raw": dict(raw or {}),
            "created_at": now,
            "recorded_at": now,
        }

        def write(connection: Connection) -> None:
            if not _first_answers(connection, [pair]):
                raise StoreError(
                    f"feedback store {self.url}: no pair {pair!r}. Fix: add the pair first."
                )
            if not _unchanged(_last_events(connection, [annotation]).get(annotation), row):
                connection.execute(sa.insert(events_table).values(row))

        self._write(write)
        return annotation

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except sa.exc.DBAPIError as error:
            raise StoreError(
                f"feedback store {self.url}: reading failed ({error.orig}). Fix: check that the "
                "database is still there and whole."
            ) from error

    def _write(self, work: Callable[[Connection], Result]) -> Result:
        """Run `work` in one transaction; once more when another writer added the same pair."""
        for attempt in (1, 2, 3):
            try:
                with (
                    self._engine.connect().execution_options(writes=True) as connection,
                    connection.begin(),
                ):
                    return work(connection)
            except sa.exc.IntegrityError as error:
                if attempt == 3:
                    raise StoreError(
                        f"feedback store {self.url}: the rows do not fit ({error.orig})."
                    ) from error
            except sa.exc.DBAPIError as error:
                raise StoreError(
                    f"feedback store {self.url}: writing failed ({error.orig}). Nothing of this "
                    "call was kept. Fix: check the disk and permissions, then call again."
                ) from error
            except (sa.exc.StatementError, UnicodeEncodeError) as error:
                cause = getattr(error, "orig", None) or error
                raise DataError(
                    f"feedback store {self.url}: a value cannot be stored ({cause}). Fix: use "
                    "plain JSON values (text, numbers, lists, mappings)."
                ) from error
        raise AssertionError("unreachable")


def _chunks(ids: list[str]) -> Iterable[list[str]]:
    return (ids[i : i + CHUNK] for i in range(0, len(ids), CHUNK))


def _first_answers(connection: Connection, ids: list[str]) -> dict[str, str]:
    """Which answer the store calls `a`, for the pairs that it has."""
    found: dict[str, str] = {}
    for chunk in _chunks(ids):
        query = sa.select(pairs_table.c.id, pairs_table.c.response_a)
        found.update(connection.execute(query.where(pairs_table.c.id.in_(chunk))).tuples().all())
    return found


def _insert_new_pairs(connection: Connection, rows: Mapping[str, dict[str, Any]]) -> int:
    known = _first_answers(connection, list(rows))
    new = [row for name, row in rows.items() if name not in known]
    if new:
        connection.execute(sa.insert(pairs_table), new)
    return len(new)


def _last_events(connection: Connection, annotations: list[str]) -> dict[str, dict[str, Any]]:
    last: dict[str, dict[str, Any]] = {}
    for chunk in _chunks(annotations):
        query = sa.select(events_table).where(events_table.c.annotation.in_(chunk))
        rows = connection.execute(query.order_by(events_table.c.position)).mappings()
        last.update({row["annotation"]: dict(row) for row in rows})
    return last


def _unchanged(last: dict[str, Any] | None, row: dict[str, Any]) -> bool:
    same = ("kind", "pair", "annotator", "judgement", "raw")
    return last is not None and all(last[key] == row[key] for key in same)


def _current() -> sa.Select[Any]:
    """The last event of each annotation beside its pair, in the order annotations began."""
    spans = (
        sa.select(
            sa.func.min(events_table.c.position).label("first"),
            sa.func.max(events_table.c.position).label("last"),
        )
        .group_by(events_table.c.annotation)
        .subquery()
    )
    pair_columns = [
        pairs_table.c[name]
        for name in ("prompt", "response_a", "response_b", "source_a", "source_b")
    ]
    return (
        sa.select(events_table, *pair_columns)
        .join(spans, events_table.c.position == spans.c.last)
        .join(pairs_table, pairs_table.c.id == events_table.c.pair)
        .order_by(spans.c.first)
    )
