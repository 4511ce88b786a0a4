"""`align feedback pull`: labels into the store, once or for as long as people label."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from align.errors import ConfigError, Problem
from align.feedback_cli.common import DATA, STORE, Data, Name, Store, Url, chosen, err, out, title

if TYPE_CHECKING:
    from feedback.labelstudio.client import LabelStudioClient
    from feedback.labelstudio.journal import Project
    from feedback.store import FeedbackStore

app = typer.Typer()


@app.command()
def pull(
    name: Name = None,
    watch: Annotated[float, typer.Option(help="Again every so many seconds; 0 is once.")] = 0,
    full: Annotated[bool, typer.Option(help="Read everything again.")] = False,
    webhook: Annotated[
        str | None,
        typer.Option(help="With --watch: URL at which the server reaches us, to look sooner."),
    ] = None,
    store: Store = STORE,
    url: Url = None,
    data: Data = DATA,
) -> None:
    """Bring people's labels into the store: all of them, each once."""
    from feedback.errors import LabelStudioError
    from feedback.labelstudio.client import DoubtfulError
    from feedback.store import FeedbackStore

    if webhook and not watch:
        raise ConfigError([Problem("--webhook", "needs --watch.", "add --watch 60, say.")])
    with FeedbackStore(store, create=False) as opened:
        if not watch:
            incomplete = pull_once(opened, chosen(opened, name, url, data), full)
            if incomplete:
                raise LabelStudioError(
                    "; ".join(incomplete) + ". Fix: pull again (people may be labelling now), then "
                    "pull --full."
                )
            return
        with waiting(webhook, chosen(opened, name, url, data) if webhook else []) as wait:
            while True:
                try:
                    pull_once(opened, chosen(opened, name, url, data), full)
                except DoubtfulError as error:
                    # A watch outlives the server.
                    err.print(str(error), markup=False, highlight=False)
                wait(watch)


def pull_once(
    store: FeedbackStore, projects: list[tuple[LabelStudioClient, Project]], full: bool
) -> list[str]:
    """Pull each project and say what came; the shortfalls, in words."""
    from feedback.labelstudio.pull import pull as receive

    incomplete = []
    for client, project in projects:
        report = receive(client, store, project, full=full)
        out.print(f"{title(project)}: {_pulled(vars(report))}", highlight=False)
        if not report.complete:
            incomplete.append(
                f"{title(project)}: the server counts {report.server} labels, the store "
                f"{report.kept}"
            )
    return incomplete


@contextmanager
def waiting(
    webhook: str | None, projects: list[tuple[LabelStudioClient, Project]]
) -> Iterator[Callable[[float], object]]:
    """How a watch waits between two looks: so long, or until a hook says that there is news."""
    from feedback.labelstudio.webhook import WebhookListener

    if not webhook:
        yield time.sleep
        return
    client = projects[0][0]
    with WebhookListener(client, [p.project for _, p in projects], webhook) as listener:
        yield listener.wait


def _pulled(report: dict[str, Any]) -> str:
    names = ("new", "updated", "skipped", "deleted", "quarantined")
    said = ", ".join(f"{report[name]} {name}" for name in names)
    return f"{said}; {report['kept']} of {report['server']} on the server"
