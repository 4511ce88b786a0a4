"""Projects: made from a template, remembered in the store, checked for edits before every use."""

from __future__ import annotations

from collections.abc import Sequence

from feedback.errors import LabelStudioError
from feedback.labelstudio.client import LabelStudioClient
from feedback.labelstudio.journal import Project, Role, add_project, projects
from feedback.labelstudio.templates import GUIDELINES, Template, config_hash
from feedback.store import FeedbackStore


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
    """Create a project, or one for each annotator.

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
        LabelStudioError: the name is taken or too short, or the server refuses.
    """
    if len(name.strip()) < 3:
        raise LabelStudioError(f"project name {name!r}: needs 3 characters at least.")
    if projects(store, name):
        raise LabelStudioError(
            f"project name {name!r}: the store has one already. Fix: choose another name, or push "
            "to that one."
        )
    if annotators and overlap > 1:
        raise LabelStudioError(
            "annotators and overlap exclude each other: with a project each, every one of "
            f"{len(annotators)} annotators gets every task."
        )
    made = []
    for person in list(annotators) or [""]:
        answer = client.create_project(
            title=f"{name} · {person}"[:50] if person else name[:50],
            label_config=template.config(),
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
        made.append(project)
    return made


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
    now = client.project(project.project)
    if config_hash(now["label_config"]) != project.config_hash:
        raise LabelStudioError(
            f"Label Studio project {project.project} ({project.name}): its labelling configuration "
            "was edited after it was created, so labels cannot be told apart. Fix: put the old one "
            "back (align feedback status --show-config prints it), or begin a new project."
        )
    return {
        "tasks": now["task_number"],
        "annotations": now["total_annotations_number"],
        "skips": now["skipped_annotations_number"],
    }
