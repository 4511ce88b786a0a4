"""Requests of many clients as batches of one reward function, with a bounded queue.

A batch is what has come together while the last one ran, or within `max_wait` of a first request.
When the queue is full a request is refused at once: waiting belongs to the client, who can stop.
What nobody waits for is not scored, and nothing is scored beside a call that overran its time-out.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from feedback.schema import Text
from reward.call import RewardCall, call_together, start_thread
from reward.errors import RewardTimeoutError
from reward.overrun import WatchedCall

Answer = tuple[list[float | None], dict[str, float]]  # rewards, and what the function logged
LONGEST_WAIT = 60.0  # seconds that a refused client is told to wait at most
OVERDUE_WAIT = 5.0  # seconds that it is told to wait for a call that overran its time-out
GRACE = 1.0  # seconds in which such a call may end before anyone is refused: a coroutine does


class Refused(Exception):  # noqa: N818 - an answer, not a fault
    """Nothing was scored; `retry_after` seconds may change that."""

    def __init__(self, message: str, retry_after: float):
        super().__init__(message)
        self.retry_after = retry_after


class Overloaded(Refused):
    """The queue is full."""

    def __init__(self, queued: int, limit: int, retry_after: float):
        message = f"{queued} completions wait already, and the queue holds {limit}."
        super().__init__(message, retry_after)


class Overdue(Refused):
    """A call overran its time-out and has not ended."""


@dataclass(eq=False)
class _Item:
    """One request."""

    prompts: list[Text]
    completions: list[Text]
    columns: dict[str, list[Any]]
    answer: asyncio.Future[Answer]
    alone: bool = False  # its batch failed; no other shall share its fate again
    arrived: float = field(default_factory=time.monotonic)

    def refuse(self, error: Exception) -> None:
        """Answer with an error, if anyone waits."""
        if not self.answer.done():
            self.answer.set_exception(error)


class Batcher:
    """A reward function behind a queue, and `run` its only worker.

    The function need not be thread-safe: it is not called while another call of it runs, not even
    one that was given up.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        *,
        max_batch: int = 64,
        max_wait: float = 0.01,
        max_queue: int = 2048,
        timeout: float | None = 600.0,
    ):
        """Set up.

        Args:
            name: of the reward.
            function: a `RewardFn`.
            max_batch: completions per call; a single larger request is not divided.
            max_wait: seconds that a first request waits for others.
            max_queue: completions that may wait.
            timeout: seconds for one call, and for which a request may wait for others'.
        """
        self.name, self.function = name, function
        self.max_batch, self.max_wait, self.max_queue = max_batch, max_wait, max_queue
        self.timeout = timeout
        self.queue: deque[_Item] = deque()
        self.queued = 0  # completions
        self.batches = 0
        self.scored = 0  # completions
        self.dropped = 0  # completions that nobody waited for any more, or that waited too long
        self.overdue_since: float | None = None  # when the call that overran was given up
        self.seconds_each = 0.0  # of a completion, averaged over the latest batches
        self._arrived = asyncio.Event()
        self._ended = asyncio.Event()  # a call that was given up has ended
        self._late = False  # there is such a call

    async def score(
        self, prompts: list[Text], completions: list[Text], columns: dict[str, list[Any]]
    ) -> Answer:
        """Rewards of one request, computed with others'; cancelling it takes it off the queue.

        Raises:
            Overloaded: the queue is full.
            Overdue: a call that overran its time-out still runs.
            RewardError: the function failed on these completions.
        """
        if not completions:
            return [], {}
        if self.overdue_since is not None:
            raise self._overdue()
        if self.queued and self.queued + len(completions) > self.max_queue:
            raise Overloaded(self.queued, self.max_queue, self.retry_after())
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        item = _Item(prompts, completions, columns, answer)
        self.queue.append(item)
        self.queued += len(completions)
        self._arrived.set()
        try:
            return await answer
        except asyncio.CancelledError:
            if item in self.queue:
                self.queue.remove(item)
                self.queued -= len(completions)
                self.dropped += len(completions)
            raise

    def retry_after(self) -> float:
        """Whole seconds until half the queue should be done."""
        return min(LONGEST_WAIT, max(1.0, math.ceil(self.queued * self.seconds_each / 2)))

    async def run(self) -> None:
        """Work for ever."""
        while True:
            items = await self._next()
            if items:
                started = time.monotonic()
                await self._answer(items)
                rows = sum(len(item.completions) for item in items)
                each = (time.monotonic() - started) / rows
                self.seconds_each = 0.7 * self.seconds_each + 0.3 * each if self.batches else each
                self.batches += 1
            if self._late:
                await self._until_ended()

    async def _next(self) -> list[_Item]:
        """The next batch: requests that bring the same columns, in the order they came."""
        while not self.queue:
            self._arrived.clear()
            await self._arrived.wait()
        deadline = time.monotonic() + (0.0 if self.queue[0].alone else self.max_wait)
        while self.queued < self.max_batch and (left := deadline - time.monotonic()) > 0:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                break
        items: list[_Item] = []
        while self.queue and self._fits(self.queue[0], items):
            item = self.queue.popleft()
            self.queued -= len(item.completions)
            if self._wanted(item):
                items.append(item)
        return items

    def _fits(self, item: _Item, items: list[_Item]) -> bool:
        if not items:
            return True
        if item.alone or items[0].alone or item.columns.keys() != items[0].columns.keys():
            return False
        return sum(len(each.completions) for each in [*items, item]) <= self.max_batch

    def _wanted(self, item: _Item) -> bool:
        """Whether anyone waits for a request; one that waited too long is told so."""
        waited = time.monotonic() - item.arrived
        if not item.answer.done() and (self.timeout is None or waited <= self.timeout):
            return True
        self.dropped += len(item.completions)
        item.refuse(
            RewardTimeoutError(
                f"reward {self.name!r}: the request waited {waited:.0f} s for others' and was not "
                "scored. Fix: send less at a time, or raise --timeout of the server."
            )
        )
        return False

    async def _answer(self, items: list[_Item]) -> None:
        """Score a batch; if it fails, each request comes alone, so that one spoils no other."""
        try:
            rewards, metrics = await self._call(items)
        except RewardTimeoutError as error:  # one by one they would take that time each
            for item in items:
                item.refuse(error)
        except Exception as error:  # whatever it is, the worker goes on and the clients hear it
            if len(items) == 1:
                items[0].refuse(error)
                return
            for item in reversed(items):
                item.alone = True
                self.queue.appendleft(item)
                self.queued += len(item.completions)
        else:
            start = 0
            for item in items:
                part = rewards[start : start + len(item.completions)]
                start += len(item.completions)
                if not item.answer.done():
                    item.answer.set_result((part, metrics))
            self.scored += start

    async def _call(self, items: list[_Item]) -> Answer:
        noted: dict[str, list[float]] = defaultdict(list)
        arguments: dict[str, Any] = {
            "prompts": [p for item in items for p in item.prompts],
            "completions": [c for item in items for c in item.completions],
            "log_metric": lambda key, value: noted[key].append(float(value)),
        }
        for key in items[0].columns:
            arguments[key] = [value for item in items for value in item.columns[key]]
        loop = asyncio.get_running_loop()

        def ended() -> None:
            with suppress(RuntimeError):  # the server has stopped
                loop.call_soon_threadsafe(self._ended.set)

        self._ended.clear()
        watch = WatchedCall(self.function, ended)
        call = RewardCall(self.name, watch.watched(), arguments, timeout=self.timeout)
        try:
            # A thread of our own: those of asyncio would hold up the end of the process.
            outcome = await asyncio.wrap_future(start_thread(lambda: call_together([call])[0]))
        except RewardTimeoutError:
            self._late = watch.give_up()
            raise
        means = {key: math.fsum(values) / len(values) for key, values in noted.items()}
        return outcome.values, means

    async def _until_ended(self) -> None:
        """Wait for a call that overran its time-out, and refuse what comes meanwhile."""
        try:
            await asyncio.wait_for(self._ended.wait(), GRACE)
        except TimeoutError:
            self.overdue_since = time.monotonic()
            while self.queue:
                item = self.queue.popleft()
                self.queued -= len(item.completions)
                item.refuse(self._overdue())
            await self._ended.wait()
        self._late, self.overdue_since = False, None

    def _overdue(self) -> Overdue:
        return Overdue(
            f"reward {self.name!r} did not return within {self.timeout or 0:g} s and still works "
            "on that batch; until it returns, nothing else is scored. Fix: make it faster, raise "
            "--timeout, or start the server anew.",
            OVERDUE_WAIT,
        )
