"""Label Studio at 20,000 tasks: our push and pull beside the SDK's own straightforward way.

    python -m benchmarks.label_studio --json label_studio.json

On one real server (SQLite), each arm in a process of its own, ours and the peer in turn:

- push: 20,000 tasks by `push`, by the SDK's `import_tasks`, and by one raw POST;
- first pull: 5,000 annotations by `pull` and by the SDK's `exports.as_json`;
- incremental pull: 100 annotations more, by `pull` and by `exports.as_json`: there is no other.

Memory is the client's peak. Times leave out imports and signing in. It takes half an hour.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.paired import Json, compared, machine, peak_megabytes, run_arm, versions
from feedback.labelstudio.client import LabelStudioClient
from feedback.labelstudio.journal import Journal, Project
from feedback.labelstudio.projects import create_projects, known_projects
from feedback.labelstudio.pull import pull
from feedback.labelstudio.push import push
from feedback.labelstudio.server import VERSION, LabelStudioServer, Login
from feedback.labelstudio.session import pair_result
from feedback.labelstudio.tasks import task_data
from feedback.labelstudio.templates import Template
from feedback.ports import free_port
from feedback.records import new_item
from feedback.schema import Item
from feedback.store import FeedbackStore

MODULE = "benchmarks.label_studio"
ANNOTATORS = 4  # threads that label at once
PATIENCE = 1800.0  # seconds: the SDK gives up after 60 by itself
ANSWER = "It depends on what you plan to do with it; here is what I would look at first. " * 4


def make_items(count: int) -> list[Item]:
    """Pairs of answers of some 320 characters each."""
    return [
        new_item(
            "pair",
            [{"role": "user", "content": f"Question {number}: which of them should I take?"}],
            (f"{number}. {ANSWER}", f"{number}. No idea. {ANSWER}"),
            ("sft", "dpo"),
        )
        for number in range(count)
    ]


def main(arguments: list[str]) -> int:
    """Run everything and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--annotations", type=int, default=5_000)
    parser.add_argument("--fresh", type=int, default=100, help="annotations before each pull")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        with LabelStudioServer(place / "server", free_port()) as server:
            figures = measure(place, server.login, given)
    figures |= {
        "peer": "label-studio-sdk",
        "versions": versions(["label-studio-sdk", "sqlalchemy"]) | {"label-studio": VERSION},
        "device": machine(),
    }
    given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    for name in ("push", "push_raw", "first_pull", "incremental_pull"):
        one = figures[name]
        print(
            f"{name}: ours {one['ours_seconds']:.2f} s, {one['ours_peak_mb']:.0f} MB; peer "
            f"{one['peer_seconds']:.2f} s, {one['peer_peak_mb']:.0f} MB; ratio {one['ratio']:.2f}"
        )
    return 0


