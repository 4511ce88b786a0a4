"""One call of a reward function, which may go on after its time-out: Python cannot stop a thread.

Says whether it does and tells when it has ended, so that nobody calls the function meanwhile.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from reward.call import is_async
from reward.errors import RewardError
from reward.functions import reward_name


class WatchedCall:
    """Stands between a caller and a function, for one call."""

    def __init__(self, function: Callable[..., Any], ended: Callable[[], None]):
        """Set up.

        Args:
            function: plain, `async`, or plain and handing on what is to be awaited.
            ended: called, in any thread, when a call ends that was given up while it ran.
        """
        self.function, self._ended = function, ended
        self._lock = threading.Lock()
        self._running = self._given_up = False

    def give_up(self) -> bool:
        """From now on it may not begin; whether it has begun and not ended."""
        with self._lock:
            self._given_up = True
            return self._running

    def watched(self) -> Callable[..., Any]:
        """The function, with its own name and signature, and as asynchronous as it is."""
        function = self.function

        def plain(**arguments: Any) -> Any:
            with self._inside():
                values = function(**arguments)
            return self._awaited(values) if inspect.isawaitable(values) else values

        async def asynchronous(**arguments: Any) -> Any:
            with self._inside():
                return await function(**arguments)

        made = functools.wraps(function, updated=())(asynchronous if is_async(function) else plain)
        made.__name__ = reward_name(function)  # a partial or an object has none to be copied
        return made

    async def _awaited(self, values: Awaitable[Any]) -> Any:
        with self._inside():
            return await values

    @contextmanager
    def _inside(self) -> Iterator[None]:
        with self._lock:
            if self._given_up:  # its thread was so slow to begin that nobody waits any more
                raise RewardError("the call was given up before it began.")
            self._running = True
        try:
            yield
        finally:
            with self._lock:
                self._running, late = False, self._given_up
            if late:
                self._ended()
