"""Labels that an ensemble gives to pairs nobody compared, where it is sure and of one mind.

p = sigmoid(delta / T) with delta the mean margin of the members and T fitted on people's held-out
pairs (`reward.calibrate.fit_temperature`): an uncalibrated reward model's p is too near 0 and 1,
and a threshold on it says nothing. A label is kept where max(p, 1 - p) > tau and every member
prefers the same answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reward.calibrate import Temperature


@dataclass(frozen=True)
class Labels:
    """What an ensemble says of n pairs."""

    first: np.ndarray  # (n,) bool, the first answer is the better one
    confidence: np.ndarray  # (n,) max(p, 1 - p), calibrated
    unanimous: np.ndarray  # (n,) bool, all members prefer that answer

    def sure(self, tau: float) -> np.ndarray:
        """Places of the labels that are kept, (k,), the surest first.

        Args:
            tau: a confidence above it is needed, in [1/2, 1).
        """
        places = np.flatnonzero(self.unanimous & (self.confidence > tau))
        return places[np.argsort(-self.confidence[places], kind="stable")]


def pseudo_labels(margins: np.ndarray, temperature: Temperature) -> Labels:
    """The labels of an ensemble.

    Args:
        margins: (K, n) r(first) - r(second) of each member, raw.
        temperature: fitted to the mean margin of the members.

    Raises:
        ValueError: no (K, n).
    """
    table = np.asarray(margins, dtype=np.float64)
    if table.ndim != 2 or not len(table):
        raise ValueError(f"margins of shape {table.shape}; (members, pairs) is expected.")
    p = temperature.apply(table.mean(axis=0))
    first = p > 0.5
    sides = np.sign(table)
    unanimous = (sides == np.where(first, 1.0, -1.0)).all(axis=0) & (p != 0.5)
    return Labels(first, np.maximum(p, 1 - p), unanimous)


def credit(margins: np.ndarray) -> np.ndarray:
    """How right an ensemble's mean is on pairs whose first answer is better: 1, 0 or 1/2; (n,).

    Args:
        margins: (K, n) r(chosen) - r(rejected).
    """
    return (1 + np.sign(np.asarray(margins, dtype=np.float64).mean(axis=0))) / 2
