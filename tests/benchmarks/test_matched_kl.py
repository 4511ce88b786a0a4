"""The comparison at the same KL: its divergence, and what it makes of figures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import entr, expit

from align.engine.head import policy_logprobs
from align.quickstart.world import World
from align.rollout.best_of import best_of_curve, best_of_n_kl
from align.rollout.transformers import TransformersSampler
from benchmarks.matched_kl import (
    BETAS,
    TRAINING,
    at,
    questions,
    sequence_kl,
    summarise,
    tilted,
)

CURVE = {"kl": [0.0, 0.2, 0.4, 0.6], "gold": [1.0, 2.0, 2.5, 2.75], "reward": [0.0, 1.0, 2.0, 3.0]}
OPTIMUM = {"kl": [0.0, 0.6], "gold": [1.0, 3.0], "reward": [0.0, 3.6]}
BEST = CURVE | {"optimum": OPTIMUM}


def seed(gold: float, kl: float) -> dict:
    figures = {"gold": gold, "reward": 1.0, "kl": kl}
    return {"best_of": {"test": BEST}, "arms": {"ppo": {"test": figures, "seconds": 1.0}}}


def test_between_two_k_the_line_counts():
    assert at(BEST, 0.3) == pytest.approx(2.25)
    assert at(BEST, 0.3, "reward") == pytest.approx(1.5)
    with pytest.raises(ValueError, match=r"ends at KL 0.60, and 0.70"):
        at(BEST, 0.7)


def test_gains_are_those_at_the_arms_own_kl():
    found = summarise([seed(2.5, 0.3), seed(2.75, 0.5)])["test"]["ppo"]
    assert found["gain_at_same_kl"]["value"] == pytest.approx((0.25 + 0.125) / 2)
    assert found["over_best_of_4"]["value"] == pytest.approx(2.625 - 2.75)
    assert found["reward_room_at_same_kl"]["value"] == pytest.approx(2.4 - 2.0)
    alone = summarise([seed(2.5, 0.3)])["test"]["ppo"]
    assert alone["gain_at_same_kl"] == pytest.approx(0.25)


def test_the_optimum_is_the_tilted_policy():
    """Two answers of reward 0 and 1: p exp(r / beta) is a logistic function of 1 / beta."""
    found = tilted([[0.0, 1.0]], [[2.0, 5.0]], [1e9, 1.0, 0.5])
    share = expit(np.array([0.0, 1.0, 2.0]))
    assert found["reward"] == pytest.approx(share)
    assert found["gold"] == pytest.approx(2 + 3 * share)
    assert found["kl"] == pytest.approx(np.log(2) - entr(share) - entr(1 - share))


def test_no_best_of_n_has_more_reward_than_the_optimum_at_its_kl():
    """Of normal rewards the optimum is sqrt(2 KL): its policy is the normal moved by so much."""
    reward = np.random.default_rng(0).normal(size=(4, 4000))
    found = tilted(reward, reward, BETAS)
    for k in (2, 4, 8):
        most = at(found, best_of_n_kl(k), "reward")
        assert most == pytest.approx((2 * best_of_n_kl(k)) ** 0.5, rel=0.03)
        assert 0.9 * most < best_of_curve(reward, [k]).mean() < most


def test_questions_of_neither_kind_are_trained_on():
    world = World(3)
    trained = {str(row["prompt"]) for row in world.prompts(TRAINING)}
    kinds = questions(world, 30)
    asked = [str(row["prompt"]) for rows in kinds.values() for row in rows]
    assert len(set(asked)) == 60
    assert not trained & set(asked)
    assert kinds["test"] == world.prompts(30, "test")


@torch.no_grad()
def test_the_divergence_is_the_mean_log_ratio(tiny_llama, tiny_tokenizer):
    policy, start = tiny_llama(seed=0), tiny_llama(seed=1)
    torch.manual_seed(0)
    sampler = TransformersSampler(policy, tiny_tokenizer, max_new_tokens=4, batch_size=512)
    rollout = sampler(["Hello there", "Hi"], group_size=1024)
    found = sequence_kl(policy, start, rollout)
    ratios = (policy_logprobs(policy, rollout) - policy_logprobs(start, rollout)).sum(1)
    assert found.shape == (2048,)
    assert float(found.min()) > 0
    error = float(ratios.std()) / 2048**0.5
    assert abs(float(found.mean() - ratios.mean())) < 4 * error
    assert float(found.std()) < float(ratios.std())
    assert sequence_kl(policy, policy, rollout).abs().max() < 1e-9
