"""When to stop asking. Each rule returns a sentence that says why, or None to go on.

| rule | says | trust it |
|---|---|---|
| `budget_spent` | the money is gone | always |
| `little_left` | no pair would tell more than tau nats | as far as the committee's spread |
| `predictions_settled` | new labels no longer change answers | it does not say they are right |
| `gain_gone` | the holdout no longer improves | the only one that looks at truth |

None looks at accuracy on pairs that were chosen: see `feedback.acquisition.accuracy`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t

from feedback.acquisition.arrays import check_count, finite, same_length
from feedback.errors import DataError


def budget_spent(spent: float, limit: float) -> str | None:
    """Stop when `spent` has reached `limit`; labels, minutes or money."""
    return f"the budget is spent: {spent:g} of {limit:g}" if spent >= limit else None


def little_left(scores: ArrayLike, tau: float) -> str | None:
    """Stop when no candidate's BALD reaches tau nats, or none is left.

    Args:
        scores: (N,) BALD of the candidates.
        tau: > 0; 0.01 nats is 1.4% of a bit.

    Raises:
        DataError: tau is not positive, or scores are not finite.
    """
    if not tau > 0:
        raise DataError(f"tau is {tau}; a number of nats > 0 is expected.")
    values = finite(scores, "scores", 1)
    if not len(values):
        return "every pair of the pool is labelled"
    most = float(values.max())
    return f"no pair would tell more than {most:.4f} nats, below {tau:g}" if most < tau else None


def agreement(before: ArrayLike, after: ArrayLike) -> float:
    """Cohen's kappa of two rounds' answers on the same items, in [-1, 1].

    Args:
        before: (n,) probabilities P(the first is better), or any labels as numbers 0 and 1.
        after: (n,) those of the next model.

    Returns:
        Kappa of the answers p >= 1/2; 1 where both always say the same one thing.

    Raises:
        DataError: no items, or different numbers of them.
    """
    a, b = finite(before, "before", 1) >= 0.5, finite(after, "after", 1) >= 0.5
    if not same_length(before=a.astype(float), after=b.astype(float)):
        raise DataError("before is empty; the answers of a fixed set of items are expected.")
    same = float((a == b).mean())
    chance = float(a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean()))
    return 1.0 if chance == 1.0 else (same - chance) / (1 - chance)


def predictions_settled(
    rounds: Sequence[ArrayLike], kappa: float = 0.99, window: int = 3
) -> str | None:
    """Stop when the mean kappa of the last `window` steps reaches `kappa`.

    Bloodgood and Vijay-Shanker (2009), arXiv 1409.5165: 0.99 over 3 steps, on a fixed set of
    items that nobody labels.

    Args:
        rounds: of each round, (n,) probabilities on the same items, the oldest first.
        kappa: in (0, 1].
        window: steps from round to round.

    Raises:
        DataError: kappa outside (0, 1], window below 1, or rounds of different items.
    """
    if not 0 < kappa <= 1:
        raise DataError(f"kappa is {kappa}; a number in (0, 1] is expected.")
    check_count(window, "window")
    if len(rounds) < window + 1:
        return None
    last = list(rounds)[-window - 1 :]
    steps = [agreement(a, b) for a, b in pairwise(last)]
    mean = float(np.mean(steps))
    if mean < kappa:
        return None
    return f"answers have settled: kappa {mean:.4f} over the last {window} rounds"


def gain_gone(
    before: ArrayLike, after: ArrayLike, *, resolution: float = 0.02, level: float = 0.95
) -> str | None:
    """Stop when the holdout's gain lies inside its own interval, and that interval is narrow.

    The gain is paired: both models answer the same items. A wide interval contains 0 as well, and
    would stop every run after its first rounds; so it must also leave no room for a gain that
    matters.

    Args:
        before: (n,) credit in [0, 1] of an earlier model on the labelled holdout.
        after: (n,) of the newest, on the same items in the same order.
        resolution: a gain that matters; the interval's upper end must be below it.
        level: of the interval.

    Raises:
        DataError: fewer than two items, different numbers of them, or no positive resolution.
    """
    if not resolution > 0 or not 0 < level < 1:
        raise DataError(f"resolution is {resolution} and level {level}; > 0 and (0, 1) expected.")
    a, b = finite(before, "before", 1), finite(after, "after", 1)
    count = same_length(before=a, after=b)
    if count < 2:
        raise DataError(f"{count} items in the holdout; at least 2 are expected.")
    gain = b - a
    half = float(t.ppf(0.5 + level / 2, count - 1) * gain.std(ddof=1) / count**0.5)
    # Where no answer changed, the rule of three bounds what n items cannot have shown.
    half = max(half, -np.log(1 - level) / count)
    mean = float(gain.mean())
    if mean - half > 0 or mean + half >= resolution:
        return None
    return (
        f"the holdout's gain of {mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}] on {count} "
        f"items is inside its interval, and below {resolution:g}"
    )
