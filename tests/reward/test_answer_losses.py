"""Ratings, scales, attributes and steps: by hand, against libraries, and unknown values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reward.losses import (
    aggregate_steps,
    combine_attributes,
    ordinal_loss,
    rating_loss,
    step_loss,
)

NAN = math.nan
HOW = ("min", "prod", "last", "mean")
RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a slow machine


def rows(*values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_ratings_by_hand():
    predictions = rows([1.0, 2.0, 5.0], [0.0, 0.0, 0.0])
    targets = rows([3.0, NAN, 4.5], [NAN, NAN, NAN])
    assert rating_loss(predictions, targets).tolist() == [(4 + 0.25) / 2, 0]
    # Huber at 1: 1 * (2 - 1/2), and 0.25 / 2.
    assert rating_loss(predictions, targets, "huber").tolist() == [(1.5 + 0.125) / 2, 0]
    wide = rating_loss(predictions, targets, "huber", delta=10.0)
    assert wide.tolist() == [(4 + 0.25) / 4, 0]


@pytest.mark.parametrize("kind", ["mse", "huber"])
def test_unknown_ratings_have_no_gradient(kind):
    predictions = rows([1.0, 2.0], [0.3, -4.0]).requires_grad_()
    targets = rows([3.0, NAN], [NAN, NAN])
    (gradient,) = torch.autograd.grad(rating_loss(predictions, targets, kind).sum(), predictions)
    assert gradient.tolist() == [[-4.0 if kind == "mse" else -1.0, 0], [0, 0]]
    known = rows([3.0, 0.1], [2.0, -4.5])
    assert torch.autograd.gradcheck(lambda x: rating_loss(x, known, kind), (predictions,))


def test_ratings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"targets has the shape \(2,\); expected \(1, 2\)"):
        rating_loss(torch.zeros(1, 2), torch.zeros(2))
    with pytest.raises(ValueError, match="kind is 'mae'"):
        rating_loss(torch.zeros(1, 2), torch.zeros(1, 2), "mae")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="delta is 0"):
        rating_loss(torch.zeros(1, 2), torch.zeros(1, 2), "huber", 0)


def thresholds(cuts: torch.Tensor) -> torch.Tensor:
    return torch.cat([cuts[:1], cuts[0] + cuts[1:].exp().cumsum(0)])


@RELAXED
@given(
    st.lists(st.floats(-8, 8), min_size=1, max_size=4),
    # Not so far out that the textbook difference below loses its digits.
    st.lists(st.floats(-3, 0.5), min_size=1, max_size=6),
)
def test_a_scale_is_the_difference_of_two_sigmoids(predictions, raw):
    cuts = torch.tensor(raw).double()
    bounds = [-math.inf, *thresholds(cuts).tolist(), math.inf]
    total = 0.0
    for step in range(len(bounds) - 1):
        f = torch.tensor([predictions]).double()
        found = ordinal_loss(f, torch.full_like(f, step), cuts).item()
        low, high = (torch.tensor(b).double() - f for b in bounds[step : step + 2])
        expected = -(high.sigmoid() - low.sigmoid()).log().mean().item()
        assert found == pytest.approx(expected, rel=1e-6)
        first = ordinal_loss(f[:, :1], torch.full_like(f[:, :1], step), cuts)
        total += (-first).exp().item()
    assert total == pytest.approx(1)  # over the steps of the scale


def test_the_scale_is_statsmodels():
    from statsmodels.miscmodels.ordinal_model import OrderedModel

    rng = np.random.default_rng(0)
    features, ratings = rng.normal(size=(50, 2)), rng.integers(0, 7, 50)
    ratings[:7] = range(7)  # each step occurs
    model = OrderedModel(ratings, features, distr="logit")
    params = rng.normal(size=8) * 0.5  # two slopes, one threshold, five logs of distances
    predictions = torch.tensor(features @ params[:2])[:, None]
    cuts = torch.tensor(params[2:]).requires_grad_()
    found = ordinal_loss(predictions, torch.tensor(ratings).double()[:, None], cuts)
    np.testing.assert_allclose(-found.detach(), model.loglikeobs(params), rtol=1e-9)
    (gradient,) = torch.autograd.grad(-found.sum(), cuts)
    np.testing.assert_allclose(gradient, model.score(params)[2:], rtol=1e-4, atol=1e-5)


def test_each_attribute_may_have_a_scale_of_its_own():
    predictions = rows([0.3, -1.0], [2.0, 0.1]).requires_grad_()
    targets = rows([0, 3], [2, NAN])
    cuts = rows([-1.0, 0.2, 0.5], [0.0, -0.3, 0.1]).requires_grad_()
    found = ordinal_loss(predictions, targets, cuts)
    one, two = (ordinal_loss(predictions[:, [a]], targets[:, [a]], cuts[a]) for a in (0, 1))
    torch.testing.assert_close(found, torch.stack([(one[0] + two[0]) / 2, one[1]]))
    assert torch.autograd.gradcheck(lambda x, c: ordinal_loss(x, targets, c), (predictions, cuts))
    with pytest.raises(ValueError, match=r"cuts has the shape \(3, 3\); expected"):
        ordinal_loss(predictions, targets, torch.zeros(3, 3))


@pytest.mark.parametrize("wrong", [-1.0, 4.0, 1.5])
def test_a_rating_off_the_scale_is_seen(wrong):
    found = ordinal_loss(rows([0.0], [0.0]), rows([wrong], [3.0]), torch.zeros(3))
    assert found[0].isnan()
    assert found[1].isfinite()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_predictions_far_off_the_scale_stay_finite(dtype):
    cuts = torch.zeros(3, dtype=dtype)
    for f in (-1e4, 1e4):
        predictions = torch.full((4, 1), f, dtype=dtype, requires_grad=True)
        losses = ordinal_loss(predictions, torch.arange(4.0)[:, None], cuts)
        (gradient,) = torch.autograd.grad(losses.sum(), predictions)
        assert losses.isfinite().all()
        assert gradient.isfinite().all()
        assert losses.max().item() == pytest.approx(1e4, rel=1e-3)


def test_attributes_are_combined_with_given_or_learned_weights():
    scores = rows([1.0, 2.0, 4.0], [0.0, 1.0, -1.0])
    given = torch.tensor([1.0, 0.5, -0.25])
    assert combine_attributes(scores, given).tolist() == [1.0, 0.75]
    raw = torch.log(torch.tensor([1.0, 2.0, 5.0]).double()).requires_grad_()
    learned = combine_attributes(scores, raw, learned=True)
    assert learned.tolist() == pytest.approx([(1 + 4 + 20) / 8, (2 - 5) / 8])
    assert torch.autograd.gradcheck(lambda w: combine_attributes(scores, w, learned=True), (raw,))
    with pytest.raises(ValueError, match=r"weights has the shape \(2,\); expected \(3,\)"):
        combine_attributes(scores, torch.ones(2))


def test_steps_are_binary_cross_entropy_over_real_steps():
    scores = rows([0.5, -2.0, 9.0], [1.0, NAN, math.inf], [0.0, 0.0, 0.0]).requires_grad_()
    labels = rows([1, 0, 0.25], [0.5, 1, NAN], [1, 1, 1])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]])
    found = step_loss(scores, labels, mask)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    expected = [entropy(scores[0], labels[0]).item(), entropy(scores[1, :1], labels[1, :1]).item()]
    assert found.tolist() == pytest.approx([*expected, 0.0], rel=1e-12)
    (gradient,) = torch.autograd.grad(found.sum(), scores)
    assert gradient.isfinite().all()
    assert (gradient[mask == 0] == 0).all()
    kept = (scores.detach().sigmoid() - labels)[mask == 1] / torch.tensor([3, 3, 3, 1])
    torch.testing.assert_close(gradient[mask == 1], kept)
    torch.testing.assert_close(step_loss(scores[:1], labels[:1]), found[:1])
    with pytest.raises(ValueError, match="labels has the shape"):
        step_loss(scores, labels[:, :2])
    with pytest.raises(ValueError, match="mask has the shape"):
        step_loss(scores, labels, mask[:, :2])
    assert step_loss(rows([-1e4, 1e4]), rows([1, 0])).tolist() == [1e4]


def test_an_answer_is_judged_by_its_steps_by_hand():
    # sigmoid(log 3) = 3/4, sigmoid(-log 3) = 1/4
    scores = rows([math.log(3), -math.log(3), 0.0, NAN], [math.log(3), 0.0, 5.0, 7.0])
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    expected = {"min": 1 / 4, "prod": 3 / 32, "last": 1 / 2, "mean": 1 / 2}
    for how, probability in expected.items():
        found = aggregate_steps(scores, mask, how)  # type: ignore[arg-type]
        assert found.exp().tolist() == pytest.approx([probability, 3 / 4])
    scores.requires_grad_()
    for how in HOW:  # nor does the padding get a gradient
        total = aggregate_steps(scores, mask, how).sum()  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(total, scores)
        assert gradient.isfinite().all()
        assert (gradient[mask == 0] == 0).all()


@RELAXED
@given(st.lists(st.floats(-30, 30), min_size=1, max_size=6), st.integers(0, 3))
def test_aggregates_are_ordered_and_padding_changes_nothing(values, padding):
    scores = torch.tensor([values]).double()
    found = {how: aggregate_steps(scores, None, how) for how in HOW}  # type: ignore[arg-type]
    assert found["prod"] <= found["min"]
    assert found["min"] <= found["mean"] + 1e-12
    assert found["min"] <= found["last"]
    wide = torch.cat([scores, torch.full((1, padding), -100.0).double()], dim=1)
    mask = torch.arange(len(values) + padding)[None] < len(values)
    for how in HOW:
        torch.testing.assert_close(aggregate_steps(wide, mask, how), found[how])  # type: ignore[arg-type]


def test_aggregates_of_many_bad_steps_stay_apart_and_have_gradients():
    scores = torch.full((2, 100), -50.0)
    scores[1, 0] = -40.0
    scores.requires_grad_()
    found = aggregate_steps(scores, None, "prod")
    assert found[0] < found[1]
    assert found.isfinite().all()
    small = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    for how in HOW:
        assert torch.autograd.gradcheck(
            lambda x, how=how: aggregate_steps(x, mask, how), (small.requires_grad_(),)
        )


def test_an_answer_without_steps_has_no_reward_and_unknown_ways_are_refused():
    mask = torch.tensor([[1, 1], [0, 0]])
    for how in HOW:
        found = aggregate_steps(torch.zeros(2, 2), mask, how)  # type: ignore[arg-type]
        assert found.isnan().tolist() == [False, True]
    with pytest.raises(ValueError, match="how is 'max'"):
        aggregate_steps(torch.zeros(1, 2), None, "max")  # type: ignore[arg-type]
