"""Tasks as the server lists them, into events: what is new, changed, gone or misfit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from feedback.errors import LabelStudioError
from feedback.labelstudio.client import Json, LabelStudioClient, NotFoundError
from feedback.labelstudio.journal import CORRECTED, Journal, Project
from feedback.labelstudio.parse import MisfitError, parse_annotation
from feedback.labelstudio.quarantine import Quarantine
from feedback.labelstudio.tasks import item_of_key, task_data
from feedback.queries import find_items, last_events
from feedback.schema import Correction, Item, Judgement
from feedback.store import FeedbackStore

VOLATILE = ("created_ago",)  # changes with every reading
MANY, MANY_SHARE = 20, 0.2  # labels that may be gone at once without a question


@dataclass
class PullReport:
    """What a pull did, in annotations."""

    new: int = 0
    updated: int = 0
    skipped: int = 0  # declined by the annotator
    deleted: int = 0  # withdrawn on the server; their versions stay in the store
    quarantined: int = 0  # did not fit; kept aside with the reason
    tasks: int = 0  # tasks read
    server: int = 0  # annotations and skips that the project counts, after the reading
    least: int = 0  # the smaller and the greater of its counts before and after: people may be
    most: int = 0  # labelling at this moment
    kept: int = 0  # of these, in the store now (judgements, skips and quarantine)

    @property
    def complete(self) -> bool:
        """Whether the store has exactly as many as the project had during the pull."""
        return self.least <= self.kept <= self.most


@dataclass
class _Batch:
    """What some tasks hold, sorted by what becomes of it."""

    said: list[tuple[Judgement, str, Json]] = field(default_factory=list)
    skips: list[tuple[str, str, str, Json]] = field(default_factory=list)
    refused: list[tuple[str, str, Json]] = field(default_factory=list)  # name, reason, raw
    gone: set[str] = field(default_factory=set)  # no longer stand


class Recorder:
    """Writes one project's annotations into the store."""

    def __init__(self, client: LabelStudioClient, store: FeedbackStore, project: Project):
        """Look up what is set aside."""
        self.client, self.store, self.project = client, store, project
        self.journal = Journal(store, project)
        self.quarantine = Quarantine(self.journal)
        self.users: dict[int, str] = {}
        self.aside = self.quarantine.open()
        self.report = PullReport()

    def record(self, tasks: list[Json]) -> None:
        """Record the annotations of some tasks, read whole."""
        if not tasks:
            return
        self.report.tasks += len(tasks)
        ids = list({item_of_key(_key(task)) for task in tasks})
        with self.store.reading() as connection:
            items = find_items(connection, ids)
        last = self.journal.standing(ids)
        batch = _Batch()
        present: dict[int, set[str]] = {}
        for task in tasks:
            key = _key(task)
            item = items.get(item_of_key(key))
            names = present[task["id"]] = set()
            newer = said_again(task["annotations"])
            for raw in task["annotations"]:
                raw = {k: v for k, v in raw.items() if k not in VOLATILE}
                name = f"{self.journal.prefix}{raw['id']}"
                names.add(name)
                person = self._person(raw["completed_by"], last.get(name))
                if item is None:
                    reason = f"task {task['id']} has the unknown key {key!r}"
                    batch.refused.append((name, reason, raw))
                elif not _as_sent(task["data"], item, key):
                    batch.refused.append((name, "the task's data were edited on the server", raw))
                elif raw["was_cancelled"]:
                    batch.skips.append((item.id, person, name, raw))
                    batch.gone.add(name + CORRECTED)
                elif raw["id"] in newer:
                    reason = (
                        f"{person} answered the task again: annotation {newer[raw['id']]} counts"
                    )
                    batch.refused.append((name, reason, raw))
                else:
                    try:
                        judgements = parse_annotation(raw, item, key, person)
                    except MisfitError as misfit:
                        batch.refused.append((name, str(misfit), raw))
                        continue
                    parts = [name + CORRECTED * isinstance(j, Correction) for j in judgements]
                    batch.said += [(j, n, raw) for j, n in zip(judgements, parts, strict=True)]
                    if name + CORRECTED not in parts:  # an earlier version may have had one
                        batch.gone.add(name + CORRECTED)
        batch.gone |= {
            name
            for name, event in last.items()
            if event["raw"].get("task") in present
            and name.removesuffix(CORRECTED) not in present[event["raw"]["task"]]
        }
        # What a person changed into something unreadable says nothing any more.
        batch.gone |= {name + tail for name, _, _ in batch.refused for tail in ("", CORRECTED)}
        self._keep(batch, last)
        self._release(
            name
            for name, row in self.aside.items()
            if row["raw"].get("task") in present and name not in present[row["raw"]["task"]]
        )

    def _person(self, number: int | None, last: dict[str, Any] | None) -> str:
        """Who annotated: the e-mail of the account, also when the account is gone since."""
        if number is not None and number not in self.users:
            self.users |= self.client.users()  # the first one, or who joined during this pull
        known = self.users.get(number) if number is not None else None
        if known is None and last is not None:
            return str(last["annotator"])
        return known or f"user {number}"

    def kept(self) -> int:
        """How many of the project's annotations the store accounts for."""
        counts = self.journal.counts()
        return counts.total() - counts["deletion"] + len(self.aside)

    def find_deleted(self, conditions: Sequence[Json] = (), *, accept: bool = False) -> None:
        """Look for annotations that the server no longer has, among the tasks that fit conditions.

        Tasks with fewer labels than the store has from them are asked one by one, so nothing counts
        as withdrawn but what the server itself does not list. A deleted task took its labels along.

        Args:
            conditions: of the task list; none looks at all tasks.
            accept: withdraw however many are gone.

        Raises:
            LabelStudioError: more than `MANY_SHARE` are gone, which nobody does label by label.
        """
        known = defaultdict[int, dict[str, dict[str, Any]]](dict)
        for event in self.journal.annotations():
            if event["kind"] != "deletion" and not event["annotation"].endswith(CORRECTED):
                known[event["raw"].get("task")][event["annotation"]] = event
        for name, row in self.aside.items():
            known[row["raw"].get("task")][name] = row
        fields = ("id", "total_annotations", "cancelled_annotations")
        listed = {
            task["id"]: task["total_annotations"] + task["cancelled_annotations"]
            for task in self.client.tasks(self.project.project, conditions, fields=fields)
        }
        gone: set[str] = set()
        for task, events in known.items():
            unlisted = 0 if not conditions else len(events)  # it does not fit the conditions
            if listed.get(task, unlisted) >= len(events):
                continue
            try:
                alive = {
                    f"{self.journal.prefix}{raw['id']}" for raw in self.client.annotations(task)
                }
            except NotFoundError:
                alive = set()
            gone |= set(events) - alive
        total = sum(len(events) for events in known.values())
        if len(gone) > max(MANY, total * MANY_SHARE) and not accept:
            raise LabelStudioError(
                f"Label Studio project {self.project.project} ({self.project.name}): {len(gone)} "
                f"of {total} labels are gone from the server, so something went wrong there; none "
                "was withdrawn from the store. Fix: look at the project. If they were deleted on "
                "purpose: align feedback pull --accept-deletions."
            )
        self._withdraw(gone | {name + CORRECTED for name in gone})
        self._release(gone & set(self.aside))

    def _keep(self, batch: _Batch, last: dict[str, dict[str, Any]]) -> None:
        """Write a batch; each part is one transaction, and writing it again adds nothing."""
        report = self.report
        main = {name: raw for _, name, raw in batch.said if not name.endswith(CORRECTED)}
        for name, raw in [*main.items(), *((name, raw) for *_, name, raw in batch.skips)]:
            before = last.get(name)
            if before is None:
                report.new += 1
            elif before["raw"] != raw or before["kind"] == "deletion":
                report.updated += 1
        if batch.said:
            self.store.add_judgements(
                [j for j, _, _ in batch.said],
                annotations=[name for _, name, _ in batch.said],
                raws=[raw for *_, raw in batch.said],
                adjudicated=self.project.role == "adjudication",
            )
        self.store.add_skips(batch.skips)
        report.skipped += sum(last.get(name, {}).get("raw") != r for *_, name, r in batch.skips)
        report.quarantined += self.quarantine.add((why, raw) for _, why, raw in batch.refused)
        self.aside |= {name: {"reason": why, "raw": raw} for name, why, raw in batch.refused}
        self._release(set(self.aside) & (set(main) | {name for *_, name, _ in batch.skips}))
        self._withdraw({name for name in batch.gone if name in last})

    def _release(self, names: Iterable[str]) -> None:
        done = list(names)
        self.quarantine.release([self.aside[name]["raw"] for name in done])
        for name in done:
            del self.aside[name]

    def _withdraw(self, names: Iterable[str]) -> None:
        """Record that annotations no longer stand; those the store never had are passed over."""
        with self.store.reading() as connection:
            last = last_events(connection, list(names))
        for name, event in last.items():
            if event["kind"] != "deletion":
                self.store.delete_annotation(name, event["raw"])
                self.report.deleted += not name.endswith(CORRECTED)


def said_again(annotations: Sequence[Json]) -> dict[int, int]:
    """Annotations of one task whose person made a newer one: their number -> the newest's.

    Label Studio repeats a request that met a locked database, and a page sent twice counts twice
    there: one person has one vote on a task, the last.
    """
    newest: dict[int, int] = {}
    own = [
        (raw["completed_by"], raw["id"])
        for raw in annotations
        if raw["completed_by"] is not None and not raw["was_cancelled"]
    ]
    for person, number in own:
        newest[person] = max(number, newest.get(person, number))
    return {number: newest[person] for person, number in own if newest[person] != number}


def _key(task: Json) -> str:
    return str(task["data"].get("key"))


def _as_sent(data: Json, item: Item, key: str) -> bool:
    """Whether people saw what was pushed: anyone with an account can edit a task."""
    return all(data.get(name) == value for name, value in task_data(item, key).items())
