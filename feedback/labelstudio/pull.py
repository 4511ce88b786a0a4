"""Annotations back into the store: complete, once each, whatever is done to them on the server.

A pull reads the tasks whose `updated_at` is newer than what was read before, less an overlap for
transactions that commit late, and only those with labels. The store adds nothing for what it has.
Deletions leave no trace but a task with fewer labels, so each pull compares the project's own
count with the store's, looks for what is gone where the store has more, and reads everything again
where it has less: the check that nothing is lost is part of every pull.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from feedback.labelstudio.client import Json, LabelStudioClient, condition
from feedback.labelstudio.journal import Project
from feedback.labelstudio.projects import check_config
from feedback.labelstudio.record import PullReport, Recorder
from feedback.store import FeedbackStore

OVERLAP = timedelta(minutes=2)
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
    report, seen = recorder.report, recorder.journal.seen_until()
    since = None if full or seen is None else seen - overlap
    before = _count(check_config(client, project))
    read = [_read(recorder, since, batch_size, progress)]
    _settle(recorder, before, since, accept_deletions)
    if report.kept < report.least and since is not None:
        read.append(_read(recorder, None, batch_size, progress))
        _settle(recorder, before, None, accept_deletions)
    newest = max((moment for moment in read if moment is not None), default=None)
    if newest is not None and newest != seen:
        recorder.journal.saw(newest)
    return report


def _read(
    recorder: Recorder, since: datetime | None, size: int, progress: Callable[[int], None]
) -> datetime | None:
    """Record the labelled tasks that changed after a moment; the newest change."""
    number = recorder.project.project
    newer = [] if since is None else [newer_than(since)]
    newest: datetime | None = None
    batch: list[Json] = []
    for labels in ("total_annotations", "cancelled_annotations"):
        labelled = condition(labels, "greater", "Number", 0)
        conditions = [*newer, labelled]
        for task in recorder.client.tasks(number, conditions, fields=TASK):
            batch.append(task)
            moment = datetime.fromisoformat(task["updated_at"])
            newest = moment if newest is None else max(newest, moment)
            if len(batch) == size:
                recorder.record(batch)
                batch = []
                progress(recorder.report.tasks)
    recorder.record(batch)
    return newest


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


def _count(counts: dict[str, int]) -> int:
    return counts["annotations"] + counts["skips"]
