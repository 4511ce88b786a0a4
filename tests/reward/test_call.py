"""Calling reward functions: together, within their time-outs, again after a failure."""

from __future__ import annotations

import asyncio
import functools
import threading
import time

import pytest

from reward import call as call_module
from reward.call import RewardCall, call_together
from reward.errors import RewardError
from reward.functions import call_reward, load_reward_function, reward_name

ROWS = {"prompts": ["p", "q"], "completions": ["one", "three"]}


def lengths(prompts, completions, **columns):
    return [float(len(text)) for text in completions]


async def later(completions, **columns):
    await asyncio.sleep(0.01)
    return [float(len(text)) for text in completions]


class Counting:
    """Fails so many times before it answers."""

    def __init__(self, failures, error=None):
        self.failures, self.calls = failures, 0
        self.error = error or OSError("no route")

    def __call__(self, completions, **columns):
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return [1.0] * len(completions)


class AsyncObject:
    async def __call__(self, completions, **columns):
        return [2.0] * len(completions)


@pytest.mark.parametrize(
    "function",
    [
        lengths,
        later,
        functools.partial(later, extra=1),
        lambda completions: later(completions),  # a plain function that hands on a coroutine
    ],
)
def test_sync_and_async_functions_give_the_same(function):
    assert call_reward(function, **ROWS) == [3.0, 5.0]
    outcomes = call_together([RewardCall("r", function, ROWS, timeout=60.0)] * 2)
    assert [o.values for o in outcomes] == [[3.0, 5.0]] * 2


def test_an_object_with_an_async_call():
    assert call_reward(AsyncObject(), **ROWS) == [2.0, 2.0]


def test_async_works_inside_a_running_loop():
    async def notebook():
        return call_reward(later, **ROWS)

    assert asyncio.run(notebook()) == [3.0, 5.0]


def test_slow_functions_wait_for_each_other():
    """Each leaves only when all three are inside: one after another they would never end."""
    barrier = threading.Barrier(3, timeout=30)

    def blocking(completions):
        barrier.wait()
        return [1.0] * len(completions)

    async def asynchronous(completions):
        await asyncio.to_thread(barrier.wait)
        return [2.0] * len(completions)

    calls = [
        RewardCall("a", blocking, ROWS, timeout=60.0),
        RewardCall("b", asynchronous, ROWS, timeout=60.0),
        RewardCall("c", blocking, ROWS),  # in the caller's thread, while the others run
    ]
    assert [o.values[0] for o in call_together(calls)] == [1.0, 2.0, 1.0]


def test_a_plain_function_without_time_out_runs_in_the_callers_thread():
    seen = []
    call_reward(lambda completions: seen.append(threading.current_thread()) or [0.0, 0.0], **ROWS)
    assert seen == [threading.current_thread()]


@pytest.mark.parametrize("kind", ["sync", "async", "stubborn"])
def test_what_hangs_is_given_up(kind):
    release = threading.Event()

    def hang(completions):
        release.wait(90)

    async def hang_async(completions):
        await asyncio.sleep(90)

    async def stubborn(completions):  # ignores its cancellation
        while not release.is_set():
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                continue

    function = {"sync": hang, "async": hang_async, "stubborn": stubborn}[kind]
    started = time.monotonic()
    try:
        with pytest.raises(
            RewardError,
            match=r"^reward 'slow': reward function '\w+' did not return within 0.2 s .*`timeout`",
        ):
            call_together([RewardCall("slow", function, ROWS, timeout=0.2)])
        assert time.monotonic() - started < 30
    finally:
        release.set()


def test_an_async_function_that_blocks_its_loop_is_named_and_the_next_still_runs(monkeypatch):
    monkeypatch.setattr(call_module, "GRACE", 0.2)
    release = threading.Event()

    async def blocks(completions):
        release.wait(90)
        return [0.0, 0.0]

    try:
        with pytest.raises(RewardError, match="blocks the event loop"):
            call_together([RewardCall("r", blocks, ROWS, timeout=0.1)])
        assert call_reward(later, **ROWS) == [3.0, 5.0]
    finally:
        release.set()


def test_retries(monkeypatch):
    monkeypatch.setattr(call_module, "LONGEST_PAUSE", 0.01)
    function = Counting(2)
    outcome = call_together([RewardCall("r", function, ROWS, retries=2)])[0]
    assert (outcome.values, outcome.retries, function.calls) == ([1.0, 1.0], 2, 3)
    assert "no route" in outcome.problems[0]
    with pytest.raises(RewardError, match=r"raised OSError: no route .* It was tried 2 times"):
        call_together([RewardCall("r", Counting(5), ROWS, retries=1)])


