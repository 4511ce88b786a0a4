"""Strengths fitted with the losses: choix, R's PlackettLuce as published, and plain scipy."""

from __future__ import annotations

import math
from collections.abc import Callable

import choix
import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from reward.losses import (
    davidson_loss,
    group_scores,
    pair_loss,
    plackett_luce_loss,
    rao_kupper_loss,
    rao_kupper_probabilities,
)

TRUTH = np.array([1.0, 0.3, 0.0, -0.5, -1.2, 0.6])
ALPHA = 0.05  # choix adds alpha times the sum of squares

# Davidson (1970), example 2: brands i and j of chocolate pudding, i preferred, j preferred, ties;
# as in the data set `pudding` of R's PlackettLuce.
PUDDING = torch.tensor(
    [
        [1, 2, 19, 22, 16],
        [1, 3, 16, 19, 12],
        [2, 3, 19, 19, 10],
        [1, 4, 18, 23, 13],
        [2, 4, 23, 19, 9],
        [3, 4, 19, 20, 15],
        [1, 5, 13, 19, 18],
        [2, 5, 16, 20, 12],
        [3, 5, 16, 15, 17],
        [4, 5, 17, 14, 16],
        [1, 6, 18, 21, 12],
        [2, 6, 22, 20, 12],
        [3, 6, 13, 18, 10],
        [4, 6, 14, 19, 18],
        [5, 6, 11, 21, 12],
    ]
)


def fit(objective: Callable[[torch.Tensor], torch.Tensor], size: int) -> torch.Tensor:
    """The parameters, from zero, at which the objective is smallest."""
    found = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [found],
        max_iter=500,
        tolerance_grad=1e-11,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        value = objective(found)
        value.backward()
        return value

    optimiser.step(closure)
    return found.detach()


def test_pairs_give_choixs_strengths() -> None:
    rng = np.random.default_rng(0)
    games = []
    for _ in range(300):
        i, j = rng.choice(6, 2, replace=False)
        games.append((i, j) if rng.random() < 1 / (1 + np.exp(TRUTH[j] - TRUTH[i])) else (j, i))
    won, lost = torch.tensor(np.array(games)).T
    found = fit(lambda s: pair_loss(s[won] - s[lost]).sum() + ALPHA * (s**2).sum(), 6)
    np.testing.assert_allclose(
        found, choix.opt_pairwise(6, games, alpha=ALPHA, tol=1e-12), atol=1e-6
    )
    # The same judgements as shares of votes.
    pairs, place = torch.unique(
        torch.sort(torch.stack([won, lost], 1), 1)[0], dim=0, return_inverse=True
    )
    votes = torch.bincount(place)
    first = torch.bincount(place, weights=(won < lost).double()) / votes

    def shared(s: torch.Tensor) -> torch.Tensor:
        losses = pair_loss(s[pairs[:, 0]] - s[pairs[:, 1]], soft_labels=first)
        return (votes * losses).sum() + ALPHA * (s**2).sum()

    np.testing.assert_allclose(fit(shared, 6), found, atol=1e-6)


def test_rankings_of_several_lengths_give_choixs_strengths() -> None:
    rng = np.random.default_rng(1)
    rankings = []
    for _ in range(200):
        items = rng.choice(6, rng.integers(2, 6), replace=False)
        rankings.append(items[np.argsort(-(TRUTH[items] + rng.gumbel(size=len(items))))].tolist())
    sizes = torch.tensor([len(r) for r in rankings])
    flat = torch.tensor([item for ranking in rankings for item in sorted(ranking)])
    order = torch.full((200, int(sizes.max())), -1)
    for row, ranking in enumerate(rankings):
        order[row, : len(ranking)] = torch.tensor([sorted(ranking).index(k) for k in ranking])

    def objective(s: torch.Tensor) -> torch.Tensor:
        return plackett_luce_loss(*_ordered(s[flat], sizes, order)).sum() + ALPHA * (s**2).sum()

    found = fit(objective, 6)
    expected = choix.opt_rankings(6, rankings, alpha=ALPHA, tol=1e-12)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.corrcoef(found, TRUTH)[0, 1] > 0.9
    # Only the best answer of each is known.
    best = [(r[0], r[1:]) for r in rankings]
    order = order[:, :1]
    expected = choix.opt_top1(6, best, alpha=ALPHA, tol=1e-12)
    np.testing.assert_allclose(fit(objective, 6), expected, atol=1e-6)


