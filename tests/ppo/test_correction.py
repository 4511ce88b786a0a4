"""Importance weights of a sampler that is not quite the policy."""

import math

import pytest
import torch

from align.ppo.correction import importance_weights

POLICY = torch.tensor([[-1.0, -1.0, -1.0, -9.0], [-2.0, -2.0, -9.0, -9.0]])
MASK = torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
RATIOS = torch.tensor([[1.0, 4.0, 0.1, 5.0], [2.0, 2.0, 5.0, 5.0]])
SAMPLER = POLICY - RATIOS.log()


@pytest.mark.parametrize(
    ("correction", "low", "expected"),
    [
        ("none", None, [[1, 1, 1, 0], [1, 1, 0, 0]]),
        ("token_truncate", None, [[1, 3, 0.1, 0], [2, 2, 0, 0]]),
        ("token_truncate", 0.5, [[1, 3, 0.5, 0], [2, 2, 0, 0]]),
        ("token_mask", None, [[1, 0, 0.1, 0], [2, 2, 0, 0]]),
        ("token_mask", 0.5, [[1, 0, 0, 0], [2, 2, 0, 0]]),
        ("sequence_truncate", None, [[0.4, 0.4, 0.4, 0], [3, 3, 0, 0]]),
        ("sequence_mask", None, [[0.4, 0.4, 0.4, 0], [0, 0, 0, 0]]),
    ],
)
def test_weights_by_hand(correction, low, expected):
    weights, metrics = importance_weights(POLICY, SAMPLER, MASK, correction, 3.0, low)
    assert torch.allclose(weights, torch.tensor(expected, dtype=torch.float32), atol=1e-6)
    dropped = (weights[MASK.bool()] == 0).float().mean().item()
    assert metrics["correction/dropped"] == pytest.approx(dropped)
    if correction == "token_mask" and low is None:
        assert metrics["correction/ratio_mean"] == pytest.approx((1 + 4 + 0.1 + 2 + 2) / 5)
        assert metrics["correction/ratio_max"] == pytest.approx(4.0)
        assert metrics["correction/clipped"] == pytest.approx(1 / 5)
        k3 = sum(r - 1 - math.log(r) for r in (1, 4, 0.1, 2, 2)) / 5
        assert metrics["correction/kl"] == pytest.approx(k3, rel=1e-4)


def test_the_weighted_gradient_is_that_of_the_policy():
    """Samples of mu, weighted, give the mean reward under pi; unweighted they do not."""
    torch.manual_seed(0)
    policy, sampler = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    reward = torch.tensor([1.0, 2.0, 5.0])
    drawn = torch.multinomial(sampler, 40_000, replacement=True)
    weights, _ = importance_weights(
        policy.log()[drawn][:, None],
        sampler.log()[drawn][:, None],
        torch.ones(len(drawn), 1),
        "token_truncate",
        high=10.0,
    )
    truth = float((policy * reward).sum())
    assert float((weights[:, 0] * reward[drawn]).mean()) == pytest.approx(truth, abs=0.03)
    assert abs(float(reward[drawn].mean()) - truth) > 0.5


def test_nothing_to_weigh_says_nothing():
    weights, metrics = importance_weights(POLICY, SAMPLER, torch.zeros_like(MASK), "token_mask")
    assert (weights == 0).all()
    assert metrics == {}
