"""Annotations back into the store: complete, once each, whatever is done to them on the server.

A pull reads the tasks whose `updated_at` is newer than what was read before, less an overlap for
transactions that commit late, and only those with labels. The store adds nothing for what it has.
Deletions leave no trace but a task with fewer labels, so each pull compares the project's own
count with the store's and looks for what is gone where they differ: the check that nothing is lost
is part of every pull.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from feedback.labelstudio.client import Json, LabelStudioClient, condition
from feedback.labelstudio.journal import Journal, Project
from feedback.labelstudio.parse import MisfitError, parse_annotation
from feedback.labelstudio.projects import check_config
from feedback.labelstudio.tasks import item_of_key
from feedback.queries import find_items
from feedback.schema import Correction, Item, Judgement
from feedback.store import FeedbackStore

OVERLAP = timedelta(minutes=2)
VOLATILE = ("created_ago",)  # changes with every reading
CORRECTED = "#correction"
BATCH = 500


@dataclass
class PullReport:
    """What a pull did, in annotations."""

    new: int = 0
    updated: int = 0
    skipped: int = 0  # declined by the annotator
    deleted: int = 0  # withdrawn on the server; their versions stay in the store
    quarantined: int = 0  # did not fit; kept aside with the reason
    tasks: int = 0  # tasks read
    server: int = 0  # annotations and skips that the project counts
    kept: int = 0  # of these, in the store now (judgements, skips and quarantine)

    @property
    def complete(self) -> bool:
        """Whether the store has exactly as many as the project."""
        return self.server == self.kept


def pull(
    client: LabelStudioClient,
    store: FeedbackStore,
    project: Project,
    *,
    full: bool = False,
    overlap: timedelta = OVERLAP,
    progress: Callable[[int], None] = lambda tasks: None,
) -> PullReport:
    """Record what people did since the last pull; run it again at any time.

    Args:
        client: of the project's server.
        store: where to.
        project: what to read.
        full: read every labelled task, whatever was read before.
        overlap: how far back before the newest `updated_at` seen to read again.
        progress: called with the number of tasks read so far.

    Raises:
        LabelStudioError: an edited configuration, or a server that refuses or is out of reach;
            what was recorded until then stays.
    """
    counts = check_config(client, project)
    reader = _Reader(client, store, project)
    since = None if full else reader.journal.seen_until()
    newer = [] if since is None else [_newer(since - overlap)]
    newest = since
    batch: list[Json] = []
    for labels in ("total_annotations", "cancelled_annotations"):
        labelled = condition(labels, "greater", "Number", 0)
        for task in client.tasks(project.project, [*newer, labelled]):
            batch.append(task)
            moment = datetime.fromisoformat(task["updated_at"])
            newest = moment if newest is None else max(newest, moment)
            if len(batch) == BATCH:
                reader.record(batch)
                batch = []
                progress(reader.report.tasks)
    reader.record(batch)
    reader.report.server = counts["annotations"] + counts["skips"]
    reader.count()
    if reader.report.kept > reader.report.server:
        reader.find_deleted()
        reader.count()
    if newest is not None and newest != since:
        reader.journal.saw(newest)
    return reader.report


class _Reader:
    """Tasks into events; holds what one pull needs to look up once."""

    def __init__(self, client: LabelStudioClient, store: FeedbackStore, project: Project):
        self.client, self.store, self.project = client, store, project
        self.journal = Journal(store, project)
        self.users = client.users()
        self.last = self.journal.annotations()
        self.report = PullReport()

    def record(self, tasks: list[Json]) -> None:
        """Record the annotations of some tasks, read whole."""
        self.report.tasks += len(tasks)
        if not tasks:
            return
        keys = {task["id"]: str(task["data"].get("key")) for task in tasks}
        with self.store.reading() as connection:
            items = find_items(connection, list({item_of_key(key) for key in keys.values()}))
        said: list[tuple[Judgement, str, Json]] = []
        skips: list[tuple[str, str, str, Json]] = []
        refused: list[tuple[str, Json]] = []
        present: dict[int, set[str]] = {}
        for task in tasks:
            key = keys[task["id"]]
            item = items.get(item_of_key(key))
            present[task["id"]] = set()
            for raw in task["annotations"]:
                raw = {k: v for k, v in raw.items() if k not in VOLATILE}
                name = f"{self.journal.prefix}{raw['id']}"
                present[task["id"]].add(name)
                person = self.users.get(raw["completed_by"]) or f"user {raw['completed_by']}"
                if item is None:
                    refused.append((f"task {task['id']} has the unknown key {key!r}", raw))
                elif raw["was_cancelled"]:
                    skips.append((item.id, person, name, raw))
                else:
                    self._parse(raw, item, key, person, name, said, refused)
        self._keep(said, skips, refused)
        self._withdraw(
            name
            for name, event in self.last.items()
            if event["raw"].get("task") in present
            and name.removesuffix(CORRECTED) not in present[event["raw"]["task"]]
        )

    def count(self) -> None:
        """How many of the project's annotations the store accounts for."""
        standing = [name for name, e in self.last.items() if e["kind"] != "deletion"]
        whole = {name.removesuffix(CORRECTED) for name in standing}
        aside = {f"{self.journal.prefix}{e['raw'].get('id')}" for e in self.journal.quarantined()}
        self.report.kept = len(whole | (aside - set(self.last)))

    def find_deleted(self) -> None:
        """Look for annotations that the server no longer has.

        Tasks with fewer labels than the store has from them are asked one by one, so nothing counts
        as withdrawn but what the server itself does not list. A deleted task took its labels along.
        """
        known = defaultdict[int, set[str]](set)
        for name, event in self.last.items():
            if event["kind"] != "deletion" and not name.endswith(CORRECTED):
                known[event["raw"]["task"]].add(name)
        fields = ("id", "total_annotations", "cancelled_annotations")
        on_server = {
            task["id"]: task["total_annotations"] + task["cancelled_annotations"]
            for task in self.client.tasks(self.project.project, fields=fields)
        }
        for task, names in known.items():
            if on_server.get(task, 0) >= len(names):
                continue
            listed = self.client.annotations(task) if task in on_server else []
            alive = {f"{self.journal.prefix}{raw['id']}" for raw in listed}
            gone = names - alive
            self._withdraw([*gone, *(name + CORRECTED for name in gone)])

    def _parse(
        self,
        raw: Json,
        item: Item,
        key: str,
        person: str,
        name: str,
        said: list[tuple[Judgement, str, Json]],
        refused: list[tuple[str, Json]],
    ) -> None:
        try:
            judgements = parse_annotation(raw, item, key, person)
        except MisfitError as misfit:
            refused.append((str(misfit), raw))
            return
        names = [name + CORRECTED if isinstance(j, Correction) else name for j in judgements]
        said += [(j, n, raw) for j, n in zip(judgements, names, strict=True)]
        if name + CORRECTED not in names:  # an earlier version may have had one
            self._withdraw([name + CORRECTED])

    def _keep(
        self,
        said: list[tuple[Judgement, str, Json]],
        skips: list[tuple[str, str, str, Json]],
        refused: list[tuple[str, Json]],
    ) -> None:
        for name, raw in [(n, raw) for _, n, raw in said] + [(n, raw) for *_, n, raw in skips]:
            if name.endswith(CORRECTED):
                continue
            before = self.last.get(name)
            if before is None:
                self.report.new += 1
            elif before["raw"] != raw or before["kind"] == "deletion":
                self.report.updated += 1
        if said:
            self.store.add_judgements(
                [j for j, _, _ in said],
                annotations=[name for _, name, _ in said],
                raws=[raw for *_, raw in said],
            )
        for item, person, name, raw in skips:
            self.store.add_skip(item, person, annotation=name, raw=raw)
        self.report.skipped += sum(self.last.get(name, {}).get("raw") != r for *_, name, r in skips)
        self.report.quarantined += self.journal.quarantine(refused)
        for _, name, raw in said:
            self.last[name] = {"kind": "annotation", "raw": raw}
        for *_, name, raw in skips:
            self.last[name] = {"kind": "skip", "raw": raw}

    def _withdraw(self, names: Iterable[str]) -> None:
        for name in list(names):
            event: dict[str, Any] | None = self.last.get(name)
            if event is None or event["kind"] == "deletion":
                continue
            self.store.delete_annotation(name, event["raw"])
            self.last[name] = {"kind": "deletion", "raw": event["raw"]}
            self.report.deleted += not name.endswith(CORRECTED)


def _newer(moment: datetime) -> Json:
    """The condition on a task's `updated_at`."""
    return condition("updated_at", "greater", "Datetime", moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
