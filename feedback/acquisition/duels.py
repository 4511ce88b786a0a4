"""Which two of one prompt's K answers to compare.

`rewards` (M, K) are the scores of the K answers by M members or draws of a reward posterior.

| rule | picks | good for |
|---|---|---|
| `double_thompson` | the best answers of two members that differ | finding the best answer |
| `information_directed` | least regret^2 / information | the same, weighing what a label tells |
| `drts` | one member's best and another's worst | pairs that train DPO |
| `delta_ucb` | the widest gap that is still believable | pairs that train DPO |

Double Thompson: Wu and Liu 2016, arXiv 1604.07101; for language models Dwaracherla et al. 2024,
arXiv 2402.00396. Information-directed: Russo and Van Roy 2014, arXiv 1403.5556, deterministic.
DRTS and DeltaUCB: Melikidze et al. 2026, arXiv 2603.09692, who draw each answer's reward between
bounds by itself; here a draw is a whole member, which keeps what it says of all answers together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from feedback.acquisition.arrays import Array, Index, finite
from feedback.acquisition.committee import bald
from feedback.errors import DataError

Pair = tuple[int, int]


def double_thompson(rewards: ArrayLike, rng: np.random.Generator) -> Pair:
    """The best answer of one member, and of another that finds another best.

    Args:
        rewards: (M, K).
        rng: draws the members; where all agree, the second answer is any other.

    Raises:
        DataError: no (M, K) with at least two answers.
    """
    best = _rewards(rewards).argmax(axis=1)
    return _two(best, best, np.asarray(rewards).shape[1], rng)


def drts(rewards: ArrayLike, rng: np.random.Generator) -> Pair:
    """Double reversed Thompson sampling: argmax of one member, argmin of another.

    The two members may be the same. Arguments and errors as of `double_thompson`.
    """
    r = _rewards(rewards)
    return _two(r.argmax(axis=1), r.argmin(axis=1), r.shape[1], rng)


def delta_ucb(rewards: ArrayLike, width: float = 1.0, *, joint: bool = False) -> Pair:
    """The pair with the greatest optimistic gap, (mean_i + width s_i) - (mean_j - width s_j).

    Args:
        rewards: (M, K).
        width: deviations on either side, >= 0.
        joint: mean_i - mean_j + width s_ij with the deviation of the difference itself, in which
            what a member adds to all answers alike cancels; the paper takes each by itself.

    Raises:
        DataError: as of `double_thompson`, or a negative width.
    """
    if not width >= 0:
        raise DataError(f"width is {width}; a number of deviations >= 0 is expected.")
    r = _rewards(rewards)
    mean = r.mean(axis=0)
    gap = mean[:, None] - mean[None, :]
    if joint:
        gap = gap + width * (r[:, :, None] - r[:, None, :]).std(axis=0)
    else:
        deviation = r.std(axis=0)
        gap = gap + width * (deviation[:, None] + deviation[None, :])
    np.fill_diagonal(gap, -np.inf)
    return _place(gap)


def information_directed(rewards: ArrayLike) -> Pair:
    """The pair with the least regret^2 per nat of information; arguments as of `delta_ucb`.

    A pair's regret is what its answers lack on the mean of the best one's reward, over members;
    its information is the BALD of their comparison. Where no comparison tells anything, the two
    best on the mean.
    """
    r = _rewards(rewards)
    k = r.shape[1]
    first, second = np.triu_indices(k, 1)
    regret = (r.max(axis=1)[:, None] - (r[:, first] + r[:, second]) / 2).mean(axis=0)
    told = bald(expit(r[:, first] - r[:, second])) if len(r) > 1 else np.zeros(len(first))
    if told.max() <= 1e-12:
        i, j = np.argsort(-r.mean(axis=0), kind="stable")[:2]
        return int(i), int(j)
    with np.errstate(divide="ignore"):
        ratio = np.where(told > 1e-12, np.square(regret) / told, np.inf)
    best = int(ratio.argmin())
    return int(first[best]), int(second[best])


Rule = Callable[[ArrayLike, np.random.Generator], Pair]

RULES: dict[str, Rule] = {
    "double_thompson": double_thompson,
    "drts": drts,
    "delta_ucb": lambda rewards, rng: delta_ucb(rewards),
    "delta_ucb_joint": lambda rewards, rng: delta_ucb(rewards, joint=True),
    "information_directed": lambda rewards, rng: information_directed(rewards),
}


def build_pairs(rewards: Sequence[ArrayLike], rule: str, rng: np.random.Generator) -> list[Pair]:
    """One pair of answers for each prompt.

    Args:
        rewards: (M, K) of each prompt; K may differ.
        rule: a name of `RULES`.
        rng: draws.

    Returns:
        Places of the two answers; which is shown first is for whoever asks to turn.

    Raises:
        DataError: an unknown rule, or a prompt of fewer than two answers; the message names it.
    """
    if rule not in RULES:
        raise DataError(f"there is no rule {rule!r}. Fix: one of {', '.join(RULES)}.")
    found = []
    for place, one in enumerate(rewards):
        try:
            found.append(RULES[rule](one, rng))
        except DataError as error:
            raise DataError(f"prompt {place}: {error}") from error
    return found


def _two(firsts: Index, seconds: Index, k: int, rng: np.random.Generator) -> Pair:
    """A member's first, and a second by a member whose second is another answer."""
    first = int(rng.choice(firsts))
    others = seconds[seconds != first]
    if not len(others):
        others = np.delete(np.arange(k), first)
    return first, int(rng.choice(others))


def _place(table: Array) -> Pair:
    i, j = np.unravel_index(int(table.argmax()), table.shape)
    return int(i), int(j)


def _rewards(rewards: ArrayLike) -> Array:
    r = finite(rewards, "rewards", 2)
    if r.shape[0] < 1 or r.shape[1] < 2:
        raise DataError(
            f"rewards has shape {r.shape}; (M, K) with at least one member and two answers is "
            "expected. Fix: sample more answers for the prompt."
        )
    return r
