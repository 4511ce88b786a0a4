"""An environment under `align ppo`, named in the configuration."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from align.config.load import load_config
from align.config.sections import RolloutSection
from align.config.stages import PPOStage
from align.engine.head import policy_logprobs
from align.errors import ConfigError
from align.rollout.environment import environment_reward
from align.rollout.episodes import EnvironmentSampler
from align.rollout.open import check_rollout, in_environment, open_sampler
from align.rollout.transformers import TransformersSampler
from align.run import open_run, read_jsonl
from align.stages import ppo
from reward.functions import call_reward

WORLD = """
from align.rollout.environment import Step

SEEN = []


class Parrot:
    # Asks once more; the reward is the length of what was said.
    def reset(self, prompt, **columns):
        self.turn = 0

    def step(self, completion):
        self.turn += 1
        SEEN.append(self.turn)
        return Step("Again?", reward=len(completion), done=self.turn == 2)
"""


@pytest.fixture
def world(tmp_path, monkeypatch) -> str:
    (tmp_path / "parrot_world.py").write_text(WORLD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "parrot_world:Parrot"


@pytest.fixture
def talkative(tiny_llama, tiny_tokenizer) -> Any:
    """A policy that ends its turns soon, one way or another."""
    model = tiny_llama(seed=3, max_position_embeddings=256)
    model.generation_config.eos_token_id = [tiny_tokenizer.eos_token_id, *range(100, 140)]
    return model


def test_the_fast_sampler_plays_with_the_policys_log_probabilities(
    talkative, tiny_tokenizer, world, prompts, tmp_path
):
    section = RolloutSection(environment=world, max_new_tokens=24, max_turns=3, batch_size=4)
    torch.manual_seed(0)
    sampler = open_sampler(section, talkative, tiny_tokenizer, tmp_path)
    assert isinstance(sampler, EnvironmentSampler)
    assert (sampler.max_turns, sampler.context) == (3, 256)
    rollout = sampler(prompts, group_size=4)
    assert rollout.real is not None
    assert (rollout.real > rollout.mask).any()
    assert rollout.finished.sum() > 0
    with torch.no_grad():
        found = policy_logprobs(talkative, rollout)
    assert (found - rollout.logprobs).abs().max() < 1e-5
    scores = call_reward(
        environment_reward, rollout.prompts, rollout.completions, **rollout.columns
    )
    said = [[m for m in c if m["role"] == "assistant"] for c in rollout.completions]
    for score, turns, ended in zip(scores, said, rollout.finished.tolist(), strict=True):
        if ended:
            assert score == sum(len(turn["content"]) for turn in turns)


def test_without_an_environment_the_engine_is_the_sampler(talkative, tiny_tokenizer):
    engine = TransformersSampler(talkative, tiny_tokenizer)
    assert in_environment(RolloutSection(), engine, talkative, tiny_tokenizer) is engine


def test_a_section_is_checked_before_a_model_loads(world):
    assert check_rollout(RolloutSection(environment=world)) == []
    (problem,) = check_rollout(RolloutSection(environment="parrot_world:Cat"))
    assert "rollout.environment" in str(problem)
    assert "Parrot" in str(problem)
    (problem,) = check_rollout(RolloutSection(max_turns=3))
    assert str(problem).startswith("rollout.max_turns: set, but there is no environment.")


@pytest.fixture
def launch(tmp_path, talkative, tiny_tokenizer, data_files, world) -> Callable[..., Path]:
    folder = tmp_path / "policy"
    talkative.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)

    def run(*overrides: str) -> Path:
        given = [
            f"run.dir={tmp_path / 'run'}",
            f"model.path={folder}",
            f"data.train={data_files['prompts']}",
            "data.validation_fraction=0.2",
            "trainer.rollout_batch_size=8",
            "trainer.per_device_train_batch_size=4",
            "trainer.total_episodes=16",
            "trainer.ppo_epochs=1",
            "trainer.learning_rate=1e-3",
            "trainer.logging_steps=1",
            "tracking.report_to=[none]",
            "reward=[{function: 'align.rollout.environment:environment_reward'}]",
            f"rollout={{environment: '{world}', max_new_tokens: 12, max_turns: 2}}",
            *overrides,
        ]
        config = load_config(PPOStage, None, given)
        with open_run(config) as opened:
            ppo.run(config, opened)
        return tmp_path / "run"

    return run


def test_ppo_trains_on_episodes(launch):
    """The ratio is 1 before the first update: the trainer scores as the sampler drew."""
    run = launch()
    rows = [row for row in read_jsonl(run / "metrics.jsonl") if "reward/mean" in row]
    assert rows
    assert rows[0]["rollout/sampler_gap"] < 1e-4
    assert rows[0]["kl/reference"] == pytest.approx(0.0, abs=1e-5)
    samples = read_jsonl(run / "samples.jsonl")
    assert any(len(row["completions"]["after"]) == 3 for row in samples)
    assert json.loads((run / "run.json").read_text())["status"] == "completed"


def test_an_environment_that_is_not_there_is_refused_first(launch):
    with pytest.raises(ConfigError, match=r"rollout\.environment: .*has no class 'Cat'"):
        launch("rollout.environment=parrot_world:Cat", "model.path=no/where")
