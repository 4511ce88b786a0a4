"""`make_experience` against its parts put together by hand, switch by switch, and what it logs."""

from __future__ import annotations

import pytest
import torch

from align.engine.head import completion_logprobs
from align.ppo.actor_critic import build_actor_critic
from align.ppo.advantages import gae, masked_mean
from align.ppo.experience import Shaping, make_experience

SCORES = [5.0, -1.0, 2.0, 8.0]
FINISHED = torch.tensor([True, False, True, True])
PLAIN = Shaping(whiten_advantages=False, missing_eos_penalty=0.0)


@pytest.fixture
def made(tiny_llama, make_rollout, moved):
    """`made(temperature=1, kl_coef=0.05, **shaping)`: experience, metrics, rollout, reference.

    The reference is not the policy, and the critic does not say 0.
    """

    def make(temperature: float = 1.0, kl_coef: float = 0.05, **settings):
        model, reference = build_actor_critic(tiny_llama(seed=2)), moved(tiny_llama(seed=2))
        torch.manual_seed(1)
        torch.nn.init.normal_(model.value_head.weight, std=0.3)
        rollout = make_rollout(finished=FINISHED, temperature=temperature)
        shaping = {"whiten_advantages": False, "missing_eos_penalty": 0.0} | settings
        experience, metrics = make_experience(
            rollout, SCORES, model, reference, kl_coef=kl_coef, shaping=Shaping(**shaping)
        )
        return experience, metrics, rollout, reference

    return make


def rewards_by_hand(experience, scores, kl_coef: float, estimator: str = "k1") -> torch.Tensor:
    """-kl_coef * KL at every token, the score on the last: (B, A)."""
    log_ratio = experience.logprobs - experience.ref_logprobs
    kl = {"k1": log_ratio, "k3": (-log_ratio).exp() - 1 + log_ratio}[estimator]
    rewards = -kl_coef * kl * experience.mask
    for row, score in enumerate(scores):
        rewards[row, int(experience.mask[row].sum()) - 1] += score
    return rewards


def advantages_by_hand(experience, rewards, gamma: float = 1.0, gae_lambda: float = 0.95):
    return gae(rewards, experience.values, experience.mask, gamma, gae_lambda)


