"""What people disagreed on, asked once more of somebody whose word settles it.

Adjudication has a project of its own, so that nobody's labels are near. What is said there enters
the store as adjudications: `FeedbackStore.settled` puts them in the place of the votes.
"""

from __future__ import annotations

from feedback.errors import LabelStudioError
from feedback.labelstudio.client import LabelStudioClient
from feedback.labelstudio.journal import Journal, Project, projects
from feedback.labelstudio.projects import create_projects, known_projects
from feedback.labelstudio.push import PushReport, push
from feedback.labelstudio.tasks import item_of_key
from feedback.labelstudio.templates import Template
from feedback.quality.disagreement import Order, disagreement_queue
from feedback.queries import find_items
from feedback.store import FeedbackStore

SUFFIX = " (adjudication)"
GUIDELINES = """<h3>Adjudication</h3>
<p>People judged these answers differently; their labels are not shown, so that they cannot sway
you. Read everything, look up what you do not know, and choose. Your label settles the pair.</p>
<p>Keys: <b>1</b> to <b>5</b> choose, <b>Ctrl+Enter</b> submits, <b>Ctrl+Space</b> skips.</p>"""


def adjudicate(
    client: LabelStudioClient,
    store: FeedbackStore,
    name: str,
    *,
    by: Order = "votes",
    limit: int | None = None,
) -> tuple[Project, PushReport]:
    """Send a project's disputed pairs to its adjudication project, made if it is not there.

    Args:
        client: of the server.
        store: holds the labels.
        name: of the project whose labels are disputed.
        by: order of the queue, and which pairs are settled already, see `disagreement_queue`.
        limit: how many pairs at most, the most disputed first.

    Returns:
        The adjudication project, and what was pushed to it.

    Raises:
        LabelStudioError: no such project, one that does not ask for pairs, or no disputed pair.
    """
    asked = [project for project in known_projects(store, name) if project.role == "labels"]
    if not asked or asked[0].kind != "pair":
        what = f"asks for {asked[0].kind}s" if asked else "holds adjudications itself"
        raise LabelStudioError(f"project {name!r} {what}; only labels of pairs are adjudicated.")
    members = {item_of_key(key) for project in asked for key in Journal(store, project).tasks()}
    said = [one for one in store.comparisons() if one.pair in members]
    settled = {one.pair for one in store.adjudications()}
    queue = disagreement_queue(said, by, done=settled, limit=limit)
    if not queue:
        raise LabelStudioError(
            f"project {name!r}: no disputed pair is left ({len(said)} labels, {len(settled)} pairs "
            "settled). Fix: pull first; pairs need labels of two people."
        )
    known = projects(store, name + SUFFIX)
    project = known[0] if known else None
    if project is None:
        (project,) = create_projects(
            client,
            store,
            name + SUFFIX,
            Template("pair"),
            guidelines=GUIDELINES,
            role="adjudication",
        )
    with store.reading() as connection:
        items = find_items(connection, [entry.pair for entry in queue])
    return project, push(client, store, project, [items[entry.pair] for entry in queue])
