"""Advantage estimators beside GAE, penalties on length, aggregation, and gaps between turns."""

import pytest
import torch

from align.ppo.actor_critic import build_actor_critic
from align.ppo.advantages import (
    ESTIMATORS,
    estimate_advantages,
    gae,
    last_token,
    overlong_penalty,
    rewards_to_go,
    shape_rewards,
)
from align.ppo.experience import Shaping, make_experience, shape_scores
from align.ppo.objectives import aggregation_weights, kl_loss, policy_loss

MASK = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
SCORES = torch.tensor([4.0, 1.0, 3.0, 3.0])  # two groups of two


def estimate(name, rewards=None, values=None, group_size=2, **settings):
    if rewards is None:
        rewards = shape_rewards(SCORES, torch.zeros_like(MASK), MASK, 0.0)
    values = torch.zeros_like(MASK) if values is None else values
    return estimate_advantages(name, rewards, values, MASK, group_size, **settings)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("rloo", [3.0, -3.0, 0.0, 0.0]),  # 4 - 1, 1 - 4: minus the mean of the others
        ("dr_grpo", [1.5, -1.5, 0.0, 0.0]),  # minus the group's mean, 2.5
        ("grpo", [1.5 / (4.5**0.5 + 1e-4), -1.5 / (4.5**0.5 + 1e-4), 0.0, 0.0]),
        ("reinforce++-baseline", [1.5, -1.5, 0.0, 0.0]),
        ("reinforce++", [4.0, 1.0, 3.0, 3.0]),  # gamma 1: the same at every token
    ],
)
def test_one_advantage_for_each_sequence(name, rows):
    advantages, returns = estimate(name)
    assert torch.allclose(advantages, torch.tensor(rows)[:, None] * MASK)
    assert torch.equal(returns, SCORES[:, None] * MASK)


def test_the_kl_in_the_reward_counts_in_every_estimator():
    kl = torch.full_like(MASK, 0.5)
    rewards = shape_rewards(SCORES, kl, MASK, 0.2)
    for name in ESTIMATORS:
        plain, _ = estimate(name)
        shaped, _ = estimate(name, rewards)
        assert not torch.allclose(plain, shaped)
    rloo, _ = estimate("rloo", rewards)  # 4 - 3 * 0.1 against 1 - 2 * 0.1
    assert rloo[0, 0].item() == pytest.approx(3.7 - 0.8)


def test_rewards_to_go_discount():
    rewards = torch.tensor([[1.0, 2.0, 4.0]])
    found = rewards_to_go(rewards, torch.ones(1, 3), gamma=0.5)
    assert found.tolist() == [[1 + 1 + 1, 2 + 2, 4]]


def test_gae_of_the_table_is_gae():
    values = torch.rand(MASK.shape, generator=torch.Generator().manual_seed(0))
    rewards = shape_rewards(SCORES, torch.zeros_like(MASK), MASK, 0.0)
    got = estimate("gae", values=values, gamma=0.9, gae_lambda=0.7)
    for mine, theirs in zip(got, gae(rewards, values, MASK, 0.9, 0.7), strict=True):
        assert torch.equal(mine, theirs)


def test_an_unknown_estimator_is_named():
    with pytest.raises(ValueError, match="'gea' is unknown: use gae, rloo"):
        estimate("gea")


def test_time_passes_over_what_the_policy_did_not_write():
    """A reply of the environment inside a completion changes no advantage and gets none."""
    rewards, values = torch.tensor([[0.1, 0.2, 1.0]]), torch.tensor([[0.5, 0.4, 0.3]])
    plain = gae(rewards, values, torch.ones(1, 3), 0.9, 0.8)

    def spaced(row: torch.Tensor) -> torch.Tensor:
        a, b, c = row[0].tolist()
        return torch.tensor([[a, 7.0, float("nan"), b, c, float("inf")]])

    gap = torch.tensor([[1.0, 0.0, 0.0, 1.0, 1.0, 0.0]])
    found = gae(spaced(rewards), spaced(values), gap, 0.9, 0.8)
    for mine, theirs in zip(found, plain, strict=True):
        assert torch.allclose(mine[gap.bool()], theirs[0])
        assert (mine[~gap.bool()] == 0).all()
    assert last_token(gap).tolist() == [4]
    assert shape_rewards(torch.tensor([5.0]), torch.zeros(1, 6), gap, 0.0)[0].tolist() == [
        *[0.0] * 4,
        5.0,
        0.0,
    ]


