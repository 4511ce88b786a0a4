"""Cross-entropy with soft labels: hand-computed values, gradients, and where its minimum lies."""

from __future__ import annotations

import math

import pytest
import torch

from reward.losses import decided, preference_loss, soft_label_term


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("margin", "label", "loss"),
    [
        (0.0, 1.0, math.log(2)),
        (0.0, 0.5, math.log(2)),
        # sigmoid(log 3) = 3/4
        (math.log(3), 1.0, math.log(4 / 3)),
        (math.log(3), 0.5, -0.5 * math.log(3 / 4) - 0.5 * math.log(1 / 4)),
        (math.log(3), 2 / 3, -2 / 3 * math.log(3 / 4) - 1 / 3 * math.log(1 / 4)),
        (-math.log(3), 0.0, math.log(4 / 3)),
        (800.0, 0.9, 80.0),  # no overflow
        (-800.0, 0.9, 720.0),
    ],
)
def test_values_computed_by_hand(margin, label, loss):
    assert preference_loss(column(margin), column(label)).item() == pytest.approx(loss, abs=1e-12)


def test_the_gradient_is_sigmoid_minus_label_and_vanishes_at_the_label():
    margins = column(-2.0, -0.3, 0.0, 1.7, math.log(3)).requires_grad_()
    labels = column(0.2, 1.0, 0.5, 0.6, 0.75)
    (gradient,) = torch.autograd.grad(preference_loss(margins, labels).sum(), margins)
    torch.testing.assert_close(gradient, margins.detach().sigmoid() - labels, atol=1e-12, rtol=0)
    assert gradient[4].item() == pytest.approx(0.0, abs=1e-12)


def test_a_label_of_1_is_the_plain_loss_bit_for_bit():
    margins = torch.randn(64, generator=torch.Generator().manual_seed(0)) * 5
    plain = -torch.nn.functional.logsigmoid(margins)
    assert torch.equal(preference_loss(margins, torch.ones(64)), plain)
    assert torch.equal(soft_label_term(margins, torch.ones(64)), torch.zeros(64))


def test_only_one_half_names_no_better_answer():
    known = decided(torch.tensor([0.5, 0.5 + 1e-8, 0.51, 0.49, 1.0]))
    assert known.tolist() == [False, False, True, True, True]
