"""What the reward model believes of every answer of the pool, and what follows for its pairs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from align.active.pool import PairPool

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Belief:
    """M equally likely reward functions on the R answers of a pool."""

    scores: Array  # (M, R) each function's score
    states: Array  # (R, D) pooled states of a trunk: what pairs have in common
    middle: Array | None = None  # (R,) the mean function, where it is known; else the M vote
    prior: float = 1.0  # precision of the last layer's prior

    def margins(self, pool: PairPool) -> Array:
        """(M, N) each function's margin of the first answer of each pair."""
        first, second = pool.ends
        return self.scores[:, first] - self.scores[:, second]

    def differences(self, pool: PairPool) -> Array:
        """(N, D) of the two answers' states."""
        first, second = pool.ends
        return self.states[first] - self.states[second]

    def p(self, pool: PairPool) -> Array:
        """(N,) P(the first answer is better), by the mean function or the mean of the members."""
        if self.middle is None:
            return expit(self.margins(pool)).mean(axis=0)
        first, second = pool.ends
        found: Array = expit(self.middle[first] - self.middle[second])
        return found

    def rewards(self, pool: PairPool, group: int) -> Array:
        """(M, K) of a group's answers."""
        return self.scores[:, pool.offsets[group] : pool.offsets[group + 1]]

    def joined(self, more: Belief) -> Belief:
        """The belief about these answers, then those of `more`, by the same functions."""
        middle = None
        if self.middle is not None and more.middle is not None:
            middle = np.concatenate([self.middle, more.middle])
        return Belief(
            np.concatenate([self.scores, more.scores], axis=1),
            np.concatenate([self.states, more.states]),
            middle,
            self.prior,
        )

    def save(self, path: Path) -> None:
        """Write it whole or not at all."""
        arrays: dict[str, Any] = {"scores": self.scores, "prior": self.prior}
        arrays["states"] = self.states.astype(np.float32)
        if self.middle is not None:
            arrays["middle"] = self.middle
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as stream:
            np.savez(stream, **arrays)
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Belief:
        """Read what `save` wrote."""
        with np.load(path) as saved:
            middle = saved.get("middle", None)
            states = saved["states"].astype(np.float64)
            return cls(saved["scores"], states, middle, float(saved["prior"]))
