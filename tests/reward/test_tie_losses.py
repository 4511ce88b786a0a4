"""Rao-Kupper and Davidson against their textbook forms in strengths, limits and far-out margins."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reward.losses import (
    davidson_loss,
    davidson_probabilities,
    pair_loss,
    rao_kupper_loss,
    rao_kupper_probabilities,
    tie_start,
)

MODELS = {
    "rao-kupper": (rao_kupper_loss, rao_kupper_probabilities),
    "davidson": (davidson_loss, davidson_probabilities),
}
OUTCOMES = torch.tensor([1, 0, -1])  # win, tie, loss
moderate = st.floats(-20, 20)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def textbook(model: str, first: float, second: float, raw: float) -> list[float]:
    """P(win), P(tie), P(loss) in strengths, as the papers write them."""
    a, b = math.exp(first), math.exp(second)
    if model == "rao-kupper":
        theta = 1 + math.exp(raw)
        win, loss = a / (a + theta * b), b / (b + theta * a)
        return [win, (theta**2 - 1) * a * b / ((a + theta * b) * (b + theta * a)), loss]
    tie = math.exp(raw) * math.sqrt(a * b)
    return [a / (a + b + tie), tie / (a + b + tie), b / (a + b + tie)]


@pytest.mark.parametrize("model", MODELS)
@given(first=moderate, second=moderate, raw=st.floats(-10, 10))
def test_probabilities_are_the_papers(model, first, second, raw):
    loss, probabilities = MODELS[model]
    margin, parameter = column(first - second), column(raw)[0]
    expected = textbook(model, first, second, raw)
    found = probabilities(margin, parameter)[0]
    torch.testing.assert_close(found, column(*expected), rtol=1e-9, atol=0)
    assert found.sum().item() == pytest.approx(1, abs=1e-12)
    losses = loss(margin.expand(3), OUTCOMES, parameter)
    torch.testing.assert_close(losses, -column(*expected).log(), rtol=1e-9, atol=1e-9)
    # Seen from the other answer: a win is a loss.
    torch.testing.assert_close(probabilities(-margin, parameter)[0], found.flip(0))


@pytest.mark.parametrize("model", MODELS)
def test_gradients_are_those_of_the_textbook_likelihood(model):
    loss, _ = MODELS[model]
    scores = column(0.3, -1.2, 2.0, 0.1).requires_grad_()
    raw = column(-0.4).squeeze().requires_grad_()
    pairs = torch.tensor([[0, 1], [1, 2], [3, 0], [2, 3], [1, 3]])
    outcome = torch.tensor([1, -1, 0, 1, 0])
    strength = scores.exp()
    a, b = strength[pairs[:, 0]], strength[pairs[:, 1]]
    if model == "rao-kupper":
        theta = 1 + raw.exp()
        win, lose = a / (a + theta * b), b / (b + theta * a)
        tie = (theta**2 - 1) * a * b / ((a + theta * b) * (b + theta * a))
    else:
        whole = a + b + raw.exp() * (a * b).sqrt()
        win, tie, lose = a / whole, raw.exp() * (a * b).sqrt() / whole, b / whole
    likelihood = torch.where(outcome == 1, win, torch.where(outcome == 0, tie, lose))
    ours = loss(scores[pairs[:, 0]] - scores[pairs[:, 1]], outcome, raw).sum()
    theirs = -likelihood.log().sum()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    for found, expected in zip(
        torch.autograd.grad(ours, (scores, raw)),
        torch.autograd.grad(theirs, (scores, raw)),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("model", MODELS)
def test_gradcheck_of_hard_and_soft_outcomes(model):
    loss, _ = MODELS[model]
    margins = column(-2.0, 0.0, 0.7).requires_grad_()
    raw = column(0.3).squeeze().requires_grad_()
    soft = torch.tensor([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0], [0.6, 0.0, 0.4]]).double()
    for outcome in (OUTCOMES, soft):
        assert torch.autograd.gradcheck(
            lambda x, t, outcome=outcome: loss(x, outcome, t), (margins, raw)
        )


@pytest.mark.parametrize("model", MODELS)
def test_soft_outcomes_are_the_mean_over_hard_ones(model):
    loss, _ = MODELS[model]
    margin, raw = column(0.8), column(-0.5)[0]
    shares = torch.tensor([[0.5, 0.2, 0.3]]).double()
    mixed = (shares[0] * loss(margin.expand(3), OUTCOMES, raw)).sum()
    torch.testing.assert_close(loss(margin, shares, raw)[0], mixed)
    certain = torch.eye(3).double()
    hard = loss(margin.expand(3), OUTCOMES, raw)
    assert torch.equal(loss(margin.expand(3), certain, raw), hard)


@pytest.mark.parametrize("model", MODELS)
def test_without_room_for_ties_it_is_bradley_terry(model):
    loss, probabilities = MODELS[model]
    margins = column(-3.0, 0.0, 1.5).requires_grad_()
    never = column(-math.inf)[0]
    ones = torch.ones(3, dtype=torch.long)
    found = loss(margins, ones, never)
    torch.testing.assert_close(found, pair_loss(margins), rtol=1e-14, atol=0)
    assert probabilities(margins, never)[:, 1].tolist() == [0, 0, 0]
    # Soft outcomes without ties are soft labels.
    labels = column(0.2, 0.5, 1.0)
    shares = torch.stack([labels, torch.zeros(3).double(), 1 - labels], dim=1)
    soft = loss(margins, shares, never)
    torch.testing.assert_close(soft, pair_loss(margins, soft_labels=labels), rtol=1e-12, atol=1e-14)
    for one, other in ((found, pair_loss(margins)), (soft, pair_loss(margins, soft_labels=labels))):
        mine, theirs = (torch.autograd.grad(x.sum(), margins)[0] for x in (one, other))
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(loss(margins, ones, column(-30.0)[0]), found, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("model", MODELS)
def test_far_out_margins_and_parameters_stay_finite(model, dtype):
    loss, _ = MODELS[model]
    for d in (-1e4, 1e4):
        for raw in (-1e3, 0.0, 1e3):
            margins = torch.full((3,), d, dtype=dtype, requires_grad=True)
            parameter = torch.tensor(raw, dtype=dtype, requires_grad=True)
            losses = loss(margins, OUTCOMES, parameter)
            gradients = torch.autograd.grad(losses.sum(), (margins, parameter))
            assert losses.isfinite().all()
            assert (losses >= 0).all()
            assert all(gradient.isfinite().all() for gradient in gradients)
    # A win that costs nothing, and a loss that costs the whole distance.
    far = loss(torch.full((2,), 1e4, dtype=dtype), OUTCOMES[[0, 2]], torch.tensor(0.0, dtype=dtype))
    assert far[0].item() == 0
    assert far[1].item() == pytest.approx(1e4, abs=1)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("share", [0.01, 0.4, 0.9])
def test_a_start_gives_equal_answers_the_share_of_ties(model, share):
    found = MODELS[model][1](column(0.0), column(tie_start(share))[0])[0]
    torch.testing.assert_close(found, column((1 - share) / 2, share, (1 - share) / 2))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, math.nan])
def test_a_start_without_meaning_is_refused(share):
    with pytest.raises(ValueError, match="share of ties"):
        tie_start(share)


@pytest.mark.parametrize("model", MODELS)
def test_outcomes_of_another_kind_are_refused(model):
    loss, _ = MODELS[model]
    with pytest.raises(ValueError, match=r"type torch.float32; expected whole numbers"):
        loss(torch.zeros(2), torch.tensor([0.9, 0.5]), torch.tensor(0.0))
    with pytest.raises(ValueError, match=r"shape \(2, 2\); expected \(2, 3\)"):
        loss(torch.zeros(2), torch.zeros(2, 2), torch.tensor(0.0))


@pytest.mark.parametrize("model", MODELS)
def test_half_precision_is_computed_in_float32(model):
    loss, _ = MODELS[model]
    margins = torch.tensor([0.5, 1.0, -2.0], dtype=torch.bfloat16)
    found = loss(margins, OUTCOMES, torch.tensor(0.1))
    assert found.dtype == torch.float32
    assert torch.equal(found, loss(margins.float(), OUTCOMES, torch.tensor(0.1)))
