"""`align feedback`: people's judgement in and out. Parses, calls `feedback`, prints the result."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table

from align.errors import ConfigError, Problem

if TYPE_CHECKING:
    from feedback.formats import Format
    from feedback.labelstudio.client import LabelStudioClient
    from feedback.labelstudio.journal import Project
    from feedback.store import FeedbackStore

app = typer.Typer(help="What people say: Label Studio, agreement, files.", no_args_is_help=True)
out, err = Console(), Console(stderr=True)

DATA = Path(".label-studio")
Store = Annotated[str, typer.Option("--store", help="The feedback store's URL.")]
STORE = "sqlite:///feedback.db"
Url = Annotated[str | None, typer.Option("--url", help="The server; default: the one served here.")]
Data = Annotated[Path, typer.Option("--data", help="Folder of the server that `serve` started.")]
Name = Annotated[str | None, typer.Argument(help="The project; default: all of them.")]


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
    from feedback.store import FeedbackStore

    with FeedbackStore(store, create=False) as opened:
        table = Table("project", "kind", "tasks", "labels", "skips", "quarantined", "read until")
        reasons: Counter[str] = Counter()
        for project in known_projects(opened, name):
            journal = Journal(opened, project)
            kinds = Counter(event["kind"] for event in journal.annotations().values())
            aside = journal.quarantined()
            reasons.update(entry["reason"] for entry in aside)
            seen = journal.seen_until()
            table.add_row(
                title(project),
                project.kind,
                str(len(journal.tasks())),
                str(kinds["annotation"]),
                str(kinds["skip"]),
                str(len(aside)),
                f"{seen:%Y-%m-%d %H:%M:%S}" if seen else "never",
            )
            if show_config:
                out.print(project.config, markup=False, highlight=False)
        out.print(table)
        for reason, count in reasons.most_common():
            out.print(f"set aside {count}: {reason}", markup=False, highlight=False)


@app.command()
def agreement(store: Store = STORE) -> None:
    """How far annotators agree on pairs, and how far each can be relied on."""
    from feedback.quality.summary import agreement_summary
    from feedback.store import FeedbackStore

    with FeedbackStore(store, create=False) as opened:
        found = agreement_summary(opened.comparisons())
    out.print(
        f"{found.judgements} judgements of {found.pairs} pairs by {len(found.annotators)} people; "
        f"{found.overlapping} pairs judged by two or more",
        highlight=False,
    )
    table = Table("measure", "value", "95% interval")
    if found.same_side is not None:
        same = found.same_side
        table.add_row("same side, ties apart", f"{same.rate:.3f}", _interval(vars(same)))
    for label, one in (
        ("Krippendorff's alpha, nominal", found.alpha_nominal),
        ("Krippendorff's alpha, ordinal", found.alpha_ordinal),
        ("Fleiss' kappa", found.fleiss),
        *((f"Cohen's kappa, {a} and {b}", one) for (a, b), one in found.cohen.items()),
    ):
        value = "–" if one.value is None else f"{one.value:.3f}"
        table.add_row(label, value, one.note or _interval(vars(one)))
    for person, share in (found.reliability or {}).items():
        table.add_row(f"reliability of {person} (Dawid-Skene)", f"{share:.3f}", "")
    out.print(table)


@app.command("annotators")
def show_annotators(store: Store = STORE) -> None:
    """What each annotator's labels show: agreement, position and length bias, speed, flags."""
    from feedback.quality.annotators import annotator_quality
    from feedback.store import FeedbackStore

    with FeedbackStore(store, create=False) as opened:
        records = annotator_quality(opened.comparisons())
    table = Table(
        "annotator", "labels", "ties", "chose first", "chose longer", "with majority", "s", "flags"
    )
    for one in records:
        rates = (one.ties, one.first, one.longer, one.agreement)
        shown = ["–" if rate is None else f"{rate.rate:.2f}" for rate in rates]
        seconds = "–" if one.lead_time is None else f"{one.lead_time:.0f}"
        table.add_row(one.annotator, str(one.n), *shown, seconds, "; ".join(one.flags))
    out.print(table)