@pytest.mark.parametrize(
    ("settings", "scores", "kl_coef", "estimator"),
    [
        ({}, SCORES, 0.05, "k1"),
        ({"kl_coef": 0.5}, SCORES, 0.5, "k1"),
        ({"kl_estimator": "k3", "kl_coef": 0.5}, SCORES, 0.5, "k3"),
        ({"kl_in_reward": False, "kl_coef": 0.5}, SCORES, 0.0, "k1"),
        ({"missing_eos_penalty": 3.0}, [5.0, -4.0, 2.0, 8.0], 0.05, "k1"),
        ({"reward_clip": 2.0}, [2.0, -1.0, 2.0, 2.0], 0.05, "k1"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_rewards_kl_and_advantages(made, settings, scores, kl_coef, estimator):
    experience, metrics, *_ = made(**settings)
    rewards = rewards_by_hand(experience, scores, kl_coef, estimator)
    advantages, returns = advantages_by_hand(experience, rewards)
    assert torch.allclose(experience.advantages, advantages, atol=1e-5)
    assert torch.allclose(experience.returns, returns, atol=1e-5)
    assert metrics["reward/kl_shaped"] == pytest.approx(rewards.sum(1).mean().item(), abs=1e-5)
    assert experience.scores.tolist() == SCORES  # raw, whatever was taken off
    assert metrics["reward/mean"] == pytest.approx(3.5)
    if settings:  # the negative control
        plain = rewards_by_hand(experience, SCORES, 0.05)
        assert not torch.allclose(plain, rewards, atol=1e-3)


def test_gamma_and_lambda_reach_the_advantages(made):
    experience, *_ = made(gamma=0.9, gae_lambda=0.5)
    rewards = rewards_by_hand(experience, SCORES, 0.05)
    wanted = advantages_by_hand(experience, rewards, 0.9, 0.5)[0]
    assert torch.allclose(experience.advantages, wanted, atol=1e-5)


def test_whitened_rewards_keep_their_mean_and_have_variance_1(made):
    plain, *_ = made(gae_lambda=1.0)
    white, metrics, *_ = made(gae_lambda=1.0, whiten_rewards=True)
    mask = plain.mask

    def rewards_of(experience):  # returns under gamma = lambda = 1 are sums of rewards
        following = torch.cat([experience.returns[:, 1:], torch.zeros(4, 1)], dim=1)
        return (experience.returns - following) * mask

    before, after = rewards_of(plain)[mask.bool()], rewards_of(white)[mask.bool()]
    assert after.mean().item() == pytest.approx(before.mean().item(), abs=1e-4)
    assert before.var(unbiased=False).item() > 2.0
    assert after.var(unbiased=False).item() == pytest.approx(1.0, abs=1e-3)
    assert metrics["reward/mean"] == 3.5


def test_whitened_advantages_have_mean_0_and_variance_1_over_what_trains(made):
    plain, *_ = made(mask_truncated=True)
    white, *_ = made(mask_truncated=True, whiten_advantages=True)
    kept = white.mask.bool()
    assert not kept[1].any()
    values = white.advantages[kept]
    assert values.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert values.var(unbiased=False).item() == pytest.approx(1.0, abs=1e-4)
    assert plain.advantages[kept].mean().abs() > 0.1
    assert torch.equal(plain.returns, white.returns)


def test_truncated_completions_train_unless_they_are_masked(made):
    experience, *_ = made()
    assert experience.mask.sum(1).tolist() == [4, 6, 1, 3]
    experience, *_ = made(mask_truncated=True)
    assert experience.mask.sum(1).tolist() == [4, 0, 1, 3]
    assert experience.shares[1] == 0


def test_policy_and_reference_divide_their_logits_by_the_temperature(made, tiny_llama):
    experience, _, rollout, reference = made(temperature=0.6)
    for model, found in (
        (tiny_llama(seed=2), experience.logprobs),
        (reference, experience.ref_logprobs),
    ):
        ids, attention, width = rollout.input_ids, rollout.attention_mask, rollout.mask.shape[1]
        places = (attention.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            out = model(input_ids=ids, attention_mask=attention, position_ids=places)
        logits = out.logits[:, -width - 1 : -1] / 0.6
        wanted = logits.log_softmax(-1).gather(-1, rollout.completion_ids[..., None]).squeeze(-1)
        assert torch.allclose(found, wanted * rollout.mask, atol=1e-4)
        batch = (ids, attention, rollout.mask)
        with torch.no_grad():
            cold = completion_logprobs(model, *batch, 1.0)[0]
        assert not torch.allclose(found, cold, atol=0.1)


def test_what_is_logged_of_rollouts(made):
    experience, metrics, rollout, _ = made()
    mask = rollout.mask
    log_ratio = experience.logprobs - experience.ref_logprobs
    k3 = (-log_ratio).exp() - 1 + log_ratio
    wanted = {
        "reward/mean": 3.5,
        "reward/std": torch.tensor(SCORES).std(unbiased=False).item(),
        "kl/reference": (log_ratio * mask).sum(1).mean().item(),
        "kl/k3": (k3 * mask).sum(1).mean().item(),
        "kl/coef": 0.05,
        "rollout/eos_rate": 0.75,
        "rollout/length_mean": 3.5,
        "rollout/length_max": 6.0,
        "value/mean": masked_mean(experience.values, mask).item(),
    }
    kept = mask.bool()
    left = (experience.returns - experience.values)[kept].var(unbiased=False)
    explained = 1 - left / experience.returns[kept].var(unbiased=False)
    wanted["value/explained_variance"] = explained.item()
    for key, value in wanted.items():
        assert metrics[key] == pytest.approx(value, rel=1e-4), key
    assert metrics["kl/k3"] > 0.01
    assert 0 < metrics["policy/entropy"] < torch.tensor(300.0).log().item()
    assert metrics["reward/kl_shaped"] != pytest.approx(metrics["reward/mean"], abs=1e-3)


def test_dropout_is_off_while_experience_is_made(made, tiny_llama, make_rollout):
    policy = tiny_llama(seed=2)
    model = build_actor_critic(policy).train()
    policy.model.layers[0].self_attn.attention_dropout = 0.5
    first, second = (
        make_experience(
            make_rollout(), SCORES, model, tiny_llama(seed=2), kl_coef=0.05, shaping=PLAIN
        )[0]
        for _ in range(2)
    )
    assert torch.equal(first.logprobs, second.logprobs)
    assert torch.allclose(first.logprobs, first.ref_logprobs, atol=1e-5)
    assert model.training
