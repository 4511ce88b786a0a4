"""Who compares the quickstart's answers.

Simulated people, the same people at a real Label Studio, or you. A judge fills the store with
judgements, and knows nothing else of the loop.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from align.errors import ConfigError, Problem
from align.quickstart.annotators import annotators
from align.quickstart.gold import gold_score
from align.quickstart.person import MARK, asking_order, lacking
from align.quickstart.world import World
from align.stages.common import console
from feedback.errors import LabelStudioError
from feedback.ports import free_port
from feedback.schema import Item, Pair
from feedback.simulate import SimulatedAnnotator
from feedback.store import FeedbackStore

if TYPE_CHECKING:
    from feedback.labelstudio.client import LabelStudioClient
    from feedback.labelstudio.journal import Project
    from feedback.labelstudio.server import Login

Judge = Callable[[FeedbackStore, World, Path], None]

SHARED = 150  # pairs that every annotator at Label Studio judges: agreement is measured on them
OWN = 500  # and pairs that one annotator alone judges
ENOUGH = 60  # labels that --judge human waits for
LOOK_SECONDS = 5.0
SIMULATED = "@example.org"  # behind the names of simulated annotators at Label Studio


def simulated_judge(store: FeedbackStore, world: World, folder: Path) -> None:
    """Every simulated annotator judges every pair, through the noise of their own."""
    pairs = store.pairs()
    store.add_comparisons(
        [
            annotator.judge(pair, *gold_of(pair))
            for annotator in annotators(world.seed)
            for pair in pairs
        ]
    )


def label_studio_judge(
    store: FeedbackStore, world: World, folder: Path, *, shared: int = SHARED, own: int = OWN
) -> None:
    """The simulated annotators answer at a real server, each in a project of their own.

    They take tasks as the page does, judge what is shown, and submit what the page would submit.

    Args:
        store: holds the pairs, gets the judgements.
        world: whose annotators.
        folder: the server's data are kept in it.
        shared: how many pairs everybody judges.
        own: how many further pairs each judges alone.

    Raises:
        LabelStudioError: the server fails, or a pull does not account for every label.
    """
    from feedback.labelstudio.projects import create_projects
    from feedback.labelstudio.pull import pull
    from feedback.labelstudio.push import push
    from feedback.labelstudio.templates import Template

    people = annotators(world.seed)
    items = store.items("pair")
    # `run_quickstart` refuses a folder whose server a person labelled at.
    shutil.rmtree(folder / "label-studio", ignore_errors=True)  # of an earlier run, like the store
    with serving(folder) as (client, login):
        projects = create_projects(
            client,
            store,
            "quickstart",
            Template("pair"),
            annotators=[person.name + SIMULATED for person in people],
        )
        for place, project in enumerate(projects):
            start = shared + place * own
            push(client, store, project, [*items[:shared], *items[start : start + own]])
        console.print(f"{len(people)} annotators label at {login.url}", highlight=False)
        invitation = client.invitation()
        with ThreadPoolExecutor(len(people)) as desks:
            work = [
                desks.submit(annotate, person, project, items, invitation)
                for person, project in zip(people, projects, strict=True)
            ]
            said = sum(done.result() for done in work)
        for project in projects:
            report = pull(client, store, project)
            if not report.complete:
                raise LabelStudioError(
                    f"{project.name} ({project.annotator}): the server counts {report.server} "
                    f"labels, the store {report.kept}."
                )
        console.print(f"{said} labels submitted, {store.counts().comparisons} in the store")


def annotate(
    person: SimulatedAnnotator, project: Project, items: list[Item], invitation: str
) -> int:
    """Sign up, label every task handed out, and leave; how many labels."""
    from feedback.labelstudio.session import AnnotatorSession, pair_result

    known = {item.id: item for item in items}
    count = 0
    with AnnotatorSession(project.server, project.annotator, secrets.token_urlsafe(12)) as desk:
        desk.join(invitation)
        for task in desk.tasks(project.project):
            shown = task["data"]
            item = known[shown["key"]]
            facts = item.columns["facts"]
            left, right = shown["answer_1"], shown["answer_2"]
            utilities = gold_score([item.prompt] * 2, [left, right], facts=[facts] * 2)
            # The annotator sees two answers and no more: a pair as it is on the page.
            page = Pair(item.id, item.prompt, left, right)
            verdict = person.judge(page, *utilities, swapped=False)
            level = "tie" if verdict.label == "tie" else f"{verdict.label}{verdict.strength}"
            desk.submit(task["id"], pair_result(level), lead_time=reading_seconds(left, right))
            count += 1
    return count


def human_judge(store: FeedbackStore, world: World, folder: Path, *, enough: int = ENOUGH) -> None:
    """You judge, in Label Studio; goes on when `enough` labels are in the store.

    What was labelled before an interruption is still there, and counts. Whoever skips many tasks
    gets more of them.

    Raises:
        ConfigError: there are fewer pairs than labels asked for.
        LabelStudioError: the server fails, or every pair is done and the labels do not suffice.
    """
    from feedback.labelstudio.client import DoubtfulError
    from feedback.labelstudio.journal import projects
    from feedback.labelstudio.projects import create_projects
    from feedback.labelstudio.pull import pull
    from feedback.labelstudio.push import push
    from feedback.labelstudio.templates import Template

    items = asking_order(store.items("pair"))
    if enough > len(items):
        what = f"is {enough}, and there are {len(items)} pairs to judge."
        raise ConfigError([Problem("--labels", what, f"give {len(items)} or fewer.")])
    asked = items[: 2 * enough]
    (folder / "label-studio").mkdir(parents=True, exist_ok=True)
    (folder / "label-studio" / MARK).touch()
    with serving(folder) as (client, login):
        known = [made for made in projects(store, "quickstart") if made.server == client.url]
        (project,) = known or create_projects(client, store, "quickstart", Template("pair"))
        push(client, store, project, asked)
        console.rule("your turn")
        console.print(f"open {login.url}/projects/{project.project}/data", highlight=False)
        console.print(
            f"log in as {login.email}, password {login.password}; press Label All Tasks. "
            f"The quickstart goes on after {enough} labels.",
            markup=False,
            highlight=False,
        )
        shown = ""
        while True:
            try:
                pull(client, store, project)
            except DoubtfulError as error:  # busy; whatever it has, it has later too
                console.print(str(error), markup=False, highlight=False)
            said = store.comparisons()
            missing = lacking(said, enough)
            line = f"{len(said)} of {enough} labels"
            if missing and len(said) >= enough:
                line += f"; {missing} are needed"
            if line != shown:
                console.print(line, highlight=False)
            if not missing:
                return
            shown = line
            if {item.id for item in asked} <= {one.item.id for one in store.standing()}:
                if len(asked) == len(items):
                    again = f"align feedback serve --data {folder / 'label-studio'}"
                    raise LabelStudioError(
                        f"all {len(items)} pairs are labelled or skipped, and {missing} are "
                        "needed. What you labelled is kept. Fix: give fewer --labels, or label "
                        f"skipped tasks at the server: {again}."
                    )
                asked = items[: len(asked) + enough]
                push(client, store, project, asked)
            time.sleep(LOOK_SECONDS)


JUDGES: dict[str, Judge] = {
    "simulated": simulated_judge,
    "label-studio": label_studio_judge,
    "human": human_judge,
}


def human_labels(path: Path) -> int:
    """How many judgements of a store that a quickstart left were made by a person."""
    if not path.is_file():
        return 0
    simulated = {person.name for person in annotators()}
    with FeedbackStore(f"sqlite:///{path}", create=False) as store:
        made = [one.annotator for one in store.comparisons()]
    return sum(name.removesuffix(SIMULATED) not in simulated for name in made)


@contextmanager
def serving(folder: Path) -> Iterator[tuple[LabelStudioClient, Login]]:
    """A server with its data in the folder, for as long as the context lasts.

    Its port is a free one, and the same when the folder is served again: the store knows projects
    by their server's address.
    """
    from feedback.labelstudio.client import LabelStudioClient
    from feedback.labelstudio.server import LabelStudioServer

    data = folder / "label-studio"
    data.mkdir(parents=True, exist_ok=True)
    port = data / "port"
    if not port.is_file():
        port.write_text(str(free_port()), encoding="utf-8")
    server = LabelStudioServer(data, int(port.read_text(encoding="utf-8")))
    login = server.start(lambda line: console.print(line, highlight=False))
    try:
        yield LabelStudioClient(login.url, login.token), login
    finally:
        server.stop()


def gold_of(pair: Pair) -> tuple[float, float]:
    """Gold scores of a pair's answers: what annotators perceive, noisily."""
    facts = pair.columns["facts"]
    a, b = gold_score(
        [pair.prompt, pair.prompt], [pair.response_a, pair.response_b], facts=[facts, facts]
    )
    return a, b


def reading_seconds(*answers: str) -> float:
    """How long a person reads, at four words a second."""
    return 2.0 + sum(len(answer.split()) for answer in answers) / 4
