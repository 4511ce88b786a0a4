"""Advantages, objectives and KL against values worked out by hand."""

import math

import pytest
import torch

from align.ppo.advantages import (
    gae,
    group_center,
    group_normalise,
    last_token,
    masked_mean,
    rloo,
    shape_rewards,
    whiten,
)
from align.ppo.kl import AdaptiveKL, FixedKL, estimate_kl
from align.ppo.objectives import entropy_bonus, policy_loss, ratio_statistics, value_loss

NAN, INF = math.nan, math.inf


def ratios(*values: float) -> torch.Tensor:
    return torch.tensor([values]).log()


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.5, 2.0, -1.2 * 2.0),  # clipped above: no more credit than 1 + 0.2
        (0.5, 2.0, -0.5 * 2.0),  # not clipped below where the advantage is positive
        (1.5, -2.0, 1.5 * 2.0),  # not clipped above where it is negative
        (0.5, -2.0, 0.8 * 2.0),  # clipped below
        (1.1, 3.0, -1.1 * 3.0),  # within the range
    ],
)
def test_the_policy_loss_of_one_token(ratio, advantage, expected):
    loss = policy_loss(
        ratios(ratio), torch.zeros(1, 1), torch.tensor([[advantage]]), torch.ones(1, 1)
    )
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_dual_clip_bounds_negative_advantages_only():
    old, mask = torch.zeros(1, 2), torch.ones(1, 2)
    advantages = torch.tensor([[-1.0, 1.0]])
    plain = policy_loss(ratios(10.0, 0.1), old, advantages, mask)
    dual = policy_loss(ratios(10.0, 0.1), old, advantages, mask, dual_clip=3.0)
    assert plain.item() == pytest.approx((10.0 - 0.1) / 2)
    assert dual.item() == pytest.approx((3.0 - 0.1) / 2)


def test_the_policy_loss_is_a_mean_over_tokens_or_over_a_given_count():
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    logprobs, advantages = torch.zeros(2, 2), torch.tensor([1.0, 4.0])  # one per sequence
    loss = policy_loss(logprobs, logprobs, advantages, mask)
    assert loss.item() == pytest.approx(-(1 + 1 + 4) / 3)
    assert policy_loss(logprobs, logprobs, advantages, mask, tokens=12).item() == pytest.approx(
        -0.5
    )


def test_the_first_gradient_is_that_of_policy_gradient():
    logprobs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    advantages = torch.tensor([[0.5, -3.0]])
    policy_loss(logprobs, logprobs.detach(), advantages, torch.ones(1, 2)).backward()
    assert torch.allclose(logprobs.grad, -advantages / 2)


def test_the_value_loss_takes_the_larger_of_clipped_and_unclipped():
    mask, old = torch.ones(1, 1), torch.zeros(1, 1)

    def loss(value: float, target: float, clip: float | None = 0.2) -> float:
        return value_loss(torch.tensor([[value]]), old, torch.tensor([[target]]), mask, clip).item()

    # the value moved past the clip towards the target: the clipped one is further away
    assert loss(1.0, 1.0) == pytest.approx(0.5 * (0.2 - 1.0) ** 2)
    # the value moved away from the target: the unclipped one is further away
    assert loss(1.0, -1.0) == pytest.approx(0.5 * (1.0 + 1.0) ** 2)
    assert loss(1.0, 1.0, None) == 0.0


def test_entropy_bonus_is_a_mean_over_trained_tokens():
    entropy = torch.tensor([[1.0, 2.0, NAN]])
    assert entropy_bonus(entropy, torch.tensor([[1.0, 1.0, 0.0]])).item() == pytest.approx(1.5)


def test_ratio_statistics():
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    found = ratio_statistics(ratios(1.0, 1.5, 0.9, 9.0), torch.zeros(1, 4), mask, 0.2)
    assert found["policy/clip_fraction"] == pytest.approx(1 / 3)
    assert found["policy/ratio_max"] == pytest.approx(1.5)
    assert found["policy/ratio_min"] == pytest.approx(0.9)
    k3 = ((1.5 - 1 - math.log(1.5)) + (0.9 - 1 - math.log(0.9))) / 3
    assert found["policy/approx_kl"] == pytest.approx(k3, rel=1e-4)


