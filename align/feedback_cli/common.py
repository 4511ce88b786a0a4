"""What the feedback commands share: their options, the server they talk to, their words."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from align.errors import ConfigError, Problem

if TYPE_CHECKING:
    from feedback.labelstudio.client import LabelStudioClient
    from feedback.labelstudio.journal import Project
    from feedback.store import FeedbackStore

out, err = Console(), Console(stderr=True)

DATA = Path(".label-studio")
STORE = "sqlite:///feedback.db"
Store = Annotated[str, typer.Option("--store", help="The feedback store's URL.")]
Url = Annotated[str | None, typer.Option("--url", help="The server; default: the one served here.")]
Data = Annotated[Path, typer.Option("--data", help="Folder of the server that `serve` started.")]
Name = Annotated[str | None, typer.Argument(help="The project; default: all of them.")]


def connect(url: str | None, data: Path) -> LabelStudioClient:
    """The server named, or the one that `serve` runs on the folder; its token is checked.

    A token goes only where it belongs: the served folder's to the served address, and
    LABEL_STUDIO_API_KEY to the address that `--url` gives.

    Raises:
        ConfigError: neither a served folder nor a URL with a token.
        LabelStudioError: no server there, or the token is refused.
    """
    from feedback.labelstudio.client import LabelStudioClient

    token = os.environ.get("LABEL_STUDIO_API_KEY")
    login = data / "login.json"
    served = json.loads(login.read_text(encoding="utf-8")) if login.is_file() else None
    if served and (url is None or place(url) == place(served["url"])):
        # The recorded spelling, since that is what the token was made for.
        url, token = served["url"], served["token"]
    problems = []
    if not url:
        fix = "run `align feedback serve`, or give the server's address."
        problems.append(Problem("--url", f"is not set, and {login} does not exist.", fix))
    if not token:
        fix = "set it to the token of the server's Account & Settings page."
        what = f"is not set; the login in {data} is for {served['url']}." if served else None
        problems.append(Problem("LABEL_STUDIO_API_KEY", what or "is not set.", fix))
    if problems:
        raise ConfigError(problems)
    client = LabelStudioClient(str(url), str(token))
    client.check()
    return client


def chosen(
    store: FeedbackStore, name: str | None, url: str | None, data: Path
) -> list[tuple[LabelStudioClient, Project]]:
    """The projects named, or all on the server, each with a client of it.

    Raises:
        LabelStudioError: no such project, or without a name none on this server.
    """
    from feedback.errors import LabelStudioError
    from feedback.labelstudio.projects import known_projects

    client = connect(url, data)
    known = known_projects(store, name)
    here = [project for project in known if name or place(project.server) == place(client.url)]
    if not here:
        servers = ", ".join(sorted({project.server for project in known}))
        raise LabelStudioError(
            f"the store knows no project on {client.url}, only on {servers}. Fix: give that server "
            "by --url, or name the project if its server has moved."
        )
    return [(client, project) for project in here]


def place(url: str) -> tuple[str, int | None]:
    """Host and port of an address; localhost is 127.0.0.1, as Label Studio listens on IPv4."""
    try:
        parts = urlsplit(url if "//" in url else f"//{url}")
        host, port = parts.hostname or "", parts.port
    except ValueError:  # no port number
        return url, None
    return (
        "127.0.0.1" if host == "localhost" else host,
        port or {"http": 80, "https": 443}.get(parts.scheme),
    )


def say(text: str, console: Console = out) -> None:
    """Print text as it is: names of projects and people may look like Rich's markup."""
    # Terminals wrap lines themselves, and addresses stay in one piece.
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def table_of(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table of cells as they are, see `say`."""
    table = Table(*header)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def title(project: Project) -> str:
    """A project as messages name it."""
    return f"{project.name} ({project.annotator})" if project.annotator else project.name