def measure(place: Path, login: Login, given: argparse.Namespace) -> Json:
    """All arms against one server."""

    def arm(name: str, store: str, **more: int) -> Json:
        options = {"tasks": given.tasks, "folder": place, "store": store} | more
        found = run_arm(MODULE, [name, *(f"--{k}={v}" for k, v in options.items())])
        print(name, store, found, flush=True)
        return found

    small = arm("push", "small.db", tasks=given.tasks // 10)
    pushes: list[dict[str, Json]] = []
    for turn in range(given.rounds):
        # The database grows with every arm, so each comes first, second and last in turn.
        names = ["push", "sdk-push", "raw-push"]
        names = names[turn % 3 :] + names[: turn % 3]
        pushes.append({name: arm(name, f"push{turn}.db") for name in names})
    client = LabelStudioClient(login.url, login.token, timeout=PATIENCE)
    store_file = place / "push0.db"
    with FeedbackStore(f"sqlite:///{store_file}", create=False) as store:
        (project,) = known_projects(store)
        tasks = sorted(Journal(store, project).tasks().values())
    started = time.monotonic()
    annotate(client, tasks[: given.annotations])
    labelled = time.monotonic() - started
    first = []
    for turn in range(given.rounds):
        shutil.copy(store_file, place / f"first{turn}.db")
        first.append(
            (
                arm("pull", f"first{turn}.db", expect=given.annotations),
                arm("export", "", project=project.project, expect=given.annotations),
            )
        )
    incremental, total = [], given.annotations
    for _ in range(given.rounds):
        annotate(client, tasks[total : total + given.fresh])
        total += given.fresh
        incremental.append(
            (
                arm("pull", "first0.db", expect=given.fresh),
                arm("export", "", project=project.project, expect=total),
            )
        )
    main_figures = compared(incremental)
    return main_figures | {
        "tasks": given.tasks,
        "annotations": given.annotations,
        "fresh": given.fresh,
        "annotations_per_second": given.annotations / labelled,
        "push": compared([(one["push"], one["sdk-push"]) for one in pushes]),
        "push_raw": compared([(one["push"], one["raw-push"]) for one in pushes]),
        "push_tenth": small,
        "first_pull": compared(first),
        "incremental_pull": main_figures,
    }


def annotate(client: LabelStudioClient, tasks: list[int]) -> None:
    """A label on each task, from some annotators at once."""

    def one(task: int) -> None:
        client.create_annotation(task, result=pair_result("a1"), lead_time=5.0)

    with ThreadPoolExecutor(ANNOTATORS) as people:
        list(people.map(one, tasks))


def arm(arguments: list[str]) -> int:
    """One measurement; prints its seconds, the process's peak memory and how much it counted."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=sorted(ARMS))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--store", default="")
    parser.add_argument("--tasks", type=int, default=0)
    parser.add_argument("--project", type=int, default=0)
    parser.add_argument("--expect", type=int, default=0)
    given = parser.parse_args(arguments)
    kept = json.loads((given.folder / "server" / "login.json").read_text(encoding="utf-8"))
    seconds, count = ARMS[given.name](given, Login(**kept))
    wanted = given.expect or given.tasks
    if count != wanted:
        raise RuntimeError(f"{given.name}: counted {count}, expected {wanted}")
    print(json.dumps({"seconds": seconds, "peak_mb": peak_megabytes(), "count": count}))
    return 0


def _push(given: argparse.Namespace, login: Login) -> tuple[float, int]:
    client = LabelStudioClient(login.url, login.token, timeout=PATIENCE)
    with FeedbackStore(f"sqlite:///{given.folder / given.store}") as store:
        project = _project(client, store)
        items = make_items(given.tasks)
        started = time.perf_counter()
        report = push(client, store, project, items)
        return time.perf_counter() - started, report.sent


def _sdk_push(given: argparse.Namespace, login: Login) -> tuple[float, int]:
    from label_studio_sdk import LabelStudio

    sdk = LabelStudio(base_url=login.url, api_key=login.token, timeout=PATIENCE)
    number = sdk.projects.create(title="peer", label_config=Template("pair").config()).id
    items = make_items(given.tasks)
    started = time.perf_counter()
    data = [{"data": task_data(item, item.id)} for item in items]
    answer = sdk.projects.import_tasks(id=number, request=data, return_task_ids=True)
    return time.perf_counter() - started, int(answer.task_count or 0)


def _raw_push(given: argparse.Namespace, login: Login) -> tuple[float, int]:
    import httpx

    headers = {"Authorization": f"Token {login.token}"}
    with httpx.Client(base_url=login.url, headers=headers, timeout=PATIENCE) as http:
        made = {"title": "raw", "label_config": Template("pair").config()}
        number = http.post("/api/projects/", json=made).json()["id"]
        items = make_items(given.tasks)
        started = time.perf_counter()
        data = [{"data": task_data(item, item.id)} for item in items]
        answer = http.post(
            f"/api/projects/{number}/import", params={"return_task_ids": "true"}, json=data
        ).raise_for_status()
        return time.perf_counter() - started, len(answer.json()["task_ids"])


def _pull(given: argparse.Namespace, login: Login) -> tuple[float, int]:
    client = LabelStudioClient(login.url, login.token, timeout=PATIENCE)
    client.check()
    with FeedbackStore(f"sqlite:///{given.folder / given.store}", create=False) as store:
        (project,) = known_projects(store)
        started = time.perf_counter()
        report = pull(client, store, project)
        seconds = time.perf_counter() - started
        if not report.complete:
            raise RuntimeError(f"the pull is incomplete: {report}")
        return seconds, report.new


def _export(given: argparse.Namespace, login: Login) -> tuple[float, int]:
    from label_studio_sdk import LabelStudio

    sdk = LabelStudio(base_url=login.url, api_key=login.token, timeout=PATIENCE)
    sdk.users.whoami()
    started = time.perf_counter()
    exported = sdk.projects.exports.as_json(given.project)
    return time.perf_counter() - started, sum(len(task["annotations"]) for task in exported)


def _project(client: LabelStudioClient, store: FeedbackStore) -> Project:
    (project,) = create_projects(client, store, "ours", Template("pair"))
    return project


ARMS: dict[str, Callable[[argparse.Namespace, Login], tuple[float, int]]] = {
    "push": _push,
    "sdk-push": _sdk_push,
    "raw-push": _raw_push,
    "pull": _pull,
    "export": _export,
}

if __name__ == "__main__":
    given = sys.argv[1:]
    raise SystemExit(arm(given[1:]) if given[:1] == ["arm"] else main(given))
