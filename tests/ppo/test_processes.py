"""PPO on two processes (gloo): the training of one with twice the batch, and one run directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from align.engine.checkpoint import list_checkpoints, newest_valid
from align.engine.launch import launch_command
from feedback.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("processes_script.py")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def launch(tmp_path):
    """`launch(arguments, processes)`: a command of Python's on so many processes, to its end."""

    def run(arguments: list[str], processes: int, code: int = 0) -> str:
        start = [sys.executable]
        if processes > 1:
            command = launch_command("cpu2", [], processes=processes, main_port=free_port())
            start = command[: command.index("--module")]
            preset = start.index("--config_file") + 1
            start[preset] = str((ROOT / start[preset]).resolve())
            if arguments[0] == "-m":
                arguments = ["--module", *arguments[1:]]
        done = subprocess.run(
            [*start, *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=800,
            check=False,
        )
        said = done.stdout + done.stderr
        assert (done.returncode == 0) == (code == 0), said[-4000:]
        return said

    return run


def test_two_processes_train_as_one_with_twice_the_batch(launch, policy_dir, tmp_path):
    facts, weights = {}, {}
    for name, processes, rows in (("one", 1, 8), ("two", 2, 4)):
        (tmp_path / name).mkdir()
        launch([str(SCRIPT), str(policy_dir), str(tmp_path / name), str(rows)], processes)
        for rank in range(processes):
            found = json.loads((tmp_path / name / f"facts-{rank}.json").read_text())
            assert found["processes"] == processes
            facts[name, rank] = found
            weights[name, rank] = torch.load(tmp_path / name / f"weights-{rank}.pt")
    start = dict(AutoModelForCausalLM.from_pretrained(policy_dir).named_parameters())
    moved = 0.0
    for key, weight in weights["one", 0].items():
        assert torch.equal(weights["two", 0][key], weights["two", 1][key]), key
        assert torch.allclose(weights["two", 0][key], weight, atol=1e-5), key
        if key.startswith("policy."):
            moved = max(
                moved, float((weight - start[key.removeprefix("policy.")].detach()).abs().max())
            )
    assert moved > 1e-3
    assert facts["two", 0]["kl"] == pytest.approx(facts["one", 0]["kl"])
    assert facts["one", 0]["kl"] != 0.1  # it moved, within the controller's bounds
    assert facts["two", 0]["seed"] != facts["two", 1]["seed"]  # ranks draw numbers of their own
    logs = [facts[name, 0]["log"] for name in ("one", "two")]
    kept = (
        "reward/mean",
        "reward/vowels",
        "kl/reference",
        "rollout/length_mean",
        "reward/kl_shaped",
    )
    assert sum("reward/mean" in row for row in logs[0]) >= 3
    for alone, shared in zip(*logs, strict=True):
        assert (set(kept) & set(shared)) == (set(kept) & set(alone))
        for key in set(kept) & set(alone):
            assert shared[key] == pytest.approx(alone[key], rel=1e-3, abs=1e-4), key
        for key in ("episodes", "num_tokens"):
            assert shared.get(key) == alone.get(key), key


@pytest.mark.integration
def test_a_stage_on_two_processes_keeps_one_run(launch, policy_dir, data_files, tmp_path):
    (tmp_path / "vowels.py").write_text(
        "def vowels(prompts, completions, **columns):\n"
        "    return [float(c[-1]['content'].count('e')) for c in completions]\n"
    )
    (tmp_path / "ppo.yaml").write_text(
        f"model: {{path: {policy_dir}}}\n"
        f"data: {{train: {data_files['prompts']}}}\n"
        "reward: [{function: 'vowels:vowels'}]\n"
        f"guards: [{{type: replay, data: {data_files['sft']}, strength: 0.1}}]\n"
        "tracking: {report_to: [none]}\n"
        "rollout: {max_new_tokens: 8}\n"
    )
    settings = [
        "trainer.total_episodes=16",
        "trainer.rollout_batch_size=4",
        "trainer.per_device_train_batch_size=2",
        "trainer.ppo_epochs=1",
        "trainer.save_steps=2",
    ]
    command = ["-m", "align.cli", "ppo", "ppo.yaml", *settings]
    assert "run.dir is not set" in launch(command, 2, code=1)
    launch([*command, "run.dir=two"], 2)
    run = tmp_path / "two"
    assert json.loads((run / "run.json").read_text())["status"] == "completed"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert all("guard/replay" in row for row in rows if "loss" in row)
    assert len((run / "samples.jsonl").read_text().splitlines()) == len(
        {json.loads(line)["prompt"][0]["content"] for line in (run / "samples.jsonl").open()}
    )
    assert AutoModelForCausalLM.from_pretrained(run / "model").num_parameters() > 0
    assert (run / "value" / "value.safetensors").is_file()
    newest, passed = newest_valid(run / "checkpoints")
    assert not passed
    assert newest == list_checkpoints(run / "checkpoints")[0]
    assert list(newest.glob("rank1_*"))
    assert not list(tmp_path.glob("runs"))
