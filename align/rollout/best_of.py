"""Best of n, and rejection sampling: draw several completions, keep the good ones.

The expected reward of the best of k <= N draws is estimated without bias from N draws, for all k at
once. Leaves out training: the winners are SFT data (`sft_rows`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from scipy.special import gammaln
from torch import Tensor

from align.types import Rollout, Sampler, Text

Score = Callable[[Rollout], tuple[Sequence[float], dict[str, float]]]


@dataclass
class BestOf:
    """The winners, and everything that was drawn for them."""

    winners: Rollout  # B rows
    scores: Tensor  # (B,) of the winners
    drawn: Rollout  # B * n rows, a winner's rivals side by side
    drawn_scores: Tensor  # (B, n)


def best_of_n(
    sampler: Sampler, score: Score, prompts: list[Text], n: int, **columns: list[Any]
) -> Rollout:
    """The best of n completions of each prompt.

    Args:
        sampler: draws them.
        score: of a rollout, as `align.ppo.rewards.reward_scorer` makes it.
        prompts: P prompts.
        n: completions drawn of each.
        columns: further dataset columns, each of length P.

    Returns:
        P winners. Their log-probabilities are those of a single draw of the sampler's policy, not
        of the best-of-n distribution: they are no ground for a policy gradient.

    Raises:
        ValueError: n is below 1.
    """
    return draw_best(sampler, score, prompts, n, columns=columns).winners


def draw_best(
    sampler: Sampler,
    score: Score,
    prompts: list[Text],
    n: int,
    group_size: int = 1,
    columns: Mapping[str, list[Any]] | None = None,
) -> BestOf:
    """`best_of_n` with the losers and all scores; `group_size` winners of each prompt.

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"best of n: n is {n}, at least 1 is expected.")
    drawn = sampler(prompts, group_size=group_size * n, **(columns or {}))
    scores = torch.tensor(list(score(drawn)[0]), dtype=torch.float64).view(-1, n)
    best = scores.argmax(dim=1)  # of several best the first
    rows = torch.arange(len(scores)) * n + best
    return BestOf(take(drawn, rows), scores.gather(1, best[:, None]).squeeze(1), drawn, scores)


@dataclass
class BestOfN:
    """A `Sampler` whose every completion is the best of n draws of another sampler."""

    sampler: Sampler
    score: Score
    n: int

    def __call__(self, prompts: list[Text], group_size: int = 1, **columns: list[Any]) -> Rollout:
        """P prompts in, P * group_size winners out, each of n draws of its own."""
        return draw_best(self.sampler, self.score, prompts, self.n, group_size, columns).winners


def take(rollout: Rollout, rows: Tensor) -> Rollout:
    """The given rows of a rollout, in that order; `rows` is (N,) int64."""
    chosen: dict[str, Any] = {}
    for one in fields(rollout):
        value = getattr(rollout, one.name)
        if isinstance(value, Tensor):
            chosen[one.name] = value[rows.to(value.device)]
        elif isinstance(value, list):
            chosen[one.name] = [value[row] for row in rows.tolist()]
        elif isinstance(value, dict):
            chosen[one.name] = {k: [v[row] for row in rows.tolist()] for k, v in value.items()}
    return replace(rollout, **chosen)


