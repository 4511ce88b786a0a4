"""What is promoted, and when it is over: held-out data decide, not how sure a model is of itself.

`gain` promotes where the interval of the held-out gain lies above 0. `not_worse` promotes where it
lies above -tolerance, which is for rounds that are wanted for something else (fewer labels, shorter
answers): each may lose a little, and what is lost adds up over rounds. `gain` is the default,
because pseudo-labels of a precision of 0.89 to 0.99 have been seen to bring nothing.

All rounds look at the same held-out prompts, so each interval has the level that makes all of them
hold together (Bonferroni 1936).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from align.evaluate.significance import Difference, Interval, paired_difference

Rule = Literal["gain", "not_worse"]


@dataclass(frozen=True)
class Gate:
    """The rule of promotion."""

    rule: Rule = "gain"
    tolerance: float = 0.01  # of `not_worse`
    level: float = 0.95  # of all rounds together
    rounds: int = 1  # that look
    resamples: int = 10_000
    shares: bool = False  # scores are right or wrong, or a mean of such

    def decide(
        self, candidate: Sequence[float] | np.ndarray, incumbent: Sequence[float] | np.ndarray
    ) -> Decision:
        """Whether a round's model takes the incumbent's place.

        Args:
            candidate: (P,) a score for each held-out prompt.
            incumbent: (P,) the same of what is in use.

        Raises:
            DataError: they are not of the same prompts.
        """
        level = 1 - (1 - self.level) / self.rounds
        found = paired_difference(
            candidate, incumbent, level=level, resamples=self.resamples, shares=self.shares
        )
        low = found.interval.low
        if self.rule == "gain":
            promoted = low > 0
            why = "the gain's interval lies above 0"
            other = "the gain's interval holds 0" if found.interval.high >= 0 else "it got worse"
            if not has_width(found.interval):  # exchanging signs is all that can tell
                promoted = low > 0 and found.p_value < 1 - level
                why = "every held-out score gained as much"
                other = f"{why}, but there are few" if low > 0 else other
                other = "every held-out score is as before" if low == 0 else other
        else:
            promoted = low > -self.tolerance
            why = f"it loses no more than {self.tolerance:g}"
            other = f"it may lose more than {self.tolerance:g}"
        return Decision(promoted, why if promoted else other, found)


@dataclass(frozen=True)
class Decision:
    """Whether a round is promoted, and by which figures."""

    promoted: bool
    why: str
    difference: Difference

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for measure.json."""
        gain = self.difference.interval
        return {
            "promoted": self.promoted,
            "why": self.why,
            "gain": measured(gain, gain.n)
            | {"level": gain.level, "p_value": self.difference.p_value},
        }


def has_width(interval: Interval) -> bool:
    """Whether an interval says how sure one can be; a bootstrap of equal scores does not."""
    return interval.high > interval.low


def measured(interval: Interval, n: float) -> dict[str, Any]:
    """A held-out figure for measure.json; without bounds where none can be given.

    Args:
        interval: of the figure.
        n: held-out prompts behind it.
    """
    low, high = (interval.low, interval.high) if has_width(interval) else (None, None)
    return {"value": interval.value, "low": low, "high": high, "n": n}


def ended(history: Sequence[bool], rounds: int, patience: int) -> list[str]:
    """The rules that end the loop, each with a sentence.

    Args:
        history: whether each round was promoted, the oldest first; the start is no round.
        rounds: the most there are.
        patience: rounds in a row without promotion that end it.
    """
    found = []
    if len(history) >= rounds:
        found.append(f"rounds: all {rounds} rounds are done")
    if len(history) >= patience and not any(history[-patience:]):
        what = "the last round was" if patience == 1 else f"the last {patience} rounds were"
        found.append(f"gain: {what} not promoted")
    return found


def per_prompt(values: Sequence[float] | np.ndarray, keys: Sequence[str]) -> np.ndarray:
    """Means by prompt, (P,), in the order in which prompts first appear; prompts are the units."""
    order = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    sums, counts = np.zeros(len(order)), np.zeros(len(order))
    places = [order[key] for key in keys]
    np.add.at(sums, places, np.asarray(values, dtype=np.float64))
    np.add.at(counts, places, 1.0)
    return sums / counts
