"""Drawing without replacement from a pool that grows.

A pass deals every row of the pool once, in random order. A row let in during a pass takes a random
place in what is left of it; so within a pass no row comes twice, and after the pool has stopped
growing every pass is a whole epoch.
"""

from __future__ import annotations

import heapq

import numpy as np

from align.data.curriculum.rank import Ints


class Deck:
    """Deals rows; the same calls with the same seed deal the same."""

    def __init__(self, order: Ints, seed: int):
        """`order` is (N,), the row numbers in the order in which the pool takes them in."""
        self.order = order
        self.size = 0  # rows in the pool
        self.passes = 0  # begun so far
        self._random = np.random.default_rng([seed, 2])
        self._dealt: list[tuple[float, int]] = []  # this pass's rows by place, from its beginning
        self._next = 0
        self._late: list[tuple[float, int]] = []  # a heap: rows let in during this pass
        self._place = 1.0  # of the last row dealt

    def grow(self, size: int) -> None:
        """Let rows in until the pool has `size` of them; it never shrinks."""
        new = self.order[self.size : size]
        if not len(new):
            return
        if self.passes:
            places = self._place + (1 - self._place) * self._random.random(len(new))
            for place, row in zip(places.tolist(), new.tolist(), strict=True):
                heapq.heappush(self._late, (place, row))
        self.size += len(new)

    def deal(self, count: int) -> list[int]:
        """The next rows."""
        return [self._one() for _ in range(count)]

    def _one(self) -> int:
        if self._next >= len(self._dealt) and not self._late:
            self._shuffle()
        dealt = self._dealt[self._next] if self._next < len(self._dealt) else None
        if dealt is None or (self._late and self._late[0] < dealt):
            self._place, row = heapq.heappop(self._late)
        else:
            self._place, row = dealt
            self._next += 1
        return row

    def _shuffle(self) -> None:
        places = self._random.random(self.size)
        self._dealt = sorted(zip(places.tolist(), self.order[: self.size].tolist(), strict=True))
        self._next, self._place = 0, 0.0
        self.passes += 1