def best_of_n_kl(n: int) -> float:
    """KL(best-of-n || policy) in nats: log n - (n - 1) / n.

    Exact where no two completions tie; otherwise an upper bound (Beirami et al. 2024,
    "Theoretical guarantees on the best-of-n alignment policy", theorem 1). The formula is Stiennon
    et al.'s (2020), derived by Hilton (2023), "KL divergence of max-of-n".

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"best of n: n is {n}, at least 1 is expected.")
    return float(np.log(n) - (n - 1) / n)


def best_of_curve(
    proxy: Sequence[Sequence[float]] | np.ndarray,
    ks: Sequence[int],
    values: Sequence[Sequence[float]] | np.ndarray | None = None,
) -> np.ndarray:
    """The expected value of the best of k draws, for each prompt and each k <= N, from N draws.

    Nakano et al. (2021), "WebGPT", appendix I: with the draws sorted by proxy, the i-th of N is the
    best of k drawn without replacement with probability C(i - 1, k - 1) / C(N, k). Unbiased, and
    far less noisy than one best-of-k draw. Draws with equal proxy share their mean value, as
    breaking ties at random would give on average.

    Args:
        proxy: (P, N) what decides.
        ks: each from 1 to N.
        values: (P, N) what is measured on the winner, for example gold; default: the proxy.

    Returns:
        (P, len(ks)).

    Raises:
        ValueError: shapes differ, or a k is out of range.
    """
    decides = np.asarray(proxy, dtype=np.float64)
    measured = decides if values is None else np.asarray(values, dtype=np.float64)
    if decides.ndim != 2 or decides.shape != measured.shape:
        raise ValueError(
            f"best_of_curve: expected two (P, N) tables; got {decides.shape} and {measured.shape}."
        )
    draws = decides.shape[1]
    if not ks or min(ks) < 1 or max(ks) > draws:
        raise ValueError(f"best_of_curve: k must lie in 1 to {draws} (the draws); got {list(ks)}.")
    order = np.argsort(decides, axis=1, kind="stable")
    ranked = np.take_along_axis(decides, order, axis=1)
    ordered = np.take_along_axis(measured, order, axis=1)
    for row in range(len(ordered)):
        tied = np.concatenate([[0], np.flatnonzero(np.diff(ranked[row])) + 1])
        sizes = np.diff([*tied, draws])
        ordered[row] = np.repeat(np.add.reduceat(ordered[row], tied) / sizes, sizes)
    return ordered @ np.stack([_weights(draws, k) for k in ks], axis=1)


def _weights(draws: int, k: int) -> np.ndarray:
    """(N,) C(i - 1, k - 1) / C(N, k) for i = 1 to N, by logarithms."""
    i = np.arange(k, draws + 1, dtype=np.float64)
    above = gammaln(i) - gammaln(k) - gammaln(i - k + 1)
    below = gammaln(draws + 1) - gammaln(k + 1) - gammaln(draws - k + 1)
    return np.concatenate([np.zeros(k - 1), np.exp(above - below)])


def best_of_kl(proxy: Sequence[Sequence[float]] | np.ndarray, ks: Sequence[int]) -> np.ndarray:
    """KL(best-of-k || policy) in nats from N draws of each prompt, ties included.

    The winner is distributed as the policy among equal proxies, so that with p the policy's share
    of one value of the proxy and F its distribution function up to it, the KL is the sum over
    values of q log(q / p), where q = F^k - (F - p)^k (Beirami et al. 2024, lemma 1, which also
    gives that it is at most `best_of_n_kl`). Shares are those of the draws.

    Args:
        proxy: (P, N) what decides.
        ks: each at least 1.

    Returns:
        (P, len(ks)).

    Raises:
        ValueError: no (P, N) table, or a k below 1.
    """
    table = np.asarray(proxy, dtype=np.float64)
    if table.ndim != 2 or not table.size or not ks or min(ks) < 1:
        raise ValueError(f"best_of_kl: expected (P, N) and k >= 1; got {table.shape}, {list(ks)}.")
    found = np.empty((len(table), len(ks)))
    for row, scores in enumerate(table):
        share = np.unique(scores, return_counts=True)[1] / len(scores)
        upto = np.cumsum(share)
        for column, k in enumerate(ks):
            wins = upto**k - np.clip(upto - share, 0.0, None) ** k
            kept = wins > 0
            found[row, column] = float((wins[kept] * np.log(wins[kept] / share[kept])).sum())
    return found


def accepted(
    scores: Sequence[float], threshold: float | None = None, fraction: float | None = None
) -> list[int]:
    """Rejection sampling: the rows to keep, in their order.

    Args:
        scores: (B,).
        threshold: keep those at or above it.
        fraction: keep this share of the rows (rounded up), the best; of equal ones the first.

    Raises:
        ValueError: not exactly one rule, or a fraction outside (0, 1].
    """
    if (threshold is None) == (fraction is None):
        raise ValueError("accepted: give either a threshold or a fraction.")
    if threshold is not None:
        return [row for row, score in enumerate(scores) if score >= threshold]
    assert fraction is not None
    if not 0 < fraction <= 1:
        raise ValueError(f"accepted: the fraction is {fraction}, expected above 0 and at most 1.")
    count = int(np.ceil(fraction * len(scores) - 1e-9))
    best = sorted(range(len(scores)), key=lambda row: (-scores[row], row))[:count]
    return sorted(best)


def sft_rows(rollout: Rollout, scores: Sequence[float]) -> list[dict[str, Any]]:
    """Rows that `align sft` reads: prompt, completion, and the score they were kept for."""
    return [
        {"prompt": prompt, "completion": completion, "score": float(score)}
        for prompt, completion, score in zip(
            rollout.prompts, rollout.completions, scores, strict=True
        )
    ]
