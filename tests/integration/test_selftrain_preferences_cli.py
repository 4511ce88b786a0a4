"""`align selftrain` on tiny reward models, and what kills cost either kind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from feedback.schema import Comparison
from feedback.store import FeedbackStore
from reward.model import RewardModel

pytestmark = [pytest.mark.integration, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
ENDS = {"max_new_tokens": 40}  # a model of random weights seldom ends sooner
ANY = {"rule": "not_worse", "tolerance": 1e6}  # what a model of two steps passes


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_preferences_wait_for_the_audit_and_keep_people_s_words_apart(selftrain, cli, tmp_path):
    arguments = selftrain("preferences", audit={"share": 0.3, "wait": True})
    dry = cli(*arguments, "--dry-run")
    assert dry.code == 0, dry.text
    result = cli(*arguments)
    assert result.code == 0, result.text
    run = tmp_path / "run"
    assert record(run)["status"] == "waiting"
    first = run / "rounds" / "001"
    harvest = json.loads((first / "harvest.json").read_text())
    labels = rows(first / "pseudo.jsonl")
    trained = rows(first / "train.jsonl")
    assert harvest["kept"] == len(labels) > 0
    assert {row["source"] for row in labels} == {"pseudo-label"}
    people = [row for row in trained if row.get("source") != "pseudo-label"]
    machine = [row for row in trained if row.get("source") == "pseudo-label"]
    assert len(machine) == len(labels)
    assert sum(row["weight"] for row in machine) <= 0.5 * len(people) + 1e-9
    assert all(row["p"] > 0.55 for row in machine)
    asked = json.loads((first / "audit.json").read_text())
    assert len(asked["labels"]) == -(-3 * len(labels) // 10)
    page = tmp_path / "report.html"
    assert cli("report", run, "-o", page).code == 0
    assert "Waiting for people" in page.read_text()
    with FeedbackStore(f"sqlite:///{run / 'feedback.db'}") as store:
        assert store.counts().events == 0  # questions, and no answer of a machine
        items = store.items("pair")
        assert {item.round for item in items} == {asked["round"]}
        for item in items:
            helpful = "a" if item.responses[0].startswith("It") else "b"
            said = Comparison(item.prompt, *item.responses, helpful, "ann", pair=item.id)
            store.add_comparison(said)
    result = cli(*arguments, "--resume")
    assert result.code == 0, result.text
    found = record(run)
    assert found["status"] == "completed", result.text
    second = run / "rounds" / "002"
    checked = json.loads((second / "checked.json").read_text())
    assert checked["audits"][0]["answered"] == len(items)
    assert len(checked["rows"]) == len(items)
    if not checked["fails"]:
        learnt = rows(second / "train.jsonl")
        audited = [row for row in learnt if row.get("source") == "audit"]
        assert len(audited) == len(items)
        assert all(row["chosen"].startswith("It") and row["weight"] == 1.0 for row in audited)
        again = {row["pair"] for row in learnt if row.get("source") == "pseudo-label"}
        assert not again & {row["pair"] for row in audited}
    in_use = found["results"]["in_use"]
    for member in range(2):
        folder = run / "rounds" / f"{in_use:03d}" / "fit" / f"member-{member}" / "model"
        assert len(RewardModel.load(folder).score(["Where?\n"], ["There."])) == 1
    assert (run / "model" / "config.json").is_file()


def test_a_promoted_teacher_is_averaged(selftrain, cli, tmp_path):
    result = cli(
        *selftrain(
            "preferences", gate=ANY, audit={"share": 0.0}, pseudo={"ema": 0.25, "members": 1}
        )
    )
    assert result.code == 0, result.text
    run = tmp_path / "run"
    found = [json.loads(f.read_text()) for f in sorted(run.glob("rounds/*/measure.json"))]
    promoted = [one for one in found[1:] if one["promoted"]]
    assert promoted, result.text
    assert promoted[0]["teacher"] == [0.25, 0.75]
    teacher = run / "rounds" / f"{promoted[-1]['round']:03d}" / "teacher" / "member-0"
    assert (teacher / "model.safetensors").is_file()


@pytest.mark.timeout(600)
def test_a_killed_run_ends_as_if_it_had_not_been(selftrain, cli, tmp_path, monkeypatch):
    trainer = {"max_steps": 6, "save_steps": 1}
    given: dict[str, Any] = {"rollout": ENDS, "gate": ANY, "trainer": trainer}
    given["loop"] = {"rounds": 1, "keep": "all"}
    arguments = selftrain("raft", **given)
    assert cli(*arguments, f"run.dir={tmp_path / 'straight'}").code == 0
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "align.cli", *arguments, f"run.dir={killed}"]
    log = (tmp_path / "killed.log").open("ab")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    checkpoints = killed / "rounds" / "001" / "fit" / "checkpoints"
    limit = time.monotonic() + 300
    while not any(checkpoints.glob("checkpoint-*/MANIFEST.json")):
        assert process.poll() is None, (tmp_path / "killed.log").read_text()[-2000:]
        assert time.monotonic() < limit
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert record(killed)["status"] == "running"
    result = cli(*arguments, f"run.dir={killed}", "--resume")
    assert result.code == 0, result.text
    assert "resuming from" in result.text
    straight, other = (
        load_file(folder / "rounds" / "001" / "fit" / "model" / "model.safetensors")
        for folder in (tmp_path / "straight", killed)
    )
    assert all(torch.equal(straight[name], other[name]) for name in straight)
    for name in ("samples.jsonl", "train.jsonl"):
        both = [tmp_path / run / "rounds" / "001" / name for run in ("straight", "killed")]
        assert both[0].read_text() == both[1].read_text()


class Killed(BaseException):
    """What kill -9 is to a process: nothing handles it."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("at", [4, 9, 14, 22])
def test_a_kill_between_any_two_files_loses_nothing(at, selftrain, cli, tmp_path, monkeypatch):
    """The `at`-th file that comes into place is the last thing that the process does."""
    arguments = selftrain("raft", rollout=ENDS, gate=ANY, loop={"rounds": 1, "keep": "all"})
    real, count = Path.replace, iter(range(1, 10_000))

    def dying(self, target):
        result = real(self, target)
        if next(count) == at:
            raise Killed
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        with pytest.raises(Killed):
            cli(*arguments)
    result = cli(*arguments, "--resume")
    assert result.code == 0, result.text
    measured = [
        json.loads(f.read_text()) for f in sorted((tmp_path / "run").glob("rounds/*/m*.json"))
    ]
    assert [one["round"] for one in measured] == [0, 1]
    assert (tmp_path / "run" / "model" / "config.json").is_file()