def test_an_extreme_log_ratio_stays_finite():
    huge = torch.full((1, 2), 500.0, requires_grad=True)
    loss = policy_loss(huge, torch.zeros(1, 2), torch.tensor([[1.0, -1.0]]), torch.ones(1, 2))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(huge.grad).all()


def test_gae_by_hand():
    rewards, values = torch.tensor([[0.0, 0.0, 1.0, 7.0]]), torch.tensor([[0.5, 0.4, 0.3, 9.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    advantages, returns = gae(rewards, values, mask, gamma=0.9, gae_lambda=0.5)
    d2 = 1.0 - 0.3
    d1 = 0.9 * 0.3 - 0.4
    d0 = 0.9 * 0.4 - 0.5
    a1 = d1 + 0.45 * d2
    a0 = d0 + 0.45 * a1
    assert torch.allclose(advantages, torch.tensor([[a0, a1, d2, 0.0]]))
    assert torch.allclose(returns, torch.tensor([[a0 + 0.5, a1 + 0.4, d2 + 0.3, 0.0]]))


def test_gae_equals_the_sum_of_discounted_errors():
    torch.manual_seed(0)
    lengths = [5, 1, 3, 0]
    rewards, values = torch.randn(4, 5), torch.randn(4, 5)
    mask = (torch.arange(5)[None] < torch.tensor(lengths)[:, None]).float()
    gamma, lam = 0.97, 0.9
    advantages, _ = gae(rewards, values, mask, gamma, lam)
    for row, length in enumerate(lengths):
        v = [*values[row, :length].tolist(), 0.0]
        delta = [rewards[row, t].item() + gamma * v[t + 1] - v[t] for t in range(length)]
        for t in range(5):
            brute = sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, length))
            assert advantages[row, t].item() == pytest.approx(brute, abs=1e-5)


def test_gae_with_lambda_1_is_the_return_less_the_value():
    rewards, values = torch.randn(2, 4), torch.randn(2, 4)
    mask = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0]])
    _, returns = gae(rewards, values, mask, 1.0, 1.0)
    togo = (rewards * mask).flip(1).cumsum(1).flip(1) * mask
    assert torch.allclose(returns, togo, atol=1e-6)


