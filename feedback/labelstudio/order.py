"""Which tasks people get first: the greatest score first, without showing anybody a suggestion.

Label Studio's uncertainty sampling hands out tasks by the score of their prediction, the smallest
first, and only predictions of the project's own model version count. Scores outside [0, 1] it drops
without a word. So every task gets a prediction with an empty result, its place in the order as a
share, and a new version. Tasks without one would never be handed out (label-studio#426), so those
that were given no score come last, and the server is asked whether it has them all. A task that a
person has open stays with that person.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping

from feedback.errors import DataError, LabelStudioError
from feedback.labelstudio.client import LabelStudioClient
from feedback.labelstudio.journal import Journal, Project
from feedback.labelstudio.tasks import item_of_key
from feedback.store import FeedbackStore

BATCH = 1000


def order_tasks(
    client: LabelStudioClient, store: FeedbackStore, project: Project, scores: Mapping[str, float]
) -> int:
    """Hand out a project's tasks by score, the greatest first; run it again for new scores.

    Args:
        client: of the project's server.
        store: holds the journal of what was pushed.
        project: whose tasks.
        scores: by item id, such as `feedback.acquisition` gives; turned twins share theirs.

    Returns:
        How many tasks have a score of their own.

    Raises:
        DataError: a score is not finite, or none belongs to a task of the project.
        LabelStudioError: the server refuses, or has not taken every score.
    """
    odd = [name for name, score in scores.items() if not math.isfinite(score)]
    if odd:
        raise DataError(
            f"the score of item {odd[0]} is {scores[odd[0]]} ({len(odd)} such scores). "
            "Fix: give finite numbers."
        )
    tasks = Journal(store, project).tasks()
    scored = {key: scores[item] for key in tasks if (item := item_of_key(key)) in scores}
    if not scored:
        raise DataError(
            f"none of the {len(scores)} scores belongs to a task of project {project.name!r}. "
            "Fix: push first; scores go by item id."
        )
    values = sorted(set(scored.values()), reverse=True)
    share = {value: place / len(values) for place, value in enumerate(values)}
    rows = [(task, share[scored[key]] if key in scored else 1.0) for key, task in tasks.items()]
    version = _version(rows)
    have = client.model_versions(project.project)
    if have.get(version, 0) < len(rows):
        for start in range(0, len(rows), BATCH):
            client.import_scores(project.project, rows[start : start + BATCH], version)
        have = client.model_versions(project.project)
    if have.get(version, 0) < len(rows):
        raise LabelStudioError(
            f"Label Studio at {client.url}: project {project.project} has {have.get(version, 0)} "
            f"scores of {len(rows)} tasks, so the order was left as it is. Fix: push again with "
            "--scores."
        )
    client.update_project(project.project, sampling="Uncertainty sampling", model_version=version)
    return len(scored)


def _version(rows: list[tuple[int, float]]) -> str:
    """A name for these scores: the same scores again need not be sent again."""
    return "order-" + hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest()[:12]
