"""`align feedback serve | init | adjudicate | status`: projects, and what they ask."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Annotated, cast
from urllib.parse import urlsplit

import typer

from align.errors import ConfigError, Problem
from align.feedback_cli.common import (
    DATA,
    STORE,
    Data,
    Name,
    Store,
    Url,
    connect,
    err,
    out,
    say,
    table_of,
    title,
)
from align.interrupts import end_on_sigterm

if TYPE_CHECKING:
    from feedback.quality.disagreement import Order

app = typer.Typer()


@app.command()
def serve(
    data: Data = DATA,
    port: Annotated[int, typer.Option(help="Where it listens.")] = 8080,
    host: Annotated[str, typer.Option(help="0.0.0.0 opens it to the network.")] = "127.0.0.1",
    local_webhooks: Annotated[
        bool, typer.Option(help="Let it send webhooks to private addresses, such as this machine.")
    ] = False,
) -> None:
    """Install (once) and run a Label Studio server; prints the address and the login."""
    from feedback.labelstudio.server import LabelStudioServer

    server = LabelStudioServer(data, port, host, local_webhooks=local_webhooks)
    end_on_sigterm()
    try:
        login = server.start(lambda line: say(line, err))
        say(f"Label Studio: {login.url}")
        if host != urlsplit(login.url).hostname:
            say(f"from other machines: http://{socket.gethostname()}:{port}, if it resolves there")
        say(f"log in as {login.email}, password {login.password}")
        say(f"the API token is in {data / 'login.json'}; Ctrl-C stops the server")
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
            say(f"{client.url}/projects/{project.project}/data{who}")
        say(f"people make their accounts at {client.invitation()}")


@app.command()
def adjudicate(
    name: Annotated[str, typer.Argument(help="The project whose labels are disputed.")],
    by: Annotated[
        str, typer.Option(help="votes, or posterior: who said it counts too (Dawid-Skene).")
    ] = "votes",
    limit: Annotated[int | None, typer.Option(help="Pairs at most, most disputed first.")] = None,
    store: Store = STORE,
    url: Url = None,
    data: Data = DATA,
) -> None:
    """Ask disputed pairs once more, in a project of their own; the answers settle them.

    Pairs that one person judged are left out, and those settled beyond doubt.
    """
    from feedback.labelstudio.adjudicate import adjudicate as send
    from feedback.quality.disagreement import ORDERS
    from feedback.store import FeedbackStore

    problems = []
    if by not in ORDERS:
        problems.append(Problem("--by", f"{by!r} is unknown.", f"use {' or '.join(ORDERS)}."))
    if limit is not None and limit < 1:
        problems.append(Problem("--limit", f"is {limit}.", "give 1 or more."))
    if problems:
        raise ConfigError(problems)
    with FeedbackStore(store, create=False) as opened:
        client = connect(url, data)
        project, report = send(client, opened, name, by=cast("Order", by), limit=limit)
        say(
            f"{project.name}: {report.sent} disputed pairs sent, {report.known} were there; "
            f"{client.url}/projects/{project.project}/data"
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
        header = ("project", "kind", "tasks", "labels", "skips", "quarantined", "read until")
        rows = []
        reasons: Counter[str] = Counter()
        for project in known_projects(opened, name):
            journal = Journal(opened, project)
            kinds = journal.counts()
            aside = Quarantine(journal).open()
            reasons.update(entry["reason"] for entry in aside.values())
            seen = journal.seen().until
            rows.append(
                (
                    title(project),
                    project.kind,
                    str(len(journal.tasks())),
                    str(kinds["annotation"] + kinds["adjudication"]),
                    str(kinds["skip"]),
                    str(len(aside)),
                    f"{seen:%Y-%m-%d %H:%M:%S}" if seen else "never",
                )
            )
            if show_config:
                say(project.config)
        out.print(table_of(header, rows))
        for reason, count in reasons.most_common():
            say(f"set aside {count}: {reason}")
