"""kill -9 of a PPO run at random points: the resumed run is the run that nobody killed.

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
    "trainer.save_steps=1",
    "trainer.save_total_limit=2",
    "reward=[{function: 'slow_vowels:vowels', normalise: running}]",
    "rollout.max_new_tokens=8",
]


@pytest.fixture
def start(tmp_path, policy_dir, data_files):
    (tmp_path / "slow_vowels.py").write_text(REWARD)

    def begin(name: str, resume: bool = False) -> subprocess.Popen[bytes]:
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


@pytest.mark.timeout(1800)
def test_a_killed_run_goes_on_as_if_it_had_not_been(start, tmp_path):
    began = time.monotonic()
    finished(start("straight"), tmp_path / "straight.log")
    whole = time.monotonic() - began
    straight = load_file(tmp_path / "straight/model/model.safetensors")
    where = random.Random(0)
    resumed_late = 0
    for trial in range(KILLS):
        name = f"killed{trial}"
        process = start(name)
        # Training is the second half: before it, models are loaded.
        time.sleep(whole * where.uniform(0.4, 0.95))
        process.send_signal(signal.SIGKILL)
        process.wait()
        late = any((tmp_path / name / "checkpoints").glob("checkpoint-*/MANIFEST.json"))
        resumed_late += late
        whole *= 1 if late else 1.5  # the machine is busier than it was
        begun = (tmp_path / name / "run.json").exists()  # not under load: `whole` is then too short
        finished(start(name, resume=begun), tmp_path / f"{name}.log")
        weights = load_file(tmp_path / name / "model/model.safetensors")
        assert all(torch.equal(straight[n], weights[n]) for n in straight), name
    assert resumed_late, "no kill came after a checkpoint: the test proves nothing"
