"""Pairs or rankings: which tells more about the reward in a person's minute.

With members r_m on the K answers of a prompt, a ranking is an order drawn from Plackett and Luce's
model (Luce 1959; Plackett 1975), P_m(order) = prod_i exp r_(i) / sum_{j >= i} exp r_(j). What it
tells is the mutual information of the order and the member,

    I = H(mean_m P_m) - mean_m H(P_m)        over the K! orders,

which for K = 2 is BALD of the pair. Divided by the seconds that it takes, both kinds have one unit,
nats per second. Times are medians of the store's lead times. Where no ranking of K answers was
timed, it is taken to last as long as log2(K!) pairs, the comparisons that a sort needs: an
assumption, said as such, until it is measured.

The rule (`better_kind`): in the time that a round of pairs takes, the sum over the best pairs is
compared with that over the best rankings. Information is added up as if questions were
independent, which flatters both kinds alike; rankings have to win by a margin (`EDGE`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import entr, logsumexp

from align.errors import DataError
from feedback.acquisition.arrays import finite

MOST = 6  # answers: 720 orders
EDGE = 1.1  # rankings tire people, and are asked only where they give clearly more
TIMED = 5  # lead times that a median needs


@dataclass(frozen=True)
class Worth:
    """What a round of each kind is expected to tell, and why one is chosen."""

    kind: str  # "pair" or "ranking"
    reason: str
    pair_rate: float  # nats per minute; per pair's time where none was timed
    ranking_rate: float


def ranking_information(rewards: ArrayLike) -> float:
    """Mutual information of an order of K answers and the member, in nats.

    Args:
        rewards: (M, K) with M >= 2 members and 2 to `MOST` answers.

    Raises:
        DataError: another shape.
    """
    r = finite(rewards, "rewards", 2)
    if len(r) < 2 or not 2 <= r.shape[1] <= MOST:
        raise DataError(
            f"rewards has shape {r.shape}; at least 2 members and 2 to {MOST} answers are expected."
        )
    orders = np.array(list(permutations(range(r.shape[1]))))  # (K!, K)
    placed = r[:, orders]  # (M, K!, K)
    logs = np.zeros(placed.shape[:2])
    for place in range(r.shape[1] - 1):
        logs += placed[:, :, place] - logsumexp(placed[:, :, place:], axis=2)
    chances = np.exp(logs)
    return max(float(entr(chances.mean(axis=0)).sum() - entr(chances).sum(axis=1).mean()), 0.0)


def seconds_of(kind: str, times: Mapping[str, Sequence[float]], answers: int) -> tuple[float, str]:
    """How long a question takes: the median, and on what it rests.

    Args:
        kind: "pair" or "ranking".
        times: seconds by "pair" and "ranking K".
        answers: K of a ranking.
    """
    pair = times.get("pair", ())
    one, what = 1.0, "not timed yet"
    if len(pair) >= TIMED:
        one, what = float(np.median(pair)), f"median time of {len(pair)}"
    if kind == "pair":
        return one, what
    own = times.get(f"ranking {answers}", ())
    if len(own) >= TIMED and len(pair) >= TIMED:
        return float(np.median(own)), f"median time of {len(own)}"
    ratio = math.log2(math.factorial(answers))
    return one * ratio, f"assumed as log2({answers}!) = {ratio:.1f} pairs"


def better_kind(
    pairs: Sequence[float],
    rankings: Sequence[float],
    answers: int,
    batch: int,
    times: Mapping[str, Sequence[float]],
) -> Worth:
    """Whether a round asks pairs or rankings.

    Args:
        pairs: nats of each pair that may be asked, one a prompt.
        rankings: nats of each ranking that may be asked.
        answers: K of the rankings.
        batch: pairs of a round.
        times: see `seconds_of`.
    """
    pair_seconds, pair_why = seconds_of("pair", times, answers)
    ranking_seconds, ranking_why = seconds_of("ranking", times, answers)
    count = min(batch, len(pairs))
    room = min(int(count * pair_seconds / ranking_seconds), len(rankings))
    timed = len(times.get("pair", ())) >= TIMED
    scale, unit = (60.0, "minute") if timed else (1.0, "pair's time")
    pair_rate = scale * _best(pairs, count) / max(count * pair_seconds, 1e-9)
    ranking_rate = scale * _best(rankings, room) / max(room * ranking_seconds, 1e-9)
    kind = "ranking" if room and ranking_rate > EDGE * pair_rate else "pair"
    reason = (
        f"{kind}s: {count} pairs tell {pair_rate:.3g} nats a {unit} ({pair_why}), {room} rankings "
        f"of {answers} tell {ranking_rate:.3g} ({ranking_why})"
    )
    return Worth(kind, reason, pair_rate, ranking_rate)


def _best(values: Sequence[float], count: int) -> float:
    """The sum of the `count` greatest."""
    return float(np.sort(np.asarray(values, dtype=np.float64))[::-1][:count].sum())
