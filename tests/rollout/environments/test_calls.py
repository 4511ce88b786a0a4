"""Calls into a user's code: order, threads, time-outs, and what errors say."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from align.errors import SamplerError
from align.rollout.calls import Call, Caller


def threads() -> int:
    return sum(thread.name == "align-calls" for thread in threading.enumerate())


async def nap(seconds: float, value: int) -> int:
    await asyncio.sleep(seconds)
    return value


def test_results_are_in_order_and_async_calls_overlap():
    gone: list[int] = []

    async def leave(seconds: float, value: int) -> int:
        await asyncio.sleep(seconds)
        gone.append(value)
        return value

    calls = [Call(f"call {i}", leave, (0.4 - 0.05 * i, i)) for i in range(8)]
    with Caller(5.0) as caller:
        assert caller(calls) == list(range(8))
    assert len(gone) == 8
    assert gone[0] == 7  # the last to begin sleeps the least, and did not wait for the others


def test_sync_calls_share_one_thread_that_is_not_the_callers():
    seen = []
    with Caller(5.0) as caller:
        for _ in range(2):
            caller([Call("where", lambda: seen.append(threading.get_ident()))] * 3)
    assert len(seen) == 6
    assert len(set(seen)) == 1
    assert threading.get_ident() not in seen


def test_a_sync_call_that_hangs_is_reported_in_time_and_others_still_run():
    gate = threading.Event()
    with Caller(1.0) as caller:
        with pytest.raises(SamplerError, match=r"episode 3: step did not return within 1 s"):
            caller([Call("fine", int), Call("episode 3: step", gate.wait)])
        assert not gate.is_set()  # it hangs on
        assert caller([Call("after", int)]) == [0]
    gate.set()


def test_an_async_call_that_hangs_is_cancelled_with_the_others():
    cancelled = []

    async def forever(name: str) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(name)
            raise

    with Caller(1.0) as caller:
        with pytest.raises(SamplerError, match=r"a did not return within 1 s"):
            caller([Call("a", forever, ("a",)), Call("b", forever, ("b",))])
        assert caller([Call("after", nap, (0.0, 1))]) == [1]
    assert sorted(cancelled) == ["a", "b"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_error_names_the_call_and_keeps_its_cause(asynchronous):
    async def later() -> None:
        raise TimeoutError("the database is away")

    def now() -> None:
        raise TimeoutError("the database is away")

    function = later if asynchronous else now
    wanted = "episode 1, turn 2: step raised TimeoutError: the database is away"
    with Caller(5.0) as caller, pytest.raises(SamplerError, match=wanted) as caught:
        caller([Call("episode 1, turn 2: step", function)])
    assert isinstance(caught.value.__cause__, TimeoutError)


def test_it_works_inside_a_running_event_loop():
    async def notebook() -> list[int]:
        with Caller(5.0) as caller:
            return caller([Call("a", nap, (0.0, 4))])

    assert asyncio.run(notebook()) == [4]


def test_no_thread_stays():
    with Caller(5.0) as caller:
        caller([Call("a", nap, (0.0, 4))])
        assert threads() >= 1
    for _ in range(100):
        if threads() == 0:
            return
        time.sleep(0.02)
    raise AssertionError("a thread went on")
