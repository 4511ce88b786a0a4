"""Annotations back into the store: complete, once each, whatever is done to them on the server.

A pull reads the labelled tasks whose `updated_at` is newer than what was read before. Transactions
may commit late, so it also lists what changed shortly before that, which is cheap, and reads what
it does not know by that `updated_at`: the server saves an annotation first and its task's moment
after, so whoever saw the moment saw the annotation. The store adds nothing for what it has.
Deletions leave no trace but a task with fewer labels, so each pull compares the project's own
count with the store's, looks for what is gone where the store has more, and reads everything again
where it has less: the check that nothing is lost is part of every pull.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta

from feedback.labelstudio.client import Json, LabelStudioClient, condition
from feedback.labelstudio.journal import Project
from feedback.labelstudio.projects import check_config
from feedback.labelstudio.record import PullReport, Recorder
from feedback.store import FeedbackStore

OVERLAP = timedelta(minutes=2)
MANY_LATE = 20  # tasks that are cheaper read together with all that changed since
# Half the time that all fields take. The names are those of a task and of its annotations, of which
# none is left out: events keep them as they came.
TASK = (
    *("id", "data", "updated_at", "annotations", "task", "project", "result", "completed_by"),
    *("was_cancelled", "lead_time", "created_at", "created_username", "draft_created_at"),
    *("updated_by", "ground_truth", "unique_id", "import_id", "last_action", "last_created_by"),
    *("parent_annotation", "parent_prediction", "bulk_created"),
)


def pull(
    client: LabelStudioClient,
    store: FeedbackStore,
    project: Project,
    *,
    full: bool = False,
    accept_deletions: bool = False,
    overlap: timedelta = OVERLAP,
    batch_size: int = 500,
    progress: Callable[[int], None] = lambda tasks: None,
) -> PullReport:
    """Record what people did since the last pull; run it again at any time.

    Args:
        client: of the project's server.
        store: where to.
        project: what to read.
        full: read every labelled task, whatever was read before.
        accept_deletions: withdraw labels that are gone from the server however many they are.
        overlap: how far back before the newest `updated_at` seen to read again.
        batch_size: tasks recorded at a time; memory holds no more.
        progress: called with the number of tasks read so far.

    Raises:
        LabelStudioError: an edited configuration, a server that refuses or is out of reach, or one
            that lost many labels at once; what was recorded until then stays.
    """
    recorder = Recorder(client, store, project)
    report, seen = recorder.report, recorder.journal.seen()
    since = None if full or seen.until is None else seen.until - overlap
    counts = check_config(client, project)
    before = _count(counts)

    def read(conditions: Sequence[Json] = ()) -> dict[int, str]:
        """Record the labelled tasks that fit conditions; their `updated_at` by number."""
        found: dict[int, str] = {}
        batch: list[Json] = []
        for task in _labelled(recorder, conditions, TASK, skips=counts["skips"] > 0):
            batch.append(task)
            found[task["id"]] = task["updated_at"]
            if len(batch) == batch_size:
                recorder.record(batch)
                batch = []
                progress(report.tasks)
        recorder.record(batch)
        return found

    if since is None or seen.until is None:
        known = read()
    else:
        known = _list(recorder, since, skips=counts["skips"] > 0)
        changed = {n for n, moment in known.items() if seen.recent.get(n) != moment}
        late = {n for n in changed if _moment(known[n]) <= seen.until}
        if len(late) > MANY_LATE:
            known |= read([newer_than(since)])
        else:
            if changed - late:
                known |= read([newer_than(seen.until)])
            for number in sorted(late):
                known |= read([condition("id", "equal", "Number", number)])
    _settle(recorder, before, since, accept_deletions)
    if report.kept < report.least and since is not None:
        known |= read()
        _settle(recorder, before, None, accept_deletions)
    newest = max(map(_moment, known.values()), default=None)
    if newest is not None:
        recent = {n: moment for n, moment in known.items() if _moment(moment) > newest - overlap}
        if (newest, recent) != (seen.until, seen.recent):
            recorder.journal.saw(newest, recent)
    return report


def _list(recorder: Recorder, since: datetime, *, skips: bool) -> dict[int, str]:
    """`updated_at` of the labelled tasks that changed after a moment, by number."""
    fields = ("id", "updated_at")
    listed = _labelled(recorder, [newer_than(since)], fields, skips=skips)
    return {task["id"]: task["updated_at"] for task in listed}


def _labelled(
    recorder: Recorder, conditions: Sequence[Json], fields: Sequence[str], *, skips: bool
) -> Iterator[Json]:
    """The tasks that fit conditions and have labels, or skips; a task with both comes twice."""
    kinds = ["total_annotations", *["cancelled_annotations"] * skips]
    for kind in kinds:
        labelled = condition(kind, "greater", "Number", 0)
        yield from recorder.client.tasks(
            recorder.project.project, [*conditions, labelled], fields=fields
        )


def _settle(recorder: Recorder, before: int, since: datetime | None, accept: bool) -> None:
    """Compare the server's count with the store's, and find what was deleted on the server."""
    report = recorder.report
    report.server = _count(check_config(recorder.client, recorder.project))
    report.least, report.most = min(before, report.server), max(before, report.server)
    report.kept = recorder.kept()
    if report.kept > report.most and since is not None:
        recorder.find_deleted([newer_than(since)], accept=accept)
        report.kept = recorder.kept()
    if report.kept > report.most:
        recorder.find_deleted(accept=accept)
        report.kept = recorder.kept()


def newer_than(moment: datetime) -> Json:
    """The condition on a task's `updated_at`."""
    return condition("updated_at", "greater", "Datetime", moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))


def _moment(updated_at: str) -> datetime:
    return datetime.fromisoformat(updated_at)


def _count(counts: dict[str, int]) -> int:
    return counts["annotations"] + counts["skips"]
