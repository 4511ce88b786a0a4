"""Label Studio's desk: a round's questions as tasks, the most telling first; answers by pull.

Each kind of question has a project of its own, made at the first need and found again by its name.
With `emails` everybody has a project of their own and answers everything, but for what a budget
gave to one of them. Nothing here repeats a task: `feedback.labelstudio.push` keeps a journal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from align.active.desks import Question
from feedback.labelstudio.client import DoubtfulError, LabelStudioClient
from feedback.labelstudio.journal import Project, projects
from feedback.labelstudio.order import order_tasks
from feedback.labelstudio.projects import create_projects
from feedback.labelstudio.pull import pull
from feedback.labelstudio.push import push
from feedback.labelstudio.templates import Template
from feedback.schema import Kind
from feedback.store import FeedbackStore

NAMES: dict[Kind, str] = {"pair": "{}", "ranking": "{} rankings"}


@dataclass(frozen=True, eq=False)
class LabelStudioDesk:
    """People at a Label Studio server."""

    store: FeedbackStore
    client: LabelStudioClient
    name: str  # of the project
    overlap: int = 1
    emails: Sequence[str] = field(default_factory=tuple)
    say: Callable[[str], None] = lambda line: None

    @property
    def needed(self) -> int:
        """Answers to each question."""
        return len(self.emails) or self.overlap

    def ask(self, questions: Sequence[Question], round: int) -> str:
        """Send what is not there yet, and order the queue by the questions' scores.

        Raises:
            LabelStudioError: the server fails or a project was edited; ask again later.
        """
        told = []
        for kind in NAMES:
            own = [question for question in questions if question.item.kind == kind]
            for project in self._projects(kind, make=True) if own else ():
                mine = [one for one in own if self._goes_to(one, project)]
                if not mine:
                    continue
                ordered = sorted(mine, key=lambda one: -one.queue)
                report = push(self.client, self.store, project, [one.item for one in ordered])
                scores = {one.item.id: one.queue for one in ordered}
                order_tasks(self.client, self.store, project, scores)
                who = f" ({project.annotator})" if project.annotator else ""
                self.say(f"{project.name}{who}: {report.sent} sent, {report.known} known")
                told.append(f"{self.client.url}/projects/{project.project}/data{who}")
        return f"label at {' and '.join(told)}; invite people by {self.client.invitation()}"

    def collect(self, questions: Sequence[Question], round: int) -> None:
        """Pull every project's answers.

        Raises:
            LabelStudioError: the server fails, or it counts labels that the store has not.
        """
        for kind in NAMES:
            for project in self._projects(kind, make=False):
                report = pull(self.client, self.store, project)
                if not report.complete:
                    raise DoubtfulError(
                        f"{project.name}: the server counts {report.server} labels, the store "
                        f"{report.kept}. Fix: run again with --resume; people may be labelling now."
                    )

    def _projects(self, kind: Kind, *, make: bool) -> list[Project]:
        name = NAMES[kind].format(self.name)
        known = [one for one in projects(self.store, name) if one.server == self.client.url]
        missing = sorted(set(self.emails) - {one.annotator for one in known})
        if make and (missing or not known):
            create_projects(
                self.client,
                self.store,
                name,
                Template(kind),
                annotators=missing,
                overlap=1 if self.emails else self.overlap,
            )
            known = [one for one in projects(self.store, name) if one.server == self.client.url]
        return known

    def _goes_to(self, question: Question, project: Project) -> bool:
        return question.annotator not in self.emails or question.annotator == project.annotator