def test_a_bug_is_not_tried_again():
    function = Counting(1, TypeError("unsupported operand"))
    with pytest.raises(RewardError, match="unsupported operand"):
        call_together([RewardCall("r", function, ROWS, retries=9)])
    assert function.calls == 1


def test_a_hang_can_be_tried_again(monkeypatch):
    monkeypatch.setattr(call_module, "LONGEST_PAUSE", 0.01)
    release, calls = threading.Event(), []

    def sometimes(completions):
        calls.append(1)
        if len(calls) == 1:
            release.wait(90)
        return [4.0, 4.0]

    try:
        outcome = call_together([RewardCall("r", sometimes, ROWS, timeout=2.0, retries=1)])[0]
    finally:
        release.set()
    assert (outcome.values, outcome.retries) == ([4.0, 4.0], 1)


def test_the_first_failure_is_raised_without_waiting_for_retries_of_others(monkeypatch):
    def broken(completions):
        raise ValueError("broken")

    started = time.monotonic()
    with pytest.raises(
        RewardError, match="reward 'a': reward function 'broken' raised ValueError: broken"
    ):
        call_together(
            [RewardCall("a", broken, ROWS), RewardCall("b", Counting(9), ROWS, retries=8)]
        )
    assert time.monotonic() - started < 30


def test_a_function_gets_what_its_signature_names():
    def narrow(completions, answer):
        return [float(a) for a in answer]

    def wide(completions, **columns):
        assert sorted(columns) == ["answer", "prompts", "trainer_state"]
        return [0.0, 0.0]

    extra = {"answer": ["1", "2"], "trainer_state": None}
    assert call_reward(narrow, **ROWS, **extra) == [1.0, 2.0]
    call_reward(wide, **ROWS, **extra)
    with pytest.raises(RewardError, match=r"missing .*'answer'.*given completions"):
        call_reward(narrow, **ROWS)


def test_sys_exit_in_a_function_is_its_failure():
    def leave(completions):
        raise SystemExit(3)

    for timeout in (None, 5.0):
        with pytest.raises(RewardError, match="raised SystemExit: 3"):
            call_together([RewardCall("r", leave, ROWS, timeout=timeout)])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], "returned 1 rewards, but 2 completions"),
        (3.0, "returned float, but a list of 2 floats"),
        ([1.0, float("nan")], "returned nan for completion 1: 'three'"),
        ([1.0, "good"], "returned 'good' for completion 1"),
        ([None, 1.0], "returned None for completion 0"),
    ],
)
def test_call_reward_refuses_anything_but_finite_floats(values, message):
    with pytest.raises(RewardError, match=message):
        call_reward(lambda completions: values, **ROWS)


def test_none_is_kept_where_it_may_be():
    def half(completions):
        return [None, 2]

    assert call_together([RewardCall("r", half, ROWS)])[0].values == [None, 2.0]


def test_functions_and_classes_are_loaded_with_arguments(tmp_path, monkeypatch):
    (tmp_path / "loaded_rewards.py").write_text(
        "def scaled(completions, factor=1.0, **columns):\n"
        "    return [factor * len(c) for c in completions]\n"
        "class Bonus:\n"
        "    def __init__(self, size): self.size = size\n"
        "    def __call__(self, completions, **columns): return [self.size] * len(completions)\n"
        "class Mute:\n"
        "    pass\n"
    )
    load = functools.partial(load_reward_function, folder=tmp_path)
    scaled = load("loaded_rewards:scaled", kwargs={"factor": 2})
    assert call_reward(scaled, **ROWS) == [6.0, 10.0]
    assert reward_name(scaled) == "scaled"
    assert call_reward(load("loaded_rewards:Bonus", kwargs={"size": 5}), **ROWS) == [5.0, 5.0]
    with pytest.raises(RewardError, match=r"kwargs \{'sise': 5\} do not fit it: .*It takes size"):
        load("loaded_rewards:Bonus", kwargs={"sise": 5})
    with pytest.raises(RewardError, match="objects of class Mute cannot be called"):
        load("loaded_rewards:Mute")
    with pytest.raises(RewardError, match="has no callable 'gone'; it has Bonus, Mute, scaled"):
        load("loaded_rewards:gone")