def test_the_overlong_penalty_grows_over_the_buffer():
    lengths = torch.tensor([10.0, 80.0, 90.0, 100.0])
    assert overlong_penalty(lengths, 100, 20).tolist() == [0.0, 0.0, 0.5, 1.0]


def test_penalties_on_a_missing_end_and_on_length_come_off_the_score_before_it_is_clipped():
    scores, lengths = torch.tensor([1.0, 1.0, 9.0]), torch.tensor([4.0, 10.0, 2.0])
    finished = torch.tensor([True, False, True])

    def shaped(**settings):
        settings = {"missing_eos_penalty": 0.0, "longest": 10} | settings
        return shape_scores(scores, lengths, finished, Shaping(**settings)).tolist()

    assert shaped() == [1.0, 1.0, 9.0]
    assert shaped(missing_eos_penalty=2.0) == [1.0, -1.0, 9.0]
    assert shaped(length_penalty=0.5) == [-1.0, -4.0, 8.0]
    assert shaped(overlong_buffer=8, overlong_penalty=4.0) == [0.0, -3.0, 9.0]
    assert shaped(length_penalty=0.5, reward_clip=3.0) == [-1.0, -3.0, 3.0]


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token", -(3 * 1.0 + 1 * 5.0) / 4),
        ("sequence", -(1.0 + 5.0) / 2),
        ("fixed", -(3 * 1.0 + 1 * 5.0) / 4 / 2),
    ],
)
def test_how_tokens_are_averaged(aggregation, expected):
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    weights, shares = aggregation_weights(mask, aggregation, longest=4)
    zeros = torch.zeros_like(mask)
    loss = policy_loss(
        zeros, zeros, torch.tensor([1.0, 5.0, 9.0]), mask, tokens=shares.sum(), weights=weights
    )
    assert loss.item() == pytest.approx(expected)


def test_clip_higher_moves_the_upper_bound_alone():
    ratio, old = torch.tensor([[1.5, 0.5]]).log(), torch.zeros(1, 2)
    advantages = torch.tensor([[1.0, -1.0]])
    loss = policy_loss(ratio, old, advantages, torch.ones(1, 2), 0.2, clip_range_high=0.4)
    assert loss.item() == pytest.approx((-1.4 + 0.8) / 2)


def test_the_kl_as_a_loss():
    logprobs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    reference = torch.tensor([[-1.5, -2.0]])
    loss = kl_loss(logprobs, reference, torch.ones(1, 2), "k2")
    assert loss.item() == pytest.approx(0.5 * 0.25 / 2)
    loss.backward()
    assert logprobs.grad.tolist() == [[0.25, 0.0]]  # log p - log q over two tokens: k1's, in reward
    k3 = kl_loss(logprobs, reference, torch.ones(1, 2), "k3")
    assert k3.item() == pytest.approx((torch.tensor(-0.5).exp().item() - 1 + 0.5) / 2, rel=1e-5)
    with pytest.raises(ValueError, match="k2 or k3"):
        kl_loss(logprobs, reference, torch.ones(1, 2), "k1")


def test_whitening_leaves_the_critics_targets_alone(tiny_llama, make_rollout):
    """The returns are those of the advantages before whitening: what the rewards really sum to."""
    model, rollout = build_actor_critic(tiny_llama(seed=2)), make_rollout()
    made = [
        make_experience(
            rollout,
            [5.0, -1.0, 2.0, 8.0],
            model,
            tiny_llama(seed=2),
            kl_coef=0.05,
            shaping=Shaping(whiten_advantages=whiten, missing_eos_penalty=0.0),
        )[0]
        for whiten in (False, True)
    ]
    assert torch.equal(made[0].returns, made[1].returns)
    assert not torch.allclose(made[0].advantages, made[1].advantages, atol=0.1)
