"""`align feedback serve | init | push | pull | status`: the traffic with Label Studio."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.table import Table

from align.errors import ConfigError, Problem
from align.feedback_cli.common import (
    DATA,
    STORE,
    Data,
    Name,
    Store,
    Url,
    chosen,
    connect,
    err,
    out,
    title,
)

app = typer.Typer()


@app.command()
def serve(
    data: Data = DATA,
    port: Annotated[int, typer.Option(help="Where it listens.")] = 8080,
    host: Annotated[str, typer.Option(help="0.0.0.0 opens it to the network.")] = "127.0.0.1",
) -> None:
    """Install (once) and run a Label Studio server; prints the address and the login."""
    from feedback.labelstudio.server import LabelStudioServer

    server = LabelStudioServer(data, port, host)
    login = server.start(lambda line: err.print(line, highlight=False))
    out.print(f"Label Studio: {login.url}", highlight=False)
    out.print(f"log in as {login.email}, password {login.password}", markup=False, highlight=False)
    out.print(f"the API token is in {data / 'login.json'}; Ctrl-C stops the server")
    try:
        server.wait()
    finally:
        server.stop()


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="What to call the project.")],
    kind: Annotated[str, typer.Option(help="pair, ranking, rating or thumb.")] = "pair",
    annotators: Annotated[
        str, typer.Option(help="E-mails, comma-separated: a blind project for each.")
    ] = "",
    overlap: Annotated[int, typer.Option(help="People per task in a shared project.")] = 1,
    question: Annotated[str, typer.Option(help="Instead of the template's own.")] = "",
    correction: Annotated[bool, typer.Option(help="Ask for a better answer too.")] = False,
    store: Store = STORE,
    url: Url = None,
    data: Data = DATA,
) -> None:
    """Make a project on the server, with a page for its kind of question."""
    from feedback.labelstudio.projects import create_projects
    from feedback.labelstudio.templates import Template
    from feedback.schema import KINDS
    from feedback.store import FeedbackStore

    if kind not in KINDS:
        raise ConfigError([Problem("--kind", f"{kind!r} is unknown.", f"use {', '.join(KINDS)}.")])
    template = Template(kind, question=question, correction=correction)
    people = [person.strip() for person in annotators.split(",") if person.strip()]
    client = connect(url, data)
    with FeedbackStore(store) as opened:
        for project in create_projects(
            client, opened, name, template, annotators=people, overlap=overlap
        ):
            who = f" for {project.annotator}" if project.annotator else ""
            out.print(f"{client.url}/projects/{project.project}/data{who}", highlight=False)


@app.command()
def push(
    name: Name = None,
    twins: Annotated[bool, typer.Option(help="Ask every pair both ways round.")] = False,
    round: Annotated[str | None, typer.Option(help="Only items of this round.")] = None,
    store: Store = STORE,
    url: Url = None,
    data: Data = DATA,
) -> None:
    """Send the store's items to the server: each once, however often it is run."""
    from feedback.labelstudio.push import push as send
    from feedback.store import FeedbackStore

    with FeedbackStore(store, create=False) as opened:
        for client, project in chosen(opened, name, url, data):
            items = [
                item for item in opened.items(project.kind) if round is None or item.round == round
            ]
            report = send(client, opened, project, items, twins=twins)
            out.print(
                f"{title(project)}: {report.sent} tasks sent, {report.known} known, "
                f"{report.recovered} recovered, {report.removed} copies removed",
                highlight=False,
            )
            if report.missing:
                err.print(
                    f"{title(project)}: {report.missing} tasks were deleted on the server. They "
                    "are not sent again; to ask them once more, make a new project.",
                    highlight=False,
                )


@app.command()
def pull(
    name: Name = None,
    watch: Annotated[float, typer.Option(help="Again every so many seconds; 0 is once.")] = 0,
    full: Annotated[bool, typer.Option(help="Read everything again.")] = False,
    store: Store = STORE,
    url: Url = None,
    data: Data = DATA,
) -> None:
    """Bring people's labels into the store: all of them, each once."""
    from feedback.errors import LabelStudioError
    from feedback.labelstudio.client import DoubtfulError
    from feedback.labelstudio.pull import pull as receive
    from feedback.store import FeedbackStore

    with FeedbackStore(store, create=False) as opened:
        incomplete = []
        while True:
            try:
                for client, project in chosen(opened, name, url, data):
                    report = receive(client, opened, project, full=full)
                    out.print(f"{title(project)}: {_pulled(vars(report))}", highlight=False)
                    if not report.complete:
                        incomplete.append(
                            f"{title(project)}: the server counts {report.server} labels, the "
                            f"store {report.kept}"
                        )
            except DoubtfulError as error:
                if not watch:
                    raise
                err.print(str(error), markup=False, highlight=False)  # a watch outlives the server
            if not watch:
                break
            incomplete.clear()
            time.sleep(watch)
        if incomplete:
            raise LabelStudioError(
                "; ".join(incomplete) + ". Fix: pull again (people may be labelling now), then "
                "pull --full."
            )


@app.command()
def status(
    name: Name = None,
    show_config: Annotated[bool, typer.Option(help="Print labelling configurations.")] = False,
    store: Store = STORE,
) -> None:
    """What the store holds of each project, and what it set aside and why."""
    from collections import Counter

    from feedback.labelstudio.journal import Journal
    from feedback.labelstudio.projects import known_projects
    from feedback.labelstudio.quarantine import Quarantine
    from feedback.store import FeedbackStore

    with FeedbackStore(store, create=False) as opened:
        table = Table("project", "kind", "tasks", "labels", "skips", "quarantined", "read until")
        reasons: Counter[str] = Counter()
        for project in known_projects(opened, name):
            journal = Journal(opened, project)
            kinds = journal.counts()
            aside = Quarantine(journal).open()
            reasons.update(entry["reason"] for entry in aside.values())
            seen = journal.seen_until()
            table.add_row(
                title(project),
                project.kind,
                str(len(journal.tasks())),
                str(kinds["annotation"] + kinds["adjudication"]),
                str(kinds["skip"]),
                str(len(aside)),
                f"{seen:%Y-%m-%d %H:%M:%S}" if seen else "never",
            )
            if show_config:
                out.print(project.config, markup=False, highlight=False)
        out.print(table)
        for reason, count in reasons.most_common():
            out.print(f"set aside {count}: {reason}", markup=False, highlight=False)


def _pulled(report: dict[str, Any]) -> str:
    names = ("new", "updated", "skipped", "deleted", "quarantined")
    said = ", ".join(f"{report[name]} {name}" for name in names)
    return f"{said}; {report['kept']} of {report['server']} on the server"
