"""Items out to a project: each exactly once, whatever breaks on the way.

A batch is written into the store's journal before it is sent and confirmed after. When the answer
is lost (connection, time-out, kill -9 of either side) nobody knows whether the server has the
tasks, so the next step asks it: tasks carry their key, and those of a lost batch have greater
numbers than any the journal knew when the batch was planned. Only what is missing is sent again;
what came twice, and nobody has labelled, is deleted. A lost request may even arrive after all that:
where the server counts more tasks than the journal, the next push looks for copies once more. One
process at a time pushes to a project.
"""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from feedback.errors import LabelStudioError
from feedback.labelstudio.client import DoubtfulError, Json, LabelStudioClient, condition
from feedback.labelstudio.journal import Batch, Journal, Project
from feedback.labelstudio.projects import check_config
from feedback.labelstudio.tasks import item_of_key, task_data, task_keys
from feedback.locks import exclusive
from feedback.queries import find_items
from feedback.schema import Item
from feedback.store import FeedbackStore

ATTEMPTS = 6  # at one batch, waiting 1, 2, 4, ... seconds between
FIRST = 500  # tasks in the first request: the server is soon at work while more are made ready
BATCH_CHARACTERS = 16_000_000  # of a request's texts: servers refuse bodies of 250 MB
SETTLE = 1.0  # seconds between two looks that must agree: the server may still be importing


@dataclass
class PushReport:
    """What a push did."""

    sent: int = 0  # tasks confirmed by this push
    known: int = 0  # that the project had already
    recovered: int = 0  # that an earlier, broken push had brought over
    removed: int = 0  # copies deleted
    missing: int = 0  # known tasks that somebody deleted on the server; they are not sent again


def push(
    client: LabelStudioClient,
    store: FeedbackStore,
    project: Project,
    items: Iterable[Item],
    *,
    twins: bool = False,
    batch_size: int = 4000,
    wait: Callable[[float], None] = time.sleep,
    progress: Callable[[int], None] = lambda sent: None,
) -> PushReport:
    """Bring items to a project that does not have them yet; run it again at any time.

    Args:
        client: of the project's server.
        store: holds the items and the journal.
        project: where to.
        items: of the project's kind.
        twins: ask pairs a second time with the answers turned.
        batch_size: tasks a request, fewer where their texts are long.
        wait: sleeps between attempts.
        progress: called with the number of tasks sent so far.

    Raises:
        LabelStudioError: a wrong kind, an edited configuration, or a server that refuses or stays
            out of reach; what was confirmed until then stays, and the next push goes on.
        StoreError: another process is pushing to this project.
    """
    with exclusive(store, f"push to project {project.project} of {project.server}"):
        counted = check_config(client, project)["tasks"]
        journal, report = Journal(store, project), PushReport()
        doubtful = journal.open_batches()
        for batch in doubtful:
            data = _stored(store, batch.keys)
            tasks, removed = _send(client, journal, batch, data, wait, doubtful=True)
            journal.confirm(batch, tasks)
            report.recovered += len(tasks)
            report.removed += removed
        known = journal.tasks()
        if doubtful:
            counted = check_config(client, project)["tasks"]
        if counted > len(known):
            removed = _remove_copies(client, project.project, known)
            report.removed += removed
            counted -= removed
        report.missing = max(len(known) - counted, 0)
        after = max(known.values(), default=0)
        ready = _ready(store, _batches(items, project, twins, batch_size), set(known), report)
        confirmed: Future[None] | None = None
        # While the server imports a batch, the last is confirmed and the next made ready.
        with ThreadPoolExecutor(1) as beside:
            upcoming = beside.submit(next, ready, None)
            while (waiting := upcoming.result()) is not None:
                batch = Batch(uuid.uuid4().hex, tuple(waiting), after)
                journal.plan(batch)
                upcoming = beside.submit(next, ready, None)
                tasks, removed = _send(client, journal, batch, waiting, wait)
                if confirmed is not None:
                    confirmed.result()
                confirmed = beside.submit(journal.confirm, batch, tasks)
                after = max(after, *tasks.values())
                report.sent += len(tasks)
                report.removed += removed
                progress(report.sent)
            if confirmed is not None:
                confirmed.result()
    return report


def _ready(
    store: FeedbackStore,
    batches: Iterable[dict[str, Item]],
    known: set[str],
    report: PushReport,
) -> Iterator[dict[str, Json]]:
    """The data of the tasks that are not known yet, batch by batch, their items in the store."""
    for wanted in batches:
        new = {key: item for key, item in wanted.items() if key not in known}
        report.known += len(wanted) - len(new)
        if new:
            known |= new.keys()
            given = {item.id: item for item in new.values()}
            if store.add_items(given.values()) == len(given):  # the store's own are these
                yield {key: task_data(given[item_of_key(key)], key) for key in new}
            else:
                yield _stored(store, new)


def _stored(store: FeedbackStore, keys: Iterable[str]) -> dict[str, Json]:
    """The data of tasks by key, from the store's own items.

    An id does not say in which order answers are stored and shown, and labels are turned back by
    what the store says.
    """
    wanted = list(keys)
    with store.reading() as connection:
        items = find_items(connection, list({item_of_key(key) for key in wanted}))
    return {key: task_data(items[item_of_key(key)], key) for key in wanted}


