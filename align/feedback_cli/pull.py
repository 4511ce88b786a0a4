"""`align feedback pull`: labels into the store, once or for as long as people label."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from align.errors import ConfigError, Problem
from align.feedback_cli.common import DATA, STORE, Data, Name, Store, Url, chosen, err, say, title

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
    accept_deletions: Annotated[
        bool, typer.Option(help="Labels gone from the server were deleted on purpose, all of them.")
    ] = False,
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

    def look() -> list[str]:
        return pull_once(opened, chosen(opened, name, url, data), full, accept_deletions)

    with FeedbackStore(store, create=False) as opened:
        if not watch:
            problems = look()
            if problems:
                raise LabelStudioError("\n".join(problems))
            return
        with waiting(webhook, chosen(opened, name, url, data) if webhook else []) as wait:
            while True:
                try:
                    for problem in look():
                        say(problem, err)
                except DoubtfulError as error:
                    # A watch outlives the server.
                    say(str(error), err)
                wait(watch)


def pull_once(
    store: FeedbackStore,
    projects: list[tuple[LabelStudioClient, Project]],
    full: bool,
    accept_deletions: bool,
) -> list[str]:
    """Pull each project and say what came; what went wrong with any, in words.

    A project that was deleted or edited keeps no other from being read.
    """
    from feedback.errors import LabelStudioError
    from feedback.labelstudio.pull import pull as receive

    problems = []
    for client, project in projects:
        try:
            report = receive(client, store, project, full=full, accept_deletions=accept_deletions)
        except LabelStudioError as error:
            problems.append(f"{title(project)}: {error}")
            continue
        say(f"{title(project)}: {_pulled(vars(report))}")
        if not report.complete:
            problems.append(
                f"{title(project)}: the server counts {report.server} labels, the store "
                f"{report.kept}. Fix: pull again (people may be labelling now), then pull --full."
            )
    return problems


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
