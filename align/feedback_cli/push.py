"""`align feedback push`: the store's questions to the server, each once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from align.feedback_cli.common import DATA, STORE, Data, Name, Store, Url, chosen, err, say, title
from align.feedback_cli.scores import read_scores

if TYPE_CHECKING:
    from feedback.labelstudio.client import LabelStudioClient
    from feedback.labelstudio.journal import Project
    from feedback.schema import Item
    from feedback.store import FeedbackStore

app = typer.Typer()


@app.command()
def push(
    name: Name = None,
    twins: Annotated[bool, typer.Option(help="Ask every pair both ways round.")] = False,
    round: Annotated[str | None, typer.Option(help="Only items of this round.")] = None,
    scores: Annotated[
        Path | None,
        typer.Option(help="JSONL or CSV of `item` and `score`: the greatest score is asked first."),
    ] = None,
    store: Store = STORE,
    url: Url = None,
    data: Data = DATA,
) -> None:
    """Send the store's items to the server: each once, however often it is run."""
    from feedback.errors import LabelStudioError
    from feedback.store import FeedbackStore

    order = read_scores(scores) if scores else {}
    problems = []
    with FeedbackStore(store, create=False) as opened:
        for client, project in chosen(opened, name, url, data):
            items = [
                item for item in opened.items(project.kind) if round is None or item.round == round
            ]
            try:
                push_one(opened, client, project, items, twins, order)
            except LabelStudioError as error:
                # A project that was deleted or edited keeps no other from being sent.
                problems.append(f"{title(project)}: {error}")
    if problems:
        raise LabelStudioError("\n".join(problems))


def push_one(
    store: FeedbackStore,
    client: LabelStudioClient,
    project: Project,
    items: Sequence[Item],
    twins: bool,
    order: Mapping[str, float],
) -> None:
    """Send items to one project and say what came of it.

    Raises:
        LabelStudioError: the project is gone, was edited, or the server fails.
    """
    from feedback.labelstudio.order import order_tasks
    from feedback.labelstudio.push import push as send

    # Ids are hashes: in their order, rounds and gold questions are well mixed.
    mixed = sorted(items, key=lambda item: item.id)
    report = send(client, store, project, mixed, twins=twins)
    say(
        f"{title(project)}: {report.sent} tasks sent, {report.known} known, "
        f"{report.recovered} recovered, {report.removed} copies removed"
    )
    if report.missing:
        say(
            f"{title(project)}: {report.missing} tasks were deleted on the server. They are not "
            "sent again; to ask them once more, make a new project.",
            err,
        )
    if order:
        count = order_tasks(client, store, project, order)
        say(f"{title(project)}: {count} tasks in the order of their scores")
