"""Where an on-policy run's time goes: drawing completions, scoring them, and training on them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class PhaseClock:
    """Seconds of this process since the last reading.

    What is neither drawing nor scoring, from the first of them on, counts as training. Completions
    that are drawn ahead in a thread count beside the training that goes on meanwhile.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        """Set up.

        Args:
            clock: seconds.
        """
        self.clock = clock
        self.seconds: dict[str, float] = defaultdict(float)
        self.training_from: float | None = None

    @contextmanager
    def phase(self, name: str, *, beside: bool = False) -> Iterator[None]:
        """What happens inside is drawing or scoring.

        Args:
            name: of the phase.
            beside: training goes on meanwhile.
        """
        if not beside:
            self._train_until_now()
        started = self.clock()
        try:
            yield
        finally:
            self.seconds[name] += self.clock() - started
            if not beside:
                self.training_from = self.clock()

    def read(self) -> dict[str, float]:
        """`speed/NAME_seconds` of every phase since the last call."""
        self._train_until_now()
        self.training_from = self.clock()
        found = {f"speed/{name}_seconds": seconds for name, seconds in self.seconds.items()}
        self.seconds.clear()
        return found

    def _train_until_now(self) -> None:
        if self.training_from is not None:
            self.seconds["training"] += self.clock() - self.training_from
            self.training_from = None
