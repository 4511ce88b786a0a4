"""Batches of a reward function: time-outs, calls that go on after theirs, faults, lost clients."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from reward.batching import Batcher, Overdue
from reward.errors import RewardError, RewardTimeoutError
from reward.overrun import WatchedCall

FOREVER = 60.0


class Held:
    """Counts the completions of its calls, and holds each until the gate opens."""

    def __init__(self) -> None:
        self.entered: list[int] = []
        self.gate = threading.Event()

    def plain(self, prompts, completions):
        self.entered.append(len(completions))
        self.gate.wait(FOREVER)
        return [1.0] * len(completions)

    async def stubborn(self, prompts, completions):
        """Ignores that it is cancelled."""
        self.entered.append(len(completions))
        while not self.gate.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
        return [1.0] * len(completions)

    def handing_on(self, prompts, completions):
        return self.stubborn(prompts, completions)


@asynccontextmanager
async def working(batcher: Batcher) -> AsyncIterator[None]:
    task = asyncio.create_task(batcher.run())
    try:
        yield
    finally:
        task.cancel()


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def ask(batcher: Batcher, *completions: str) -> asyncio.Task[Any]:
    prompts: list[Any] = ["p"] * len(completions)
    return asyncio.create_task(batcher.score(prompts, list(completions), {}))


@pytest.mark.parametrize("kind", ["plain", "stubborn", "handing_on"])
def test_a_call_past_its_time_out_is_neither_repeated_nor_joined_by_another(kind):
    held = Held()

    async def story() -> None:
        batcher = Batcher("held", getattr(held, kind), timeout=1.0)
        asked = [ask(batcher, "a"), ask(batcher, "b"), ask(batcher, "c")]
        await asyncio.sleep(0)  # all three are queued before the worker begins
        async with working(batcher):
            for answer in await asyncio.gather(*asked, return_exceptions=True):
                assert isinstance(answer, RewardTimeoutError)
            with pytest.raises(Overdue, match=r"'held' did not return within 1 s and still"):
                await ask(batcher, "queued, until it is plain that the call does not end")
            with pytest.raises(Overdue):
                await ask(batcher, "refused at once")
            assert (batcher.queued, held.entered) == (0, [3])
            held.gate.set()
            await until(lambda: batcher.overdue_since is None)
            assert await ask(batcher, "d") == ([1.0], {})
            assert (held.entered, batcher.scored) == ([3, 1], 1)

    asyncio.run(story())


def test_a_coroutine_past_its_time_out_is_cancelled_and_the_queue_goes_on():
    entered = []

    async def slow_at_first(prompts, completions):
        entered.append(completions)
        if len(entered) == 1:
            try:
                await asyncio.sleep(FOREVER)
            finally:
                await asyncio.sleep(0.1)  # as one that closes its connections
        return [2.0] * len(completions)

    async def story() -> None:
        batcher = Batcher("slow", slow_at_first, timeout=2.0, max_batch=1)
        first, second = ask(batcher, "a"), ask(batcher, "b")
        await asyncio.sleep(0)
        batcher.queue[1].arrived += FOREVER  # it may wait, however slow this machine is
        async with working(batcher):
            with pytest.raises(RewardTimeoutError, match=r"did not return within 2 s"):
                await first
            assert await second == ([2.0], {})

    asyncio.run(story())
    assert entered == [["a"], ["b"]]


def test_after_a_failure_each_comes_alone_but_not_who_has_left():
    entered = []

    async def story() -> None:
        loop = asyncio.get_running_loop()

        def fails(prompts, completions):
            entered.append(completions)
            if len(completions) > 1:
                loop.call_soon_threadsafe(asked[1].cancel)
            if "bad" in completions:
                raise ValueError("bad completion")
            return [3.0] * len(completions)

        batcher = Batcher("fails", fails)
        asked = [ask(batcher, "good"), ask(batcher, "left"), ask(batcher, "bad"), ask(batcher, "x")]
        await asyncio.sleep(0)
        async with working(batcher):
            assert await asked[0] == ([3.0], {})
            with pytest.raises(RewardError, match="'fails' raised ValueError: bad completion"):
                await asked[2]
            assert await asked[3] == ([3.0], {})
            assert asked[1].cancelled()
            assert (batcher.queued, batcher.scored, batcher.dropped) == (0, 2, 1)

    asyncio.run(story())
    assert entered == [["good", "left", "bad", "x"], ["good"], ["bad"], ["x"]]


def test_what_waited_longer_than_the_time_out_is_not_scored():
    held = Held()

    async def story() -> None:
        batcher = Batcher("held", held.plain, timeout=FOREVER)
        async with working(batcher):
            first = ask(batcher, "a")
            await until(lambda: held.entered == [1])
            old, young = ask(batcher, "old"), ask(batcher, "young")
            await until(lambda: batcher.queued == 2)
            batcher.queue[0].arrived -= 2 * FOREVER
            held.gate.set()
            assert await first == await young == ([1.0], {})
            with pytest.raises(RewardTimeoutError, match=r"waited 12\d s for others' and was not"):
                await old

    asyncio.run(story())
    assert held.entered == [1, 1]


def test_a_call_that_was_given_up_before_it_began_never_begins():
    ended = threading.Event()
    held = Held()
    held.gate.set()
    watch = WatchedCall(held.plain, ended.set)
    assert not watch.give_up()
    with pytest.raises(RewardError, match="given up before it began"):
        watch.watched()(prompts=["p"], completions=["c"])
    assert held.entered == []
    assert not ended.is_set()


def test_a_watched_function_keeps_its_name_and_signature():
    def scored(completions, bonus=0.0):
        return [bonus for _ in completions]

    watched = WatchedCall(functools.partial(scored, bonus=1.0), lambda: None).watched()
    assert watched.__name__ == "scored"
    assert list(inspect.signature(watched).parameters) == ["completions", "bonus"]
    assert watched(completions=["c"]) == [1.0]
