"""Requests of many clients as batches of one reward function, with a bounded queue.

A batch is what has come together while the last one ran, or within `max_wait` of a first request.
When the queue is full a request is refused at once: waiting belongs to the client, who can stop.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from feedback.schema import Text
from reward.call import RewardCall, call_together, start_thread

Answer = tuple[list[float | None], dict[str, float]]  # rewards, and what the function logged
LONGEST_WAIT = 60.0  # seconds that a refused client is told to wait at most


class Overloaded(Exception):  # noqa: N818 - an answer, not a fault
    """The queue is full; `retry_after` seconds should empty it."""

    def __init__(self, queued: int, limit: int, retry_after: float):
        super().__init__(f"{queued} completions wait already, and the queue holds {limit}.")
        self.retry_after = retry_after


@dataclass
class _Item:
    """One request."""

    prompts: list[Text]
    completions: list[Text]
    columns: dict[str, list[Any]]
    answer: asyncio.Future[Answer]


class Batcher:
    """A reward function behind a queue; `run` is its only worker, so it need not be thread-safe."""

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
            timeout: seconds for one call.
        """
        self.name, self.function = name, function
        self.max_batch, self.max_wait, self.max_queue = max_batch, max_wait, max_queue
        self.timeout = timeout
        self.queue: deque[_Item] = deque()
        self.queued = 0  # completions
        self.batches = 0
        self.scored = 0  # completions
        self.seconds_each = 0.0  # of a completion, averaged over the latest batches
        self._arrived = asyncio.Event()

    async def score(
        self, prompts: list[Text], completions: list[Text], columns: dict[str, list[Any]]
    ) -> Answer:
        """Rewards of one request, computed with others'.

        Raises:
            Overloaded: the queue is full.
            RewardError: the function failed on these completions.
        """
        if not completions:
            return [], {}
        if self.queued and self.queued + len(completions) > self.max_queue:
            raise Overloaded(self.queued, self.max_queue, self.retry_after())
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.queue.append(_Item(prompts, completions, columns, answer))
        self.queued += len(completions)
        self._arrived.set()
        return await answer

    def retry_after(self) -> float:
        """Whole seconds until half the queue should be done."""
        return min(LONGEST_WAIT, max(1.0, math.ceil(self.queued * self.seconds_each / 2)))

    async def run(self) -> None:
        """Work for ever."""
        while True:
            items = await self._next()
            started = time.monotonic()
            await self._answer(items)
            rows = sum(len(item.completions) for item in items)
            each = (time.monotonic() - started) / max(1, rows)
            self.seconds_each = 0.7 * self.seconds_each + 0.3 * each if self.batches else each
            self.batches += 1
            self.scored += rows

    async def _next(self) -> list[_Item]:
        """The next batch: requests that bring the same columns, in the order they came."""
        while not self.queue:
            self._arrived.clear()
            await self._arrived.wait()
        deadline = time.monotonic() + self.max_wait
        while self.queued < self.max_batch and (left := deadline - time.monotonic()) > 0:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                break
        items, rows = [self.queue.popleft()], 0
        while self.queue:
            rows = sum(len(item.completions) for item in items)
            following = self.queue[0]
            alike = following.columns.keys() == items[0].columns.keys()
            if not alike or rows + len(following.completions) > self.max_batch:
                break
            items.append(self.queue.popleft())
        self.queued -= sum(len(item.completions) for item in items)
        return [item for item in items if not item.answer.cancelled()]  # the client has left

    async def _answer(self, items: list[_Item]) -> None:
        """Score a batch; if it fails, each request alone, so that one spoils no other."""
        try:
            rewards, metrics = await self._call(items)
        except Exception as error:  # whatever it is, the worker goes on and the clients hear it
            if len(items) > 1:
                for item in items:
                    await self._answer([item])
            elif items and not items[0].answer.done():
                items[0].answer.set_exception(error)
            return
        start = 0
        for item in items:
            part = rewards[start : start + len(item.completions)]
            start += len(item.completions)
            if not item.answer.done():
                item.answer.set_result((part, metrics))

    async def _call(self, items: list[_Item]) -> Answer:
        noted: dict[str, list[float]] = defaultdict(list)
        arguments: dict[str, Any] = {
            "prompts": [p for item in items for p in item.prompts],
            "completions": [c for item in items for c in item.completions],
            "log_metric": lambda key, value: noted[key].append(float(value)),
        }
        for key in items[0].columns if items else ():
            arguments[key] = [value for item in items for value in item.columns[key]]
        if not items:
            return [], {}
        call = RewardCall(self.name, self.function, arguments, timeout=self.timeout)
        # A thread of our own: those of asyncio would hold up the end of the process.
        outcome = await asyncio.wrap_future(start_thread(lambda: call_together([call])[0]))
        means = {key: math.fsum(values) / len(values) for key, values in noted.items()}
        return outcome.values, means
