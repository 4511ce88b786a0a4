"""kill -9 of a PPO run at random points: the resumed run is the run that nobody killed.

It goes on from the last checkpoint and repeats nothing before it. Every second run saves after each
step, so that kills meet every phase of an update; the others as `align ppo` does by default.
`PPO_KILLS=20` tries twenty points; two by default.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from align.engine.checkpoint import newest_valid
from align.errors import CheckpointError
from align.run import read_jsonl

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("PPO_KILLS", "2"))
REWARD = """
import time


def vowels(prompts, completions, **columns):
    time.sleep(0.3)  # so that kills meet the rollout as well
    return [float(sum(c[-1]["content"].count(x) for x in "aeiou")) for c in completions]
"""
SETTINGS = [
    "tracking.report_to=[none]",
    "trainer.learning_rate=1e-3",
    "trainer.total_episodes=32",
    "trainer.rollout_batch_size=8",
    "trainer.per_device_train_batch_size=2",
    "trainer.ppo_epochs=2",
    "reward=[{function: 'slow_vowels:vowels', normalise: running}]",
    "rollout.max_new_tokens=8",
]
UPDATE, STEPS = 8, 32  # optimizer steps of an update, and of the run
SAVING = (["trainer.save_steps=1"], [])


@pytest.fixture
def start(tmp_path, policy_dir, data_files):
    (tmp_path / "slow_vowels.py").write_text(REWARD)

    def begin(name: str, *settings: str, resume: bool = False) -> subprocess.Popen[bytes]:
        config = tmp_path / "ppo.yaml"
        config.write_text(
            f"model: {{path: {policy_dir}}}\ndata: {{train: {data_files['prompts']}}}\nreward: []\n"
        )
        command = [
            sys.executable,
            "-m",
            "align.cli",
            "ppo",
            str(config),
            f"run.dir={name}",
            *SETTINGS,
            *settings,
        ]
        log = (tmp_path / f"{name}.log").open("ab")
        return subprocess.Popen(
            command + ["--resume"] * resume,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )

    return begin


def finished(process: subprocess.Popen[bytes], log: Path) -> None:
    assert process.wait(timeout=600) == 0, log.read_text(errors="replace")[-2000:]


def trained(run: Path) -> list[int]:
    """The optimizer steps in a run's metrics, in the order they were taken."""
    return [row["step"] for row in read_jsonl(run / "metrics.jsonl") if "loss" in row]


def newest(run: Path) -> int:
    """The step of the last checkpoint that is whole; 0 for none."""
    try:
        found, _ = newest_valid(run / "checkpoints")
    except CheckpointError:  # the first was being written
        return 0
    return int(found.name.split("-")[-1]) if found else 0


@pytest.mark.timeout(3600)
def test_a_killed_run_goes_on_as_if_it_had_not_been(start, tmp_path):
    finished(start("straight"), tmp_path / "straight.log")
    straight = load_file(tmp_path / "straight/model/model.safetensors")
    assert trained(tmp_path / "straight") == list(range(1, STEPS + 1))
    where = random.Random(0)
    resumed_from = []
    for trial in range(KILLS):
        name, saving = f"killed{trial}", SAVING[trial % 2]
        run = tmp_path / name
        process = start(name, *saving)
        step = where.randrange(STEPS)  # 0: while models are loaded, or in the first rollout
        while process.poll() is None and not (
            len(trained(run)) >= step and (run / "run.json").exists()
        ):
            time.sleep(0.01)
        time.sleep(where.uniform(0.0, 0.4))  # a rollout, some steps, or a checkpoint being written
        process.send_signal(signal.SIGKILL)
        code = process.wait()
        before, kept = trained(run), newest(run)
        reached = max(before, default=0)
        if saving:
            assert kept >= reached - 1, name  # at most the step that was being saved is lost
        else:
            assert kept % UPDATE == 0, name
            assert kept or reached <= UPDATE, name  # the first update was saved
        if code == -signal.SIGKILL:
            resumed_from.append(kept)
        finished(start(name, *saving, resume=True), tmp_path / f"{name}.log")
        # Nothing that a checkpoint holds is trained again, and nothing is left out.
        assert trained(run)[len(before) :] == list(range(kept + 1, STEPS + 1)), name
        weights = load_file(run / "model/model.safetensors")
        assert all(torch.equal(straight[n], weights[n]) for n in straight), name
        print(f"{name}: ended {code} after step {reached}, went on from {kept}")
    assert any(resumed_from), "no kill came after a checkpoint: the test proves nothing"