def test_the_score_sits_on_the_last_real_token():
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    kl = torch.tensor([[1.0, 2.0, 3.0, NAN], [4.0, INF, NAN, 1.0], [1.0, 1.0, 1.0, 1.0]])
    rewards = shape_rewards(torch.tensor([10.0, 20.0, 30.0]), kl, mask, kl_coef=0.1)
    expected = [[-0.1, -0.2, 9.7, 0.0], [19.6, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    assert torch.allclose(rewards, torch.tensor(expected))
    assert last_token(mask).tolist() == [2, 0, 0]


def test_whitening_uses_the_biased_variance_of_real_tokens():
    values = torch.tensor([[1.0, 2.0, 3.0, NAN], [6.0, INF, 0.0, 0.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    out = whiten(values, mask)
    std = math.sqrt(((1 - 3) ** 2 + (2 - 3) ** 2 + 0 + (6 - 3) ** 2) / 4)
    assert out[0, 0].item() == pytest.approx(-2 / std)
    assert out[1, 0].item() == pytest.approx(3 / std)
    assert (out[mask == 0] == 0).all()
    kept = whiten(values, mask, shift_mean=False)
    assert masked_mean(kept, mask).item() == pytest.approx(3.0)
    assert kept[0, 0].item() == pytest.approx(-2 / std + 3)


def test_whitening_on_two_ranks_equals_whitening_the_whole():
    torch.manual_seed(1)
    values, mask = torch.randn(6, 5), (torch.rand(6, 5) < 0.7).float()
    halves = [(values[:2], mask[:2]), (values[2:], mask[2:])]
    whole = whiten(values, mask)

    def on_rank(rank: int) -> torch.Tensor:
        """The other rank's contributions, worked out here, in the order they are asked for."""
        v, m = halves[1 - rank]
        total = sum((a * b).sum() for a, b in halves)
        mean = total / sum(b.sum() for _, b in halves)
        others = iter([torch.stack([m.sum(), (v * m).sum()]), ((v - mean).square() * m).sum()])
        return whiten(*halves[rank], reduce=lambda tensor: tensor + next(others))

    assert torch.allclose(torch.cat([on_rank(0), on_rank(1)]), whole, atol=1e-6)
    alone = torch.cat([whiten(*half) for half in halves])
    assert not torch.allclose(alone, whole, atol=1e-2)  # without the sum it is something else


def test_group_baselines():
    scores = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0])
    assert group_center(scores, 3).tolist() == [-2.0, -1.0, 3.0, 0.0, 0.0, 0.0]
    assert rloo(scores, 3).tolist() == [1 - 4.0, 2 - 3.5, 6 - 1.5, 0.0, 0.0, 0.0]
    std = math.sqrt((4 + 1 + 9) / 2)
    assert group_normalise(scores, 3)[2].item() == pytest.approx(3 / (std + 1e-4), rel=1e-5)
    assert group_normalise(scores, 3)[3:].tolist() == [0.0, 0.0, 0.0]
    assert torch.isfinite(group_normalise(scores, 1)).all()
    with pytest.raises(ValueError, match="at least 2"):
        rloo(scores, 1)


def test_kl_estimators_in_expectation_over_a_small_vocabulary():
    torch.manual_seed(0)
    p, q = torch.randn(7).softmax(0).double(), torch.randn(7).softmax(0).double()
    exact = (p * (p.log() - q.log())).sum()
    for estimator in ("k1", "k3"):
        mean = (p * estimate_kl(p.log(), q.log(), estimator)).sum()
        assert mean.item() == pytest.approx(exact.item(), rel=1e-6)
    biased = (p * estimate_kl(p.log(), q.log(), "k2")).sum()
    assert biased.item() != pytest.approx(exact.item(), rel=1e-2)
    assert (estimate_kl(p.log(), q.log(), "k3") >= 0).all()
    assert (estimate_kl(p.log(), q.log(), "k1") < 0).any()
    with pytest.raises(ValueError, match="k4"):
        estimate_kl(p, q, "k4")


def test_kl_is_bounded_a_token():
    far = estimate_kl(torch.tensor([0.0, -1e4]), torch.tensor([-1e4, 0.0]), "k3")
    assert torch.isfinite(far).all()


def test_the_adaptive_controller_by_hand():
    controller = AdaptiveKL(0.1, target=6.0, horizon=100)
    controller.update(6.6, 10)  # error 0.1
    assert controller.value == pytest.approx(0.1 * (1 + 0.1 * 10 / 100))
    controller.update(1e9, 10)  # clipped at 0.2
    assert controller.value == pytest.approx(0.101 * 1.02)
    controller.update(-5.0, 10)  # clipped at -0.2
    assert controller.value == pytest.approx(0.101 * 1.02 * 0.98)
    controller.value = 0.1
    controller.update(0.0, 10_000)  # a batch past the horizon: a fifth, never below zero
    assert controller.value == pytest.approx(0.08)
    other = AdaptiveKL(1.0, 6.0, 100)
    other.load_state_dict(controller.state_dict())
    assert other.value == controller.value
    fixed = FixedKL(0.3)
    fixed.update(99.0, 10)
    assert fixed.value == 0.3


@pytest.mark.parametrize("poison", [NAN, INF, -INF])
def test_what_stands_at_padded_positions_changes_nothing(poison):
    torch.manual_seed(2)
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])

    def results(fill: float) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(3)

        def draw() -> torch.Tensor:
            values = torch.randn(2, 3, generator=generator)
            return torch.where(mask.bool(), values, torch.tensor(fill))

        new, old, advantage, value, target, kl = (draw() for _ in range(6))
        new.requires_grad_()
        value.requires_grad_()
        loss = policy_loss(new, old, advantage, mask) + value_loss(value, old, target, mask)
        loss.backward()
        rewards = shape_rewards(torch.tensor([1.0, 2.0]), kl, mask, 0.1)
        advantages, returns = gae(draw(), draw(), mask)
        out = [loss.detach(), new.grad, value.grad, rewards, advantages, returns]
        return [*out, whiten(draw(), mask), masked_mean(draw(), mask)]

    for clean, dirty in zip(results(0.0), results(poison), strict=True):
        assert torch.equal(clean, dirty)
