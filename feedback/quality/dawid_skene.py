"""The true label of each item and each annotator's reliability, from votes alone.

Dawid and Skene (Applied Statistics 28, 1979): item i has a true class j with probability p_j, and
annotator k says l with probability pi^k_jl whatever else is true of the item. EM from the share of
votes:

    E (2.5):        T_ij ~ p_j prod_votes pi^k_jl
    M (2.3, 2.4):   pi^k_jl ~ sum_i T_ij [k said l of i],   p_j = mean_i T_ij

Leaves out the items' difficulty, and dependence between annotators (two who copy each other count
as two witnesses).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from feedback.errors import DataError
from feedback.quality.votes import LABELS, Vote, VoteTable, label_votes, vote_table
from feedback.schema import Comparison

MIRROR: dict[Hashable, Hashable] = {
    "a": "b",
    "tie": "tie",
    "b": "a",
}  # what turning a pair round does to its labels


@dataclass(frozen=True)
class DawidSkene:
    """What EM found; arrays in the order of `items`, `annotators` and `labels`."""

    items: tuple[str, ...]
    annotators: tuple[str, ...]
    labels: tuple[Hashable, ...]
    posterior: NDArray[np.float64]  # (N, L): P(true label | votes); rows sum to 1
    confusion: NDArray[np.float64]  # (K, L, L): P(said | true), [annotator, true, said]
    prior: NDArray[np.float64]  # (L,)
    objective: tuple[float, ...]  # log-likelihood (+ log prior of the smoothing), never falling
    converged: bool

    def reliability(self) -> dict[str, float]:
        """P(an annotator names the true label), by annotator: sum_j p_j pi_jj."""
        right = np.einsum("j,kjj->k", self.prior, self.confusion)
        return dict(zip(self.annotators, map(float, right), strict=True))

    def posteriors(self) -> dict[str, dict[Hashable, float]]:
        """P(true label) by item and label."""
        return {
            item: dict(zip(self.labels, map(float, row), strict=True))
            for item, row in zip(self.items, self.posterior, strict=True)
        }


def dawid_skene(
    votes: Iterable[Vote],
    *,
    labels: Sequence[Hashable] | None = None,
    mirror: Mapping[Hashable, Hashable] | None = None,
    smoothing: float = 0.0,
    tolerance: float = 1e-9,
    max_iterations: int = 2000,
) -> DawidSkene:
    """Fit Dawid and Skene's model by EM.

    Args:
        votes: (item, annotator, label); a repeated vote counts as a further witness.
        labels: every label; default: those that occur.
        mirror: label to label under a symmetry that changes nothing about an annotator, such as
            `MIRROR` for pairs whose answers stand in an arbitrary order. Ties the parameters.
        smoothing: pseudo-votes added to every cell of every confusion matrix; 0 is maximum
            likelihood. A little keeps annotators with few votes from being sure.
        tolerance: stop when the objective gains less than this per vote.
        max_iterations: stop in any case; `converged` tells.

    Raises:
        DataError: no votes, or no item with votes of two annotators, so that reliability cannot be
            known.
        ValueError: negative smoothing, or a mirror that is no symmetry of the labels.
    """
    if not 0 <= smoothing < np.inf:
        raise ValueError(f"smoothing must be 0 or more, not {smoothing}.")
    table = vote_table(votes, labels)
    _need_overlap(table)
    flip = _flip(table.labels, mirror)
    said = _one_hot(table)
    shares = table.counts()
    posterior = shares / shares.sum(axis=1, keepdims=True)
    objective: list[float] = []
    converged = False
    for _ in range(max_iterations):
        prior, confusion = _maximise(said, posterior, flip, smoothing)
        posterior, likelihood = _expect(said, prior, confusion)
        objective.append(likelihood + _log_prior(confusion, smoothing))
        if len(objective) > 1 and objective[-1] - objective[-2] < tolerance * len(table.item):
            converged = True
            break
    return DawidSkene(
        items=table.items,
        annotators=table.annotators,
        labels=table.labels,
        posterior=posterior,
        confusion=confusion,
        prior=prior,
        objective=tuple(objective),
        converged=converged,
    )


def dawid_skene_pairs(comparisons: Iterable[Comparison], *, smoothing: float = 0.1) -> DawidSkene:
    """Dawid and Skene over pairs with the labels a, tie, b, mirrored and lightly smoothed.

    Mirrored, so that which answer happens to be stored as `response_a` does not matter.

    Raises:
        DataError: no judgements, or no pair judged by two people.
    """
    votes = label_votes(comparisons)
    return dawid_skene(votes, labels=LABELS, mirror=MIRROR, smoothing=smoothing)


def _one_hot(table: VoteTable) -> csr_array:
    """Votes as a sparse matrix: items by (annotator, label)."""
    width = len(table.labels)
    shape = (len(table.items), len(table.annotators) * width)
    cell = table.annotator * width + table.label
    return csr_array((np.ones(len(cell)), (table.item, cell)), shape=shape)


def _maximise(
    said: csr_array, posterior: NDArray[np.float64], flip: NDArray[np.intp], smoothing: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    width = posterior.shape[1]
    counts = (said.T @ posterior).reshape(-1, width, width).transpose(0, 2, 1)  # (K, true, said)
    counts = (counts + counts[:, flip][:, :, flip]) / 2 + smoothing
    totals = counts.sum(axis=2, keepdims=True)
    # A class in which an annotator has no votes leaves the row free: uniform says nothing.
    confusion = np.divide(counts, totals, out=np.full_like(counts, 1 / width), where=totals > 0)
    shares = posterior.mean(axis=0)
    return (shares + shares[flip]) / 2, confusion


def _expect(
    said: csr_array, prior: NDArray[np.float64], confusion: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Posterior (N, L) and the log-likelihood of all votes."""
    with np.errstate(divide="ignore"):  # log 0 = -inf is right: impossible
        weights = np.log(confusion).transpose(0, 2, 1).reshape(-1, len(prior))
        logs = np.log(prior) + said @ weights
    top = logs.max(axis=1, keepdims=True)
    joint = np.exp(logs - top)
    totals = joint.sum(axis=1, keepdims=True)
    return joint / totals, float((top + np.log(totals)).sum())


def _log_prior(confusion: NDArray[np.float64], smoothing: float) -> float:
    return smoothing * float(np.log(confusion).sum()) if smoothing else 0.0


def _flip(
    labels: Sequence[Hashable], mirror: Mapping[Hashable, Hashable] | None
) -> NDArray[np.intp]:
    if mirror is None:
        return np.arange(len(labels))
    place = {label: i for i, label in enumerate(labels)}
    try:
        flip = np.array([place[mirror[label]] for label in labels], dtype=np.intp)
    except KeyError as error:
        raise ValueError(
            f"mirror must map every label of {list(labels)} to one of them; {error} is missing."
        ) from error
    if not np.array_equal(flip[flip], np.arange(len(labels))):
        raise ValueError(f"mirror must be its own inverse, but is {dict(mirror)}.")
    return flip


def _need_overlap(table: VoteTable) -> None:
    if not table.items:
        raise DataError("there are no votes. Fix: pull annotations first.")
    several = np.unique(table.item * len(table.annotators) + table.annotator)
    if np.bincount(several // len(table.annotators)).max() < 2:
        people = len(table.annotators)
        raise DataError(
            f"no item was judged by two of the {people} annotators, so their reliability cannot be "
            "told apart from the items. Fix: let annotators overlap, or use method 'votes'."
        )
