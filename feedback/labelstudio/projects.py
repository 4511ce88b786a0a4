"""Projects: made from a template, remembered in the store, checked for edits before every use."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from feedback.errors import LabelStudioError
from feedback.labelstudio.client import LabelStudioClient
from feedback.labelstudio.journal import Project, Role, add_project, projects
from feedback.labelstudio.templates import GUIDELINES, Template, config_hash
from feedback.locks import exclusive
from feedback.schema import Kind
from feedback.store import FeedbackStore

COUNTS = {  # ours: the server's
    "tasks": "task_number",
    "annotations": "total_annotations_number",
    "skips": "skipped_annotations_number",
}


def create_projects(
    client: LabelStudioClient,
    store: FeedbackStore,
    name: str,
    template: Template,
    *,
    annotators: Sequence[str] = (),
    overlap: int = 1,
    guidelines: str = GUIDELINES,
    role: Role = "labels",
) -> list[Project]:
    """Create a project, or one for each annotator who has none of this name yet.

    The community edition hides nobody's labels inside a project, so separate projects are the only
    blindness there is.

    Args:
        client: of the server.
        store: remembers the projects under `name`.
        name: what the user calls it; 3 characters at least, as the server demands.
        template: the kind of item and how to ask.
        annotators: e-mail addresses, each with a project; empty: one project that all share.
        overlap: people per task in a shared project.
        guidelines: HTML shown before the first task.
        role: what the labels are for.

    Raises:
        LabelStudioError: the name is taken or too short, or the server refuses; projects made until
            then stay, and the same call goes on.
        StoreError: another process is creating it.
    """
    if len(name.strip()) < 3:
        raise LabelStudioError(f"project name {name!r}: needs 3 characters at least.")
    if annotators and overlap > 1:
        raise LabelStudioError(
            "annotators and overlap exclude each other: with a project each, every one of "
            f"{len(annotators)} annotators gets every task."
        )
    with exclusive(store, f"project {name}"):
        people = _missing(projects(store, name), name, template.kind, annotators)
        return [
            _create(client, store, name, template, person, overlap, guidelines, role)
            for person in people
        ]


def _missing(
    known: Sequence[Project], name: str, kind: Kind, annotators: Sequence[str]
) -> list[str]:
    """Who has no project of this name yet; "" is one that all share.

    Raises:
        LabelStudioError: there is one that all share, or everybody has one.
    """
    if not known:
        return list(dict.fromkeys(annotators)) or [""]
    have = {project.annotator for project in known}
    missing = [person for person in dict.fromkeys(annotators) if person not in have]
    if "" in have or not missing or known[0].kind != kind:
        what = f"of {known[0].kind}s" if "" in have else f"for {', '.join(sorted(have))}"
        raise LabelStudioError(
            f"project name {name!r}: the store has one already, {what}. Fix: choose another name, "
            "push to that one, or name annotators who are new."
        )
    return missing


def _create(
    client: LabelStudioClient,
    store: FeedbackStore,
    name: str,
    template: Template,
    person: str,
    overlap: int,
    guidelines: str,
    role: Role,
) -> Project:
    """Create one project, for a person or for all, and remember it."""
    answer = client.create_project(
        title=f"{name} · {person}"[:50] if person else name[:50],
        label_config=_marked(template.config()),
        expert_instruction=guidelines,
        show_instruction=bool(guidelines),
        show_skip_button=True,
        enable_empty_annotation=False,
        maximum_annotations=1 if person else overlap,
        sampling="Sequential sampling",
        show_collab_predictions=False,
    )
    project = Project(
        client.url,
        answer["id"],
        name,
        template.kind,
        person,
        answer["label_config"],
        config_hash(answer["label_config"]),
        role,
    )
    add_project(store, project)
    return project


def _marked(config: str) -> str:
    """The configuration with a mark of its own, so that no other project's hash equals it.

    Servers are set up anew and number their projects from 1 again; templates are all alike.
    """
    first = 'className="align-page'
    assert first in config
    return config.replace(first, f"{first} align-{secrets.token_hex(6)}", 1)


def known_projects(store: FeedbackStore, name: str | None = None) -> list[Project]:
    """The store's projects of that name; without a name, all.

    Raises:
        LabelStudioError: there is none.
    """
    found = projects(store, name)
    if not found:
        known = ", ".join(sorted({project.name for project in projects(store)})) or "none"
        what = f"no project {name!r}" if name else "no project yet"
        raise LabelStudioError(f"{what} (known: {known}). Fix: align feedback init NAME.")
    return found


def check_config(client: LabelStudioClient, project: Project) -> dict[str, int]:
    """Refuse a project whose labelling configuration was edited.

    Its labels would mean something else than the store believes.

    Returns:
        The server's counts: `tasks`, `annotations`, `skips`.

    Raises:
        LabelStudioError: the configuration differs, or the project is gone.
    """
    now = client.project(project.project, fields=("label_config", *COUNTS.values()))
    if config_hash(now["label_config"]) != project.config_hash:
        raise LabelStudioError(
            f"Label Studio project {project.project} ({project.name}): its labelling configuration "
            "was edited after it was created, so labels cannot be told apart, or another project "
            "has this number now. Fix: put the old configuration back (align feedback status "
            "--show-config prints it), check the server's address, or begin a new project."
        )
    return {name: int(now[theirs]) for name, theirs in COUNTS.items()}
