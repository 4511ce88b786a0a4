"""`align active CONFIG` with people at a real server: asked, pulled, trained on, asked again.

The loop's own rounds are in test_active_round.py; here the command itself runs, with a tiny model.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from align.cli import app
from feedback.labelstudio.journal import projects
from feedback.labelstudio.session import AnnotatorSession, pair_result
from feedback.store import FeedbackStore

# The first test may have to install the server.
pytestmark = [pytest.mark.labelstudio, pytest.mark.timeout(1800)]

BATCH = 6


@pytest.fixture
def active(server, policy_dir, tmp_path, monkeypatch):
    """`active(*options)`: the command on pairs without a label; its exit status is 0."""
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")  # a stage sets it; restored afterwards
    rows = [
        {"prompt": f"Where is {n}? ", "response_a": f"It is there, {n}.", "response_b": f"No {n}!"}
        for n in range(30)
    ]
    pool = tmp_path / "pairs.jsonl"
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections: dict[str, Any] = {
        "run": {"dir": str(tmp_path / "run"), "seed": 3},
        "model": {"path": str(policy_dir)},
        "pool": {"source": "pairs", "path": str(pool)},
        "acquisition": {"batch": BATCH, "holdout": 0.4, "holdout_share": 0.3, "similarity": None},
        "annotators": {
            "kind": "label-studio",
            "project": f"cli {secrets.token_hex(4)}",
            "url": server.login.url,
            "data": str(server.folder),
        },
        "stopping": {"rounds": 3},
        "trainer": {"per_device_train_batch_size": 2, "logging_steps": 1},
        "normalisation": {"prompts": 4, "max_new_tokens": 4},
        "tracking": {"report_to": ["none"]},
    }
    file = tmp_path / "active.yaml"
    file.write_text(yaml.safe_dump(sections))

    def call(*options: str) -> dict[str, Any]:
        result = CliRunner().invoke(app, ["active", str(file), *options])
        if result.exception is not None:
            raise result.exception
        record: dict[str, Any] = json.loads((tmp_path / "run" / "run.json").read_text())
        return record

    return call


def choice_of(run: Path, number: int) -> list[dict[str, Any]]:
    """A round's questions, in the order of its queue."""
    rows: list[dict[str, Any]] = json.loads(
        (run / "rounds" / f"{number:03d}" / "choice.json").read_text()
    )["rows"]
    return rows


def asked(run: Path, number: int) -> list[str]:
    """Their keys."""
    return [row["id"] for row in choice_of(run, number)]


def answer(person: AnnotatorSession, project: int) -> list[str]:
    """Answer what the server hands out: to say where is better; the questions' keys, in order."""
    keys = []
    for task in person.tasks(project):
        shown = task["data"]
        keys.append(shown["key"])
        level = "a1" if shown["answer_1"].startswith("It is") else "b1"
        person.submit(task["id"], pair_result(level), lead_time=12.0)
    return keys


def test_rounds_by_the_command(active, client, tmp_path):
    run = tmp_path / "run"
    found = active()
    assert found["status"] == "waiting"
    assert f"0 of {BATCH} questions have an answer" in found["results"]["waiting"]
    with FeedbackStore(f"sqlite:///{run / 'feedback.db'}") as store:
        (project,) = projects(store)
    assert f"{client.url}/projects/{project.project}/data" in found["results"]["waiting"]
    assert active("--resume")["status"] == "waiting"  # nobody has said anything
    assert not (run / "rounds" / "002").exists()

    with AnnotatorSession(
        client.url, f"{secrets.token_hex(4)}@example.org", "a-password-1"
    ) as person:
        person.join(client.invitation())
        first = answer(person, project.project)
        assert first == asked(run, 1)
        found = active("--resume")  # pulls, trains, measures, and asks the second round
        assert found["status"] == "waiting"
        assert found["results"]["answered"] == BATCH
        with FeedbackStore(f"sqlite:///{run / 'feedback.db'}") as store:
            said = store.comparisons()
        assert {one.pair for one in said} == set(first)
        assert {one.annotator for one in said} == {person.email}
        second = asked(run, 2)
        assert not set(first) & set(second)
        assert answer(person, project.project) == second
        assert active("--resume")["results"]["answered"] == 2 * BATCH

    fit = run / "rounds" / "003" / "fit"
    learnt = [json.loads(line) for line in (fit / "train.jsonl").read_text().splitlines()]
    held = sum(row["held"] for number in (1, 2) for row in choice_of(run, number))
    assert held
    assert len(learnt) == 2 * BATCH - held  # the holdout's answers are measured on
    for row in learnt:  # whatever side each was shown on
        assert row["chosen"].startswith("It is")
        assert row["rejected"].startswith("No")
    trained = json.loads((fit / "reward" / "run.json").read_text())
    assert trained["status"] == "completed"
    assert trained["results"]["steps"] == -(-len(learnt) // 2)
    measured = json.loads((run / "rounds" / "003" / "measure.json").read_text())
    assert measured["accuracy"]["n"] == held
    assert measured["minutes"] == pytest.approx(2 * BATCH * 12 / 60)
    assert len(asked(run, 3)) == BATCH