def _ordered(
    flat: torch.Tensor, sizes: torch.Tensor, order: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    scores, mask = group_scores(flat, sizes)
    return scores, order, mask


def test_the_small_example_of_rs_plackett_luce() -> None:
    """Its introduction, section 2.3: A > B, C > A, B > A, B > C, without pseudo-rankings."""
    won, lost = torch.tensor([[0, 1], [2, 0], [1, 0], [1, 2]]).T

    found = fit(lambda s: pair_loss(s[won] - s[lost]).sum(), 3)
    assert (found - found[0]).tolist() == pytest.approx([0, 0.8392, 0.4196], abs=5e-5)
    assert 2 * pair_loss(found[won] - found[lost]).sum().item() == pytest.approx(5.1356, abs=5e-5)


def pudding_rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """First and second brand, outcome and how often, 45 rows each."""
    first, second, *_ = PUDDING.T - 1
    outcome = torch.tensor([1, -1, 0]).repeat_interleave(len(PUDDING))
    return first.repeat(3), second.repeat(3), outcome, PUDDING[:, 2:].T.flatten()


def test_davidsons_own_example_as_published() -> None:
    """Worths, tie parameter, deviance, standard errors: PlackettLuce's introduction, 2.1, 2.2."""
    first, second, outcome, count = pudding_rows()

    def objective(p: torch.Tensor) -> torch.Tensor:
        scores = torch.cat([p.new_zeros(1), p[:5]])  # the first brand is the reference
        return (count * davidson_loss(scores[first] - scores[second], outcome, p[5])).sum()

    found = fit(objective, 6)
    worth = torch.cat([torch.zeros(1).double(), found[:5]]).softmax(dim=0)
    published = [0.1388005, 0.1729985, 0.1617420, 0.1653930, 0.1586805, 0.2023855]
    # Published after seven iterations, which had not quite converged.
    assert worth.tolist() == pytest.approx(published, abs=5e-5)
    assert found[5].exp().item() == pytest.approx(0.7468147, abs=2e-4)
    assert 2 * objective(found).item() == pytest.approx(1619.4, abs=0.05)
    hessian = torch.autograd.functional.hessian(objective, found)
    errors = torch.linalg.inv(hessian).diagonal().sqrt()
    published = [0.1872168, 0.1935181, 0.1882110, 0.1927043, 0.1924059, 0.0825]
    assert errors.tolist() == pytest.approx(published, abs=5e-5)


def test_rao_kupper_of_the_same_data_is_scipys_maximum_of_the_papers_likelihood() -> None:
    table = PUDDING.numpy().astype(float)

    def negative(p: np.ndarray) -> float:
        pi = np.exp(np.concatenate([[0.0], p[:5]]))
        theta = 1 + np.exp(p[5])
        total = 0.0
        for i, j, wins, losses, ties in table:
            a, b = pi[int(i) - 1], pi[int(j) - 1]
            total += wins * np.log(a / (a + theta * b)) + losses * np.log(b / (b + theta * a))
            total += ties * np.log((theta**2 - 1) * a * b / ((a + theta * b) * (b + theta * a)))
        return -total

    expected = minimize(negative, np.zeros(6), method="BFGS", options={"gtol": 1e-6})
    first, second, outcome, count = pudding_rows()

    def objective(p: torch.Tensor) -> torch.Tensor:
        scores = torch.cat([p.new_zeros(1), p[:5]])
        return (count * rao_kupper_loss(scores[first] - scores[second], outcome, p[5])).sum()

    found = fit(objective, 6)
    np.testing.assert_allclose(found, expected.x, atol=1e-5)
    assert objective(found).item() == pytest.approx(expected.fun, rel=1e-10)


def test_two_answers_and_a_tie_parameter_fit_three_shares_exactly() -> None:
    counts = torch.tensor([50, 20, 30]).double()  # wins, ties, losses
    outcome = torch.tensor([1, 0, -1])
    for loss in (rao_kupper_loss, davidson_loss):
        found = fit(lambda p, loss=loss: (counts * loss(p[0].expand(3), outcome, p[1])).sum(), 2)
        if loss is davidson_loss:  # odds of win and loss; ties over their geometric mean
            assert found[0].item() == pytest.approx(math.log(50 / 30), abs=1e-6)
            assert found[1].exp().item() == pytest.approx(20 / math.sqrt(50 * 30), abs=1e-6)
        else:
            shares = rao_kupper_probabilities(found[:1], found[1])
            torch.testing.assert_close(shares[0], counts / 100, atol=1e-7, rtol=0)
