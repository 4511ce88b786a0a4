"""Which rows each step of a training draws: one global order, whoever asks and however often.

A function of the seed, the step and (with adaptive pacing) the recorded changes of competence
alone. Every process computes the whole order and takes its part, and a resumed run computes it
again up to where it stopped; so neither moves a row. Without weights rows are dealt without
replacement (`Deck`); with weights each draw is independent, rows of the pool in proportion to their
weights.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from align.data.curriculum.adaptive import AdaptiveCompetence
from align.data.curriculum.pacing import Competence
from align.data.curriculum.rank import Floats, Ints, Order, curriculum_order
from align.data.sampling.deck import Deck


class DrawOrder:
    """Rows by step. Metrics of the steps drawn are kept until they are asked for."""

    _last: list[int]  # the rows of the last step drawn

    def __init__(
        self,
        rows: int,
        per_step: int,
        *,
        seed: int = 0,
        difficulty: Sequence[float] | Floats | None = None,
        order: Order = "easy",
        competence: Competence | None = None,
        weights: Sequence[float] | Floats | None = None,
        per_epoch: int | None = None,
        scale: float = 1.0,
    ):
        """Set up.

        Args:
            rows: N, rows of the training data.
            per_step: rows that a step draws, over all processes.
            seed: of everything random.
            difficulty: (N,), higher is harder; None: all alike.
            order: what the pool lets in first.
            competence: step -> share of the rows; None: all from the start.
            weights: (N,) above 0; None: without replacement.
            per_epoch: draws of an epoch, whose last step takes what is left; None: no epochs.
            scale: steps of `competence` that one step here counts for.

        Raises:
            ValueError: weights that are not N numbers above 0, or no rows to draw.
        """
        if rows < 1 or per_step < 1 or (per_epoch is not None and per_epoch < 1):
            raise ValueError(f"rows={rows}, per_step={per_step}, per_epoch={per_epoch}: 1 or more.")
        self.rows, self.per_step, self.per_epoch = rows, per_step, per_epoch
        self.seed = seed % 2**32  # numpy takes no negative ones
        self.competence, self.scale = competence, scale
        self.difficulty = None if difficulty is None else np.asarray(difficulty, dtype=np.float64)
        flat = np.zeros(rows) if self.difficulty is None else self.difficulty
        if len(flat) != rows:
            raise ValueError(f"difficulty has {len(flat)} numbers for {rows} rows.")
        self.order: Ints = curriculum_order(flat, order, seed)
        self.weights = None if weights is None else np.asarray(weights, dtype=np.float64)
        self._sums: Floats | None = None
        if self.weights is not None:
            good = self.weights.shape == (rows,) and np.isfinite(self.weights).all()
            if not good or not (self.weights > 0).all():
                raise ValueError(f"weights: expected {rows} finite numbers above 0.")
            self.weights = self.weights / self.weights.mean()
            self._sums = np.cumsum(self.weights[self.order])
        self.logged = 0  # steps whose metrics were asked for
        self._restart()

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps of an epoch; None without epochs."""
        return None if self.per_epoch is None else math.ceil(self.per_epoch / self.per_step)

    @property
    def next_step(self) -> int:
        """The first step that was not drawn yet."""
        return self._step

    def pool_at(self, step: int) -> int:
        """Rows that a step may draw from: a batch at least, all at most."""
        share = 1.0 if self.competence is None else self.competence(step * self.scale)
        return min(self.rows, max(self.per_step, math.ceil(share * self.rows - 1e-9)))

    def rows_at(self, step: int) -> list[int]:
        """The rows of a step; asking for an earlier one than the last draws from the start."""
        if step < self._step - 1:
            self._restart()
        while self._step <= step:
            self._last = self._draw(self._step)
            self._step += 1
        return self._last

    def _restart(self) -> None:
        self._step = 0
        self._last = []
        self._deck = Deck(self.order, self.seed)
        self._seen: dict[int, dict[str, float]] = {}

    def _draw(self, step: int) -> list[int]:
        count, pool = self._count(step), self.pool_at(step)
        if self._sums is None:
            self._deck.grow(pool)
            drawn = self._deck.deal(count)
        else:
            places = np.random.default_rng([self.seed, 3, step]).random(count)
            found = np.searchsorted(self._sums[:pool], places * self._sums[pool - 1], side="right")
            drawn = self.order[np.minimum(found, pool - 1)].tolist()
        if step >= self.logged:
            self._seen[step] = self._figures(step, drawn, pool)
        return drawn

    def _count(self, step: int) -> int:
        """Rows of a step: fewer in the last one of an epoch."""
        if self.per_epoch is None or self.steps_per_epoch is None:
            return self.per_step
        return min(self.per_step, self.per_epoch - step % self.steps_per_epoch * self.per_step)

    def _figures(self, step: int, drawn: list[int], pool: int) -> dict[str, float]:
        found = {}
        if self.competence is not None:
            found["curriculum/competence"] = self.competence(step * self.scale)
            found["curriculum/pool_share"] = pool / self.rows
        if self.difficulty is not None:
            found["curriculum/difficulty"] = float(self.difficulty[drawn].mean())
        if self.weights is not None:
            found["sampler/weight"] = float(self.weights[drawn].mean())
        return found

    def metrics(self, until: int) -> dict[str, float]:
        """Means over the steps since the last call, up to `until` (not included).

        `curriculum/competence` and `curriculum/pool_share`; `curriculum/difficulty` of the rows
        drawn, in its own unit; `sampler/weight` of the rows drawn, where 1 is uniform.
        """
        if self._step < until:  # resumed between a draw and its log
            self.rows_at(until - 1)
        steps = [step for step in self._seen if self.logged <= step < until]
        found = [self._seen.pop(step) for step in sorted(steps)]
        self.logged = max(self.logged, until)
        keys = found[0] if found else {}
        return {key: math.fsum(row[key] for row in found) / len(found) for key in keys}

    def observe(self, loss: float, next_step: int | None = None) -> bool:
        """Tell adaptive pacing a validation loss; whether the pool grows.

        Args:
            loss: lower is better.
            next_step: from which it may grow; never one that is drawn already, which is also the
                default.
        """
        adaptive = self.competence
        if not isinstance(adaptive, AdaptiveCompetence):
            return False
        return adaptive.observe(loss, max(self._step, next_step or 0) * self.scale)

    def fingerprint(self) -> str:
        """SHA-256 (16 hex digits) of what decides the order, but competence."""
        digest = hashlib.sha256(f"{self.per_step} {self.per_epoch} {self.seed}".encode())
        digest.update(self.order.tobytes())
        if self.weights is not None:
            digest.update(self.weights.tobytes())
        return digest.hexdigest()[:16]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds: the order is drawn again from it."""
        adaptive = self.competence
        state = adaptive.state_dict() if isinstance(adaptive, AdaptiveCompetence) else None
        return {"fingerprint": self.fingerprint(), "adaptive": state, "logged": self.logged}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`.

        Raises:
            ValueError: it is of other rows, difficulties, weights or batches.
        """
        if state["fingerprint"] != self.fingerprint():
            raise ValueError(
                f"the saved order {state['fingerprint']} is not this one, {self.fingerprint()}: "
                "the rows, their difficulties or weights, the seed or the batch size changed. Fix: "
                "resume with the same data and settings, or start a new run."
            )
        if isinstance(self.competence, AdaptiveCompetence):
            self.competence.load_state_dict(state["adaptive"])
        self.logged = int(state["logged"])
        self._restart()
