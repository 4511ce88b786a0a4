"""How good each policy is, and how each annotator judges: one model fitted to comparisons.

An annotator k who is shown an answer of policy i first and one of policy j second holds

    d = beta_k (s_i - s_j) + gamma_k

and says first, second or tie with the probabilities of Rao and Kupper (JASA 62, 1967)

    P(first) = sigmoid(d - tau_k),  P(second) = sigmoid(-d - tau_k),  P(tie) = the rest,

which with tau = 0 is the model of Bradley and Terry (Biometrika 39, 1952), and with gamma one with
an order effect. s is a policy's strength in logits, beta an annotator's reliability (its geometric
mean is 1), gamma the liking for what is shown first, tau half the width of the tie band. It is the
model that `feedback.simulate` draws from. Leaves out how much better an answer is, and the prompt:
several votes on one pair count as independent, so the errors are too small where pairs overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from feedback.aggregate import SIGN
from feedback.errors import DataError
from feedback.schema import Comparison

Array = NDArray[np.float64]
GRADIENT_TOLERANCE = 1e-7  # largest entry of the gradient per judgement at which the fit stops


@dataclass(frozen=True)
class AnnotatorFit:
    """How one annotator judges, by the model."""

    annotator: str
    n: int  # judgements
    reliability: float  # beta: 1 is average, 0 a coin
    position_bias: float  # gamma, in logits for what is shown first
    tie_band: float  # tau, in logits


@dataclass(frozen=True)
class BradleyTerry:
    """Strengths of policies (mean 0, in logits, best first) and how the annotators judge."""

    strengths: dict[str, float]
    errors: dict[str, float]  # standard errors of the strengths, from the observed information
    annotators: tuple[AnnotatorFit, ...]
    log_likelihood: float  # without the penalty
    n: int  # judgements used
    left_out: int  # judgements that do not name both policies
    converged: bool

    def probability(self, first: str, second: str) -> float:
        """P(`first` is preferred) by an average annotator without position bias or ties.

        Raises:
            DataError: a policy that was not fitted.
        """
        for name in (first, second):
            if name not in self.strengths:
                raise DataError(f"policy {name!r} is none of the fitted {list(self.strengths)}.")
        return float(expit(self.strengths[first] - self.strengths[second]))


@dataclass(frozen=True)
class _Data:
    """Distinct judgements with how often each was made."""

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    annotator: NDArray[np.intp]
    sign: NDArray[np.intp]  # +1 the first shown won, -1 the second, 0 a tie
    count: Array
    policies: int
    people: int


def fit_bradley_terry(
    comparisons: Iterable[Comparison],
    *,
    reliability: bool = True,
    position: bool = True,
    l2: float = 0.1,
) -> BradleyTerry:
    """Fit policies and annotators together, by penalised maximum likelihood.

    Args:
        comparisons: judgements with `source_a` and `source_b`; others are left out and counted.
        reliability: one beta per annotator; off, all are 1.
        position: one gamma per annotator; off, all are 0.
        l2: weight of the sum of squares of s, log beta and gamma. It keeps a policy that always won
            finite.

    Raises:
        DataError: no judgement names two policies, or some policies were never compared with the
            rest, directly or through others.
        ValueError: `l2` is not positive.
    """
    if not 0 < l2 < np.inf:
        raise ValueError(f"l2 must be > 0, not {l2}; without it a policy that always won has none.")
    items = list(comparisons)
    used = [item for item in items if item.source_a and item.source_b]
    if not used:
        raise DataError(
            f"none of the {len(items)} judgements names the policies that wrote its answers. "
            "Fix: give source_a and source_b when pairs are added."
        )
    policies = sorted({name for item in used for name in (item.source_a, item.source_b)})
    people = sorted({item.annotator for item in used})
    data = _collect(used, policies, people)
    _need_connection(data, policies)
    free = _free(data, reliability=reliability, position=position)

    def objective(values: Array) -> tuple[float, Array]:
        likelihood, slope = _log_likelihood(_unpack(values, free, data), data)
        inside = _pack(slope, free)
        penalised = free.penalised
        loss = -likelihood + l2 * float((values[penalised] ** 2).sum())
        inside = -inside
        inside[penalised] += 2 * l2 * values[penalised]
        return loss / len(used), inside / len(used)

    result = minimize(
        objective,
        free.start,
        jac=True,
        method="L-BFGS-B",
        bounds=free.bounds,
        options={"maxiter": 5000, "maxfun": 20000, "gtol": GRADIENT_TOLERANCE, "ftol": 1e-15},
    )
    best = _unpack(result.x, free, data)
    s, b, gamma, tau = best
    error = _standard_errors(
        result.x, lambda x: len(used) * objective(x)[1], free.penalised, data.policies
    )
    s = s - s.mean()
    order = np.argsort(-s, kind="stable")
    judged = np.bincount(data.annotator, data.count, minlength=data.people)
    return BradleyTerry(
        strengths={policies[i]: float(s[i]) for i in order},
        errors={policies[i]: float(error[i]) for i in order},
        annotators=tuple(
            AnnotatorFit(name, int(judged[k]), float(np.exp(b[k])), float(gamma[k]), float(tau[k]))
            for k, name in enumerate(people)
        ),
        log_likelihood=_log_likelihood(best, data)[0],
        n=len(used),
        left_out=len(items) - len(used),
        converged=bool(
            result.success or np.abs(result.jac[free.penalised]).max() < 1e3 * GRADIENT_TOLERANCE
        ),
    )


Parameters = tuple[Array, Array, Array, Array]  # s (P,), log beta (K,), gamma (K,), tau (K,)


@dataclass(frozen=True)
class _Free:
    """Which parameters move, and where they start."""

    reliability: bool
    position: bool
    tied: NDArray[np.intp]  # annotators who ever said tie
    start: Array
    bounds: list[tuple[float | None, float | None]]
    penalised: NDArray[np.bool_]


def _free(data: _Data, *, reliability: bool, position: bool) -> _Free:
    tied = np.unique(data.annotator[data.sign == 0])
    blocks = data.policies + data.people * (int(reliability) + int(position))
    # An annotator who never says tie has tau = 0; one who does has tau > 0.
    bounds: list[tuple[float | None, float | None]] = [(None, None)] * blocks
    return _Free(
        reliability=reliability,
        position=position,
        tied=tied,
        start=np.concatenate([np.zeros(blocks), np.full(len(tied), 0.5)]),
        bounds=bounds + [(1e-4, None)] * len(tied),
        penalised=np.arange(blocks + len(tied)) < blocks,
    )


def _unpack(values: Array, free: _Free, data: _Data) -> Parameters:
    at = data.policies
    s: Array = values[:at]
    b: Array = np.zeros(data.people)
    gamma: Array = np.zeros(data.people)
    tau: Array = np.zeros(data.people)
    if free.reliability:
        b = values[at : at + data.people]
        b = b - b.mean()  # the scale belongs to s
        at += data.people
    if free.position:
        gamma = values[at : at + data.people]
        at += data.people
    tau[free.tied] = values[at:]
    return s, b, gamma, tau


def _pack(slope: Parameters, free: _Free) -> Array:
    s, b, gamma, tau = slope
    parts = [s]
    if free.reliability:
        parts.append(b - b.mean())  # the chain rule through the centring
    if free.position:
        parts.append(gamma)
    return np.concatenate([*parts, tau[free.tied]])


def _log_likelihood(parameters: Parameters, data: _Data) -> tuple[float, Parameters]:
    """The log-likelihood of all judgements and its gradient."""
    s, b, gamma, tau = parameters
    k = data.annotator
    beta = np.exp(b[k])
    gap = s[data.first] - s[data.second]
    d, band = beta * gap + gamma[k], tau[k]
    tie = data.sign == 0
    below, above = expit(band - d), expit(d + band)  # P(not first), P(not second)
    # For a tie, P = (1 - exp(-2 tau)) sigmoid(d + tau) sigmoid(tau - d).
    width = np.where(tie, -np.expm1(-2 * band), 1.0)
    parts = np.where(
        tie,
        np.log(width) - np.logaddexp(0, d - band) - np.logaddexp(0, -d - band),
        -np.logaddexp(0, band - data.sign * d),
    )
    by_d = np.where(tie, below - above, np.where(data.sign > 0, below, -above))
    outside = (1 - above) + (1 - below)
    by_band = np.where(
        tie, 2 * (1 - width) / width + outside, np.where(data.sign > 0, -below, -above)
    )
    by_d, by_band = by_d * data.count, by_band * data.count
    slope = (
        _sum(data.first, by_d * beta, data.policies)
        - _sum(data.second, by_d * beta, data.policies),
        _sum(k, by_d * beta * gap, data.people),
        _sum(k, by_d, data.people),
        _sum(k, by_band, data.people),
    )
    return float((parts * data.count).sum()), slope


def _sum(index: NDArray[np.intp], values: Array, size: int) -> Array:
    return np.bincount(index, values, minlength=size).astype(np.float64)


def _standard_errors(
    at: Array,
    gradient: Callable[[Array], Array],
    unbounded: NDArray[np.bool_],
    policies: int,
) -> Array:
    """Errors of s - mean(s): the inverse of the penalised information, by central differences."""
    steps = np.where(unbounded, 1e-4, np.minimum(1e-4, at / 2))  # a tie band stays above 0
    information = np.empty((len(at), len(at)))
    for i, step in enumerate(steps):
        move = np.zeros_like(at)
        move[i] = step
        information[i] = (gradient(at + move) - gradient(at - move)) / (2 * step)
    covariance = np.linalg.pinv((information + information.T) / 2, hermitian=True)
    centre = np.eye(policies) - 1 / policies
    block = centre @ covariance[:policies, :policies] @ centre
    return np.sqrt(np.maximum(np.diag(block), 0.0))


def _collect(used: list[Comparison], policies: list[str], people: list[str]) -> _Data:
    place = {name: i for i, name in enumerate(policies)}
    person = {name: i for i, name in enumerate(people)}
    rows = np.array(
        [
            (
                place[item.source_b if item.swapped else item.source_a],
                place[item.source_a if item.swapped else item.source_b],
                person[item.annotator],
                -SIGN[item.label] if item.swapped else SIGN[item.label],
            )
            for item in used
        ],
        dtype=np.intp,
    )
    kinds, count = np.unique(rows, axis=0, return_counts=True)
    first, second, annotator, sign = kinds.T
    counts = count.astype(np.float64)
    return _Data(first, second, annotator, sign, counts, len(policies), len(people))


def _need_connection(data: _Data, policies: list[str]) -> None:
    size = data.policies
    graph = coo_array((np.ones(len(data.first)), (data.first, data.second)), shape=(size, size))
    groups, member = connected_components(graph, directed=False)
    if groups > 1:
        names = [
            "{" + ", ".join(p for p, m in zip(policies, member, strict=True) if m == g) + "}"
            for g in range(groups)
        ]
        raise DataError(
            f"policies fall into groups that were never compared: {', '.join(names)}. Their "
            "strengths cannot be put on one scale. Fix: compare across the groups, or fit each."
        )
