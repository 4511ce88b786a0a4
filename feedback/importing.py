"""What a feedback file said, into a store: judgements and skips, each once.

Label Studio's exports get care where the store itself pushed their tasks: a pull names annotations
after server, project and number, so an import names them the same, and the two may be mixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from feedback.errors import DataError
from feedback.formats import ReadResult
from feedback.labelstudio.journal import CORRECTED, Journal, Project, projects
from feedback.queries import last_events
from feedback.schema import Comparison, Correction, Judgement
from feedback.standing import changed_at, version_at
from feedback.store import FeedbackStore
from feedback.tables import events_table, tasks_table


@dataclass(frozen=True)
class Imported:
    """How many events an import added."""

    judgements: int
    skips: int


@dataclass
class _Entry:
    """One event to record; without a judgement it is a skip."""

    annotation: str
    item: str
    annotator: str
    raw: Mapping[str, Any]
    judgement: Judgement | None
    adjudicated: bool = False
    server: str = ""  # that the store pulls it from


def import_feedback(store: FeedbackStore, found: ReadResult, *, gold: bool = False) -> Imported:
    """Record what a file said; doing it again, before or after a pull, doubles nothing.

    Of an annotation that the store has from the same project, only a version changed later on the
    server is recorded.

    Args:
        store: where to.
        found: what the file said.
        gold: these are answers known beforehand, and settle their pairs; see `quality.gold`.

    Raises:
        DataError: the file's tasks may come from either of two servers that the store knows.
    """
    entries = []
    for read in found.reads:
        said, item = read.judgement, _item(read.judgement)
        entries.append(
            _Entry(read.annotation, item, said.annotator, read.raw, said, read.adjudicated)
        )
    for skip in found.skips:
        entries.append(_Entry(skip.annotation, skip.item.id, skip.annotator, skip.raw, None))
    gone: set[str] = set()
    if found.format == "label-studio":
        entries, gone = _as_pulled(store, entries, found.file)
    if found.format == "align":
        entries = _newer(store, entries)
    for entry in entries:
        entry.adjudicated |= gold
    before = store.counts().events
    for adjudicated in (False, True):
        part = [e for e in entries if e.judgement and e.adjudicated is adjudicated]
        store.add_judgements(
            [replace(e.judgement, annotator=e.annotator) for e in part if e.judgement],
            annotations=[e.annotation for e in part],
            raws=[e.raw for e in part],
            adjudicated=adjudicated,
        )
    between = store.counts().events
    store.add_items(skip.item for skip in found.skips)
    store.add_skips(
        (e.item, e.annotator, e.annotation, e.raw) for e in entries if e.judgement is None
    )
    after = store.counts().events
    for name in gone:
        store.delete_annotation(name)
    return Imported(between - before, after - between)


def _newer(store: FeedbackStore, entries: list[_Entry]) -> list[_Entry]:
    """The entries of an export that are later than what the store has of their annotations.

    The store need not have got them from a file: what it holds beside them then differs, though
    nobody said anything new. A row that states no version is left to the store to compare.
    """
    with store.reading() as connection:
        last = last_events(connection, [entry.annotation for entry in entries])
    news = []
    for entry in entries:
        before, stated = last.get(entry.annotation), changed_at(entry.raw)
        if before is None or stated is None or version_at(before) < stated:
            news.append(entry)
    return news


def _as_pulled(
    store: FeedbackStore, entries: list[_Entry], file: str
) -> tuple[list[_Entry], set[str]]:
    """The entries that are news, named as a pull names them, and the corrections they end."""
    tasks = _tasks(store, {e.raw.get("project") for e in entries})
    for entry in entries:
        number = entry.raw.get("id")
        owners = tasks.get((entry.raw.get("project"), entry.raw.get("task"), entry.item), [])
        if len(owners) > 1:
            servers = " and ".join(project.server for project in owners)
            raise DataError(
                f"{file}: its tasks of project {owners[0].project} may be those of {servers}. "
                "Fix: align feedback pull, which knows its server."
            )
        if owners and isinstance(number, int):
            entry.annotation = f"{Journal(store, owners[0]).prefix}{number}"
            entry.annotation += CORRECTED * isinstance(entry.judgement, Correction)
            entry.adjudicated = owners[0].role == "adjudication"
            entry.server = owners[0].server
    names = {e.annotation.removesuffix(CORRECTED) for e in entries if e.server}
    with store.reading() as connection:
        last = last_events(connection, [*names, *(name + CORRECTED for name in names)])
    people = _people(store, {e.server for e in entries if e.server})
    news = []
    for entry in entries:
        person = entry.raw.get("completed_by")
        if isinstance(person, int):
            entry.annotator = people.get((entry.server, person), entry.annotator)
        before = last.get(entry.annotation.removesuffix(CORRECTED))
        if before is None or _moment(before["raw"]) < _moment(entry.raw):
            news.append(entry)
    new = {entry.annotation for entry in news}
    ended = {name + CORRECTED for name in new & names} - new
    return news, {name for name in ended if name in last and last[name]["kind"] != "deletion"}


def _tasks(
    store: FeedbackStore, numbers: set[object]
) -> dict[tuple[object, object, str], list[Project]]:
    """The projects that the store pushed a task to, by project number, task number and item."""
    found: dict[tuple[object, object, str], list[Project]] = {}
    for project in projects(store):
        if project.project not in numbers:
            continue
        query = sa.select(tasks_table.c.task, tasks_table.c.item).where(
            tasks_table.c.server == project.server, tasks_table.c.project == project.project
        )
        with store.reading() as connection:
            for task, item in connection.execute(query):
                found.setdefault((project.project, task, item), []).append(project)
    return found


def _people(store: FeedbackStore, servers: set[str]) -> dict[tuple[str, int], str]:
    """Annotators by server and number, as pulls recorded them: exports give only the number."""
    columns = (events_table.c.annotator, events_table.c.raw)
    people: dict[tuple[str, int], str] = {}
    for server in servers:
        ours = events_table.c.annotation.startswith(f"{server}/", autoescape=True)
        with store.reading() as connection:
            for annotator, raw in connection.execute(sa.select(*columns).where(ours)):
                number = raw.get("completed_by")
                if isinstance(number, int) and annotator != str(number):
                    people[server, number] = annotator
    return people


def _item(judgement: Judgement) -> str:
    return judgement.pair if isinstance(judgement, Comparison) else judgement.item


def _moment(raw: Mapping[str, Any]) -> datetime:
    return changed_at(raw) or datetime.min.replace(tzinfo=UTC)
