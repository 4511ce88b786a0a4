"""What people check: a random share of a round's pseudo-labels, and what their answers say of them.

A pair goes to people as a question like any other, without the pseudo-label: whoever sees what a
machine said agrees with it too often. A pseudo-label is never recorded as a judgement.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from align.data.split import position_of
from reward.statistics import wilson_interval


def drawn_for_audit(names: Sequence[str], share: float, seed: int) -> list[str]:
    """A random share of the names (rounded up), in the order given; the same for one seed.

    Raises:
        ValueError: a share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the audited share is {share}; 0 to 1 is expected.")
    count = math.ceil(share * len(names) - 1e-9)
    lots = sorted(names, key=lambda name: (position_of(name, seed, b"audit"), name))
    chosen = set(lots[:count])
    return [name for name in names if name in chosen]


@dataclass(frozen=True)
class Audited:
    """What people said of pseudo-labels."""

    asked: int
    answered: int
    right: float  # labels that people agree with; a tie counts half
    low: float | None = None  # Wilson's interval of the share that is right
    high: float | None = None

    @property
    def precision(self) -> float | None:
        """The share of pseudo-labels that people agree with; None before anybody answered."""
        return self.right / self.answered if self.answered else None

    def fails(self, claimed: float) -> bool:
        """Whether the labels are surely worse than each of them claims to be."""
        return self.high is not None and self.high < claimed

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return vars(self) | {"precision": self.precision}


def audit(labels: Mapping[str, bool], shares: Mapping[str, float], level: float = 0.95) -> Audited:
    """Compare pseudo-labels with people's answers.

    Args:
        labels: by audited pair, whether the machine prefers its first answer.
        shares: by pair, the share of people's votes for its first answer.
        level: of the interval.
    """
    known = [name for name in labels if name in shares]
    right = 0.0
    for name in known:
        share = shares[name] if labels[name] else 1 - shares[name]
        right += 0.5 if share == 0.5 else float(share > 0.5)
    if not known:
        return Audited(len(labels), 0, 0.0)
    found = wilson_interval(right, len(known), level)
    return Audited(len(labels), len(known), right, found.low, found.high)