@app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="JSONL, JSON or CSV, also gzipped.")],
    format: Annotated[str, typer.Option(help="auto, or a format by name.")] = "auto",
    quarantine: Annotated[bool, typer.Option(help="Leave bad rows out, and say so.")] = False,
    store: Store = STORE,
) -> None:
    """Read judgements from a file (Label Studio, HH, PandaLM, TRL, CSV) into the store."""
    from feedback.formats import FORMATS, read_feedback
    from feedback.store import FeedbackStore

    if format != "auto" and format not in FORMATS:
        known = ", ".join(FORMATS)
        raise ConfigError([Problem("--format", f"{format!r} is unknown.", f"use {known}.")])
    found = read_feedback(
        file, cast("Format", format), bad_rows="quarantine" if quarantine else "strict"
    )
    with FeedbackStore(store) as opened:
        before = opened.counts().events
        opened.add_judgements(
            [read.judgement for read in found.reads],
            annotations=[read.annotation for read in found.reads],
            raws=[read.raw for read in found.reads],
        )
        new = opened.counts().events - before
    out.print(f"{file}: {len(found.reads)} judgements, {new} of them new", highlight=False)
    for row in found.bad:
        err.print(str(row), markup=False, highlight=False)


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="JSONL or CSV, also gzipped.")],
    store: Store = STORE,
) -> None:
    """Write every judgement that stands to a file that `import` reads back."""
    from feedback.formats import write_feedback
    from feedback.store import FeedbackStore

    with FeedbackStore(store, create=False) as opened:
        count = write_feedback(opened.judgements(), file)
    out.print(f"{file}: {count} judgements", highlight=False)


def connect(url: str | None, data: Path) -> LabelStudioClient:
    """The server named, or the one that `serve` runs on the folder; its token is checked.

    Raises:
        ConfigError: neither a served folder nor a URL with a token.
        LabelStudioError: no server there, or the token is refused.
    """
    import json

    from feedback.labelstudio.client import LabelStudioClient

    token = os.environ.get("LABEL_STUDIO_API_KEY")
    login = data / "login.json"
    if login.is_file() and not (url and token):
        kept = json.loads(login.read_text(encoding="utf-8"))
        url, token = url or kept["url"], token or kept["token"]
    problems = []
    if not url:
        fix = "run `align feedback serve`, or give the server's address."
        problems.append(Problem("--url", f"is not set, and {login} does not exist.", fix))
    if not token:
        fix = "set it to the token of the server's Account & Settings page."
        problems.append(Problem("LABEL_STUDIO_API_KEY", "is not set.", fix))
    if problems:
        raise ConfigError(problems)
    client = LabelStudioClient(str(url), str(token))
    client.check()
    return client


def chosen(
    store: FeedbackStore, name: str | None, url: str | None, data: Path
) -> list[tuple[LabelStudioClient, Project]]:
    """The projects named, each with a client of its server."""
    from feedback.labelstudio.projects import known_projects

    client = connect(url, data)
    return [
        (client, project)
        for project in known_projects(store, name)
        if name or project.server == client.url
    ]


def title(project: Project) -> str:
    """A project as messages name it."""
    return f"{project.name} ({project.annotator})" if project.annotator else project.name


def _pulled(report: dict[str, Any]) -> str:
    names = ("new", "updated", "skipped", "deleted", "quarantined")
    said = ", ".join(f"{report[name]} {name}" for name in names)
    return f"{said}; {report['kept']} of {report['server']} on the server"


def _interval(found: dict[str, Any]) -> str:
    low, high = found["low"], found["high"]
    return "–" if low is None or high is None else f"[{low:.3f}, {high:.3f}]"
