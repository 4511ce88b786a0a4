"""What the feedback commands share: their options, the server they talk to, their words."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

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