def settle(
    client: LabelStudioClient, journal: Journal, batch: Batch, wait: Callable[[float], None]
) -> tuple[dict[str, int], int]:
    """Which tasks of a doubtful batch the server has, and how many copies were deleted.

    The server may still be importing when it is asked, so two looks in a row must agree.
    """
    wanted = set(batch.keys)
    before: dict[str, list[tuple[int, int]]] | None = None
    for attempt in range(ATTEMPTS):
        try:
            now = _look(client, journal.project.project, batch.after, wanted)
        except DoubtfulError:
            if attempt + 1 == ATTEMPTS:
                raise
            before = None
            wait(2.0**attempt)
            continue
        if now == before:
            break
        before = now
        wait(SETTLE)
    assert before is not None
    found: dict[str, int] = {}
    surplus: list[int] = []
    for key, copies in before.items():
        # The one that people have labelled stays, or else the first.
        keep, *rest = sorted(copies, key=lambda copy: (-copy[1], copy[0]))
        found[key] = keep[0]
        surplus += [task for task, labels in rest if not labels]
    return found, _delete_unlabelled(client, surplus)


def _send(
    client: LabelStudioClient,
    journal: Journal,
    batch: Batch,
    data: Mapping[str, Json],
    wait: Callable[[float], None],
    *,
    doubtful: bool = False,
) -> tuple[dict[str, int], int]:
    """Send a batch until the server has all of it; task numbers by key, and copies deleted.

    A `doubtful` batch may be there already, in part or whole: look first.
    """
    missing, found, removed = list(batch.keys), dict[str, int](), 0
    if doubtful:
        found, removed = settle(client, journal, batch, wait)
        missing = [key for key in batch.keys if key not in found]
        if not missing:
            return found, removed
    for attempt in range(ATTEMPTS):
        try:
            numbers = client.import_tasks(journal.project.project, [data[key] for key in missing])
            if len(numbers) != len(missing):
                raise DoubtfulError(
                    f"Label Studio at {client.url}: {len(missing)} tasks sent, {len(numbers)} "
                    "confirmed."
                )
            found |= dict(zip(missing, numbers, strict=True))
            if attempt == 0 and not doubtful:
                return found, 0
        except DoubtfulError:
            if attempt + 1 == ATTEMPTS:
                raise
            wait(2.0**attempt)
        # Something went wrong at least once: believe the server, not our memory.
        found, gone = settle(client, journal, batch, wait)
        removed += gone
        missing = [key for key in batch.keys if key not in found]
        if not missing:
            return found, removed
    raise LabelStudioError(
        f"Label Studio at {client.url}: {len(missing)} of {len(batch.keys)} tasks of a batch did "
        f"not arrive in {ATTEMPTS} attempts. Fix: look at the server's log, then push again."
    )


def _remove_copies(client: LabelStudioClient, project: int, known: Mapping[str, int]) -> int:
    """Delete tasks that are copies of the journal's; how many. Labelled ones stay, and count."""
    surplus = [
        task
        for key, copies in _look(client, project, 0, set(known)).items()
        for task, labels in copies
        if task != known[key] and not labels
    ]
    return _delete_unlabelled(client, surplus)


def _delete_unlabelled(client: LabelStudioClient, tasks: Iterable[int]) -> int:
    """Delete tasks, but for those that somebody labelled since they were looked at; how many."""
    deleted = 0
    for task in tasks:
        if not client.annotations(task):
            client.delete_task(task)
            deleted += 1
    return deleted


def _look(
    client: LabelStudioClient, project: int, after: int, wanted: set[str]
) -> dict[str, list[tuple[int, int]]]:
    """(task number, labels) of every task with a wanted key, by key."""
    newer = [condition("id", "greater", "Number", after)] if after else []
    fields = ("id", "data", "total_annotations", "cancelled_annotations")
    found = defaultdict[str, list[tuple[int, int]]](list)
    for task in client.tasks(project, newer, fields=fields):
        key = task["data"].get("key")
        if isinstance(key, str) and key in wanted:
            labels = task["total_annotations"] + task["cancelled_annotations"]
            found[key].append((task["id"], labels))
    return dict(found)


def _batches(
    items: Iterable[Item], project: Project, twins: bool, size: int
) -> Iterator[dict[str, Item]]:
    """Items by task key, `size` tasks at a time; turned twins after all others.

    Whoever gets a pair and its twin one after the other remembers what they said.
    """
    batch: dict[str, Item] = {}
    characters, most = 0, min(size, FIRST)
    for key, item in _keyed(items, project, twins):
        characters += len(str(item.prompt)) + sum(map(len, item.responses))
        batch[key] = item
        if len(batch) >= most or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters, most = {}, 0, size
    if batch:
        yield batch


def _keyed(items: Iterable[Item], project: Project, twins: bool) -> Iterator[tuple[str, Item]]:
    """(task key, item) of every task, in the order they are asked."""
    asked: list[Item] = []
    for item in items:
        if item.kind != project.kind:
            raise LabelStudioError(
                f"item {item.id} is a {item.kind}; project {project.name!r} asks for "
                f"{project.kind}s. Fix: push it to a project of its kind."
            )
        yield item.id, item
        if twins:
            asked.append(item)
    for item in asked:
        yield from ((key, item) for key in task_keys(item, twins=True)[1:])
