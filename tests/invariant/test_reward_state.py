"""Rewards with a state in a real PPO run: stopped and resumed it is the same run, bit for bit."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from align.config.load import load_config
from align.config.stages import STAGES
from align.engine.monitor import StopCallback
from align.errors import Interrupted
from align.ppo.rewards import RewardScorer
from align.run import open_run
from align.stages import ppo

REWARDS = """
import asyncio

def words(completions):
    return [c[-1]["content"] for c in completions]

def vowels(completions, weight=1.0):
    return [weight * sum(w.count(x) for x in "aeiou") for w in words(completions)]

async def brief(prompts, completions, **columns):
    await asyncio.sleep(0.01)
    return [None if i % 4 == 3 else -len(w) / 10 for i, w in enumerate(words(completions))]

class Spaces:
    def __call__(self, completions, **columns):
        return [float(w.count(" ")) for w in words(completions)]
"""
SECTION = """reward=[
    {function: 'stateful_rewards:vowels', kwargs: {weight: 3}, normalise: running, clip: 2,
     schedule: {kind: linear, to: 0.2, updates: 2}},
    {function: 'stateful_rewards:brief', normalise: running, timeout: 60},
    {function: 'stateful_rewards:Spaces', normalise: group, name: spaces, weight: 0.5},
    {function: 'stateful_rewards:vowels', name: truth, gold: true}]"""


@pytest.fixture
def launch(tmp_path, policy_dir, data_files, monkeypatch):
    (tmp_path / "stateful_rewards.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(name: str, resume: bool = False) -> Path:
        config = load_config(
            STAGES["ppo"],
            None,
            [
                f"run.dir={tmp_path / name}",
                f"model.path={policy_dir}",
                f"data.train={data_files['prompts']}",
                "trainer.learning_rate=1e-3",
                "tracking.report_to=[none]",
                "trainer.logging_steps=1",
                "trainer.total_episodes=24",
                "trainer.rollout_batch_size=8",
                "trainer.group_size=2",
                "trainer.per_device_train_batch_size=4",
                "trainer.ppo_epochs=1",
                "rollout.max_new_tokens=8",
                SECTION,
            ],
        )
        with open_run(config, resume=resume) as opened:
            ppo.run(config, opened, resume=resume)
        return tmp_path / name

    return run


def stop_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """A real SIGTERM to this process at the end of an optimizer step."""
    original = StopCallback.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, args, state, control, **kwargs)

    patch.setattr(StopCallback, "on_step_end", on_step_end)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def test_statistics_and_schedules_resume_exactly(launch, monkeypatch):
    straight = launch("straight")
    rows = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    logged = [row for row in rows if "reward/vowels" in row]
    assert [row["reward_weight/vowels"] for row in logged] == pytest.approx([1.0, 0.6, 0.2])
    for row in logged:
        assert row["gold/truth"] * 3 == pytest.approx(row["reward/vowels"])  # raw, both
        assert {"reward/brief", "reward/spaces"} <= row.keys()

    for name in ("stopped", "forgetful"):
        with monkeypatch.context() as patch:
            stop_at(2, patch)  # the end of the first update
            with pytest.raises(Interrupted):
                launch(name)
    stopped = launch("stopped", resume=True)
    assert all(torch.equal(weights(straight)[n], w) for n, w in weights(stopped).items())
    # the negative control: what is learnt does depend on the statistics
    monkeypatch.setattr(RewardScorer, "load_state_dict", lambda self, state: None)
    forgetful = launch("forgetful", resume=True)
    assert not all(torch.equal(weights(straight)[n], w) for n, w in weights(forgetful).items())
