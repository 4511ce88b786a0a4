"""Plackett-Luce and weighted pairs: as probabilities, against loops, and what must not matter."""

from __future__ import annotations

import math
from itertools import combinations, permutations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feedback.schema import Ranking
from reward.losses import (
    check_rankings,
    group_scores,
    order_ranks,
    plackett_luce_loss,
    preference_loss,
    ranking_pairs_loss,
)
from reward.training_rows import ranking_pairs, ranking_rows

SCORES = torch.tensor([[0.3, -1.2, 2.0, 0.1]]).double()
RELAXED = settings(  # a slow machine
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
LOSSES = {
    "plackett-luce": plackett_luce_loss,
    "answer": lambda *a: pairs_loss(*a, weighting="answer"),
    "ranking": lambda *a: pairs_loss(*a, weighting="ranking"),
}


def pairs_loss(scores, order, mask=None, weighting="answer") -> torch.Tensor:
    """The loss of pairs, from an order as Plackett-Luce's takes it."""
    return ranking_pairs_loss(scores, order_ranks(order, scores), mask, weighting)


def logsigmoid(margin: torch.Tensor) -> torch.Tensor:
    return -(1 + (-margin).exp()).log()


def naive_plackett_luce(scores: torch.Tensor, order: list[int], real: list[int]) -> torch.Tensor:
    """The likelihood as a product of choices, with strengths and loops."""
    strengths, left = scores.exp(), list(real)
    likelihood = torch.ones((), dtype=scores.dtype)
    for answer in order:
        likelihood = likelihood * strengths[answer] / sum(strengths[k] for k in left)
        left.remove(answer)
    return -likelihood.log()


@st.composite
def rankings(draw):
    """Scores (1, K), an order of the first m places, and which answers are real."""
    width = draw(st.integers(2, 6))
    scores = draw(st.lists(st.floats(-5, 5), min_size=width, max_size=width))
    real = draw(st.permutations(range(width)))[: draw(st.integers(2, width))]
    places = draw(st.integers(1, len(real)))
    order = list(real[:places]) + [-1] * draw(st.integers(0, width - places))
    mask = [int(k in real) for k in range(width)]
    return torch.tensor([scores]).double(), torch.tensor([order]), torch.tensor([mask])


def parts(order: torch.Tensor, mask: torch.Tensor) -> tuple[list[int], list[int]]:
    known = [k for k in order[0].tolist() if k >= 0]
    return known, mask[0].nonzero().flatten().tolist()


@RELAXED
@given(rankings())
def test_values_and_gradients_are_those_of_loops(case):
    scores, order, mask = case
    known, real = parts(order, mask)
    scores.requires_grad_()
    better = [(i, j) for place, i in enumerate(known) for j in real if j not in known[: place + 1]]
    pairs = sum((-logsigmoid(scores[0, i] - scores[0, j]) for i, j in better), scores.sum() * 0)
    expected = {
        "plackett-luce": naive_plackett_luce(scores[0], known, real),
        "answer": pairs / (len(real) - 1),
        "ranking": pairs / len(better),
    }
    for name, loss in LOSSES.items():
        found = loss(scores, order, mask)
        assert found.shape == (1,)
        torch.testing.assert_close(found[0], expected[name], rtol=1e-9, atol=1e-9)
        ours, theirs = (
            torch.autograd.grad(x.sum(), scores, retain_graph=True)[0]
            for x in (found, expected[name])
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        assert (ours[mask == 0] == 0).all()


def test_all_orders_together_have_probability_one():
    orders = torch.tensor(list(permutations(range(4))))
    losses = plackett_luce_loss(SCORES.expand(24, 4), orders)
    assert (-losses).exp().sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("places", [1, 2, 3])
def test_the_first_places_have_the_probability_of_all_orders_that_begin_so(places):
    orders = list(permutations(range(4)))
    full = (-plackett_luce_loss(SCORES.expand(24, 4), torch.tensor(orders))).exp()
    top = torch.tensor([[2, 0, 3][:places] + [-1] * (4 - places)])
    begins = torch.tensor([order[:places] == (2, 0, 3)[:places] for order in orders])
    found = (-plackett_luce_loss(SCORES, top)).exp().item()
    assert found == pytest.approx(full[begins].sum().item(), abs=1e-12)
    # Columns of -1 may be left out, and the last place says nothing new.
    assert torch.equal(plackett_luce_loss(SCORES, top[:, :places]), plackett_luce_loss(SCORES, top))
    if places == 3:
        whole = plackett_luce_loss(SCORES, torch.tensor([[2, 0, 3, 1]]))
        torch.testing.assert_close(whole, plackett_luce_loss(SCORES, top), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_two_answers_are_bradley_terry_bit_for_bit(name, dtype):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(500, 2, generator=generator, dtype=dtype)
    scores = (scores * torch.logspace(-3, 4, 500, dtype=dtype)[:, None]).requires_grad_()
    first = torch.randint(0, 2, (500,), generator=generator)
    order = torch.stack([first, 1 - first], dim=1)
    ordered = scores.gather(1, order)
    expected = preference_loss(ordered[:, 0] - ordered[:, 1], torch.ones(500, dtype=dtype))
    for given_order in (order, order[:, :1]):  # that the other is worse goes without saying
        found = LOSSES[name](scores, given_order, torch.ones(500, 2))
        assert torch.equal(found, expected)
        ours, theirs = (
            torch.autograd.grad(x.sum(), scores, retain_graph=True)[0] for x in (found, expected)
        )
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", LOSSES)
@RELAXED
@given(case=rankings(), shift=st.floats(-100, 100), data=st.data())
def test_shifts_padding_and_the_order_of_columns_do_not_matter(name, case, shift, data):
    loss = LOSSES[name]
    scores, order, mask = case
    expected = loss(scores, order, mask)
    torch.testing.assert_close(loss(scores + shift, order, mask), expected, rtol=1e-9, atol=1e-9)

    moved = torch.tensor(data.draw(st.permutations(range(scores.shape[1]))))
    back = moved.argsort()  # column c of the old is column back[c] of the new
    new_order = torch.where(order >= 0, back[order.clamp(min=0)], order)
    found = loss(scores[:, moved], new_order, mask[:, moved])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)

    # Padding, whatever is in it, and rows beside: the same loss, and no gradient into the padding.
    junk = torch.tensor([[math.nan, math.inf, -math.inf, 1e300]]).double()
    wide = torch.cat([scores, junk], dim=1)
    wide = torch.cat([wide, torch.zeros_like(wide)]).requires_grad_()
    rows = torch.cat([order, torch.full((1, 3), -1)], dim=1)
    rows = torch.cat([rows, torch.full_like(rows, -1)])
    marks = torch.cat([mask, torch.zeros(1, 4, dtype=mask.dtype)], dim=1)
    marks = torch.cat([marks, torch.zeros_like(marks)])
    found = loss(wide, rows, marks)
    torch.testing.assert_close(found[:1], expected, rtol=1e-12, atol=1e-12)
    assert found[1] == 0  # no answer at all
    (gradient,) = torch.autograd.grad(found.sum(), wide)
    assert gradient.isfinite().all()
    assert (gradient[marks == 0] == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck(name):
    scores = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    order = torch.tensor([[4, 0, 1, 2, 3], [1, 3, -1, -1, -1], [2, 0, 1, -1, -1]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])
    assert torch.autograd.gradcheck(
        lambda x: LOSSES[name](x, order, mask), (scores.requires_grad_(),)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_scores_far_apart_give_finite_losses_and_gradients(name, dtype):
    scores = torch.tensor([[1e4, 0.0, -1e4]], dtype=dtype, requires_grad=True)
    right, wrong = torch.tensor([[0, 1, 2]]), torch.tensor([[2, 1, 0]])
    assert LOSSES[name](scores, right).item() == 0
    loss = LOSSES[name](scores, wrong)
    # Plackett-Luce: 2e4 for the first place, 1e4 for the second. Pairs: 1e4 + 1e4 + 2e4, weighted.
    assert loss.item() == pytest.approx({"answer": 2e4, "ranking": 4e4 / 3}.get(name, 3e4))
    (gradient,) = torch.autograd.grad(loss.sum(), scores)
    assert gradient.isfinite().all()
    assert gradient.abs().max() <= 2


def test_half_precision_is_computed_in_float32():
    scores, order = SCORES.bfloat16(), torch.tensor([[0, 1, 2, 3]])
    for loss in LOSSES.values():
        assert loss(scores, order).dtype == torch.float32
        assert torch.equal(loss(scores, order), loss(scores.float(), order))


def test_per_answer_weights_are_those_of_the_rows():
    said = [
        Ranking("p", ("x", "y", "z", "w"), (2, 0, 3, 1), "ann"),
        Ranking("q", ("x", "y"), (1, 0), "ann"),
        Ranking("r", ("x", "y", "z"), (0, 1, 2), "ann"),
    ]
    generator = torch.Generator().manual_seed(3)
    scored = {
        (r.prompt, text): torch.randn((), generator=generator).double()
        for r in said
        for text in r.responses
    }
    by_rows = dict.fromkeys("pqr", 0.0)
    for row in ranking_pairs(said):
        margin = scored[row["prompt"], row["chosen"]] - scored[row["prompt"], row["rejected"]]
        by_rows[row["prompt"]] += row["weight"] * -logsigmoid(margin).item()
    # The same through the K-wise rows, as a trainer has them: answers side by side, then padded.
    rows = ranking_rows(said)
    flat = torch.stack([scored[row["prompt"], text] for row in rows for text in row["responses"]])
    scores, mask = group_scores(flat, torch.tensor([len(row["responses"]) for row in rows]))
    order = torch.tensor([row["order"] + [-1] * (4 - len(row["order"])) for row in rows])
    check_rankings(order, mask)
    found = pairs_loss(scores, order, mask, "answer")
    assert found.tolist() == pytest.approx(list(by_rows.values()), rel=1e-12)
    each = pairs_loss(scores, order, mask, "ranking")
    sizes = torch.tensor([4, 2, 3])
    torch.testing.assert_close(each, found * (sizes - 1) / (sizes * (sizes - 1) / 2))


def test_each_answer_or_each_ranking_counts_once():
    """With equal scores every pair costs log 2: the loss is log 2 times the sum of the weights."""
    scores = torch.zeros(3, 5).double()
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    order = torch.tensor([[0, 1, -1, -1, -1], [2, 0, 1, -1, -1], [0, 1, 2, 3, 4]])
    log2 = math.log(2)
    found = pairs_loss(scores, order, mask, "answer")  # K(K-1)/2 pairs of weight 1/(K-1)
    assert found.tolist() == pytest.approx([1 * log2, 1.5 * log2, 2.5 * log2])
    found = pairs_loss(scores, order, mask, "ranking")
    assert found.tolist() == pytest.approx([log2] * 3)


def test_answers_in_one_row_become_a_padded_matrix():
    flat = torch.arange(6.0, requires_grad=True)
    scores, mask = group_scores(flat, torch.tensor([2, 1, 3]))
    assert scores.tolist() == [[0, 1, 0], [2, 0, 0], [3, 4, 5]]
    assert mask.tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 1]]
    (gradient,) = torch.autograd.grad((scores * 2).sum(), flat)
    assert gradient.tolist() == [2] * 6
    hidden, mask = group_scores(torch.arange(6.0).reshape(3, 2), torch.tensor([1, 2]))
    assert hidden.tolist() == [[[0, 1], [0, 0]], [[2, 3], [4, 5]]]
    with pytest.raises(ValueError, match="sizes sum to 5; expected 6"):
        group_scores(flat, torch.tensor([2, 3]))
    empty, mask = group_scores(torch.zeros(0), torch.tensor([], dtype=torch.long))
    assert empty.shape == mask.shape == (0, 0)


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ([1, 1, -1], "names an answer twice"),
        ([0, 3, -1], "names an answer that the mask leaves out"),
        ([0, 4, -1], "has a number of 4 or more"),
        ([0, -2, -1], "below -1"),
        ([0, -1, 1], "knows a place after an unknown one"),
    ],
)
def test_an_order_without_meaning_is_refused_by_name(order, said):
    good, mask = [2, 0, 1], torch.tensor([[1, 1, 1, 0]] * 2)
    check_rankings(torch.tensor([good, [0, -1, -1]]), mask)
    with pytest.raises(ValueError, match=said) as caught:
        check_rankings(torch.tensor([good, order]), mask)
    assert str(caught.value).startswith(f"order 1, {order}, ")


def test_shapes_and_weightings_that_do_not_fit_are_refused():
    order = torch.tensor([[0, 1]])
    with pytest.raises(ValueError, match="weighting is 'both'; expected one of"):
        pairs_loss(torch.zeros(1, 2), order, None, "both")  # type: ignore[arg-type]
    for loss in LOSSES.values():
        with pytest.raises(ValueError, match=r"\(2, 2\) and \(1, 2\); expected \(B, K\)"):
            loss(torch.zeros(2, 2), order)
        with pytest.raises(ValueError, match=r"mask has the shape \(1, 3\)"):
            loss(torch.zeros(1, 2), order, torch.ones(1, 3))


def test_pairs_of_one_ranking_are_all_of_them():
    order = [2, 0, 3, 1]
    expected = sum(-logsigmoid(SCORES[0, i] - SCORES[0, j]) for i, j in combinations(order, 2))
    found = pairs_loss(SCORES, torch.tensor([order]), weighting="ranking")
    assert found.item() == pytest.approx(expected.item() / 6, rel=1e-12)
