"""Calling reward functions: plain or asynchronous, several at once, each within its time-out.

Asynchronous functions, and plain ones that have a time-out or retries, run side by side; a plain
one without runs in the caller's thread. Python cannot stop a thread: a plain function that
overran its time-out is left to end by itself, in a daemon thread that holds nobody up.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from reward.errors import RewardError, RewardTimeoutError
from reward.functions import accepted, check_values, reward_name, short

log = logging.getLogger(__name__)

ASYNC_SECONDS = 600.0  # the time-out of an asynchronous function that was given none
GRACE = 5.0  # seconds an event loop gets beyond a time-out before it counts as blocked
LONGEST_PAUSE = 30.0  # seconds between two attempts
# Faults of the code itself: the next attempt would meet them again, and hide them.
BUGS = (TypeError, NameError, AttributeError, ImportError, SyntaxError, NotImplementedError)


class _TimedOut(TimeoutError):  # noqa: N818 - callers know it as TimeoutError
    """An attempt did not end in time; `blocked` if it held the event loop."""

    def __init__(self, blocked: bool = False):
        self.blocked = blocked


@dataclass(frozen=True)
class RewardCall:
    """One function to be called, and within what bounds."""

    name: str
    function: Callable[..., Any]
    arguments: dict[str, Any]  # prompts, completions and whatever else it may take
    timeout: float | None = None  # seconds of one attempt
    retries: int = 0  # further attempts after an error or a time-out

    @property
    def beside(self) -> bool:
        """Whether it runs beside others rather than in the caller's thread."""
        return self.timeout is not None or self.retries > 0 or is_async(self.function)


@dataclass
class Outcome:
    """What a call came to."""

    values: list[float | None]  # B
    seconds: float
    retries: int = 0  # attempts beyond the first
    problems: list[str] = field(default_factory=list)  # what went wrong before it went right


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine; partials and objects are looked into."""
    inner: Any = function
    while isinstance(inner, partial):
        inner = inner.func
    called = getattr(inner, "__call__", None)  # noqa: B004 - the method itself is looked at
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(called)


def call_together(calls: Sequence[RewardCall]) -> list[Outcome]:
    """Call reward functions at the same time and check what they return.

    Args:
        calls: each with its own time-out and retries.

    Returns:
        one outcome per call, in order.

    Raises:
        RewardError: of the first call (in order) that raised, hung or returned something
            unusable after its retries; the message names it.
    """
    stop = threading.Event()
    beside = len(calls) > 1
    futures = [start_thread(partial(_run, c, stop)) if c.beside and beside else None for c in calls]
    try:
        here = [None if future else _run(c, stop) for c, future in zip(calls, futures, strict=True)]
        return [f.result() if f else o for f, o in zip(futures, here, strict=True)]  # type: ignore[misc]
    finally:
        stop.set()  # after a failure the others begin no further attempt


def _run(call: RewardCall, stop: threading.Event) -> Outcome:
    """A call whose errors say which reward it is, where that is not the function's own name."""
    try:
        return _try(call, stop)
    except RewardError as error:
        if call.name == reward_name(call.function):
            raise
        raise type(error)(f"reward {call.name!r}: {error}") from error


def _try(call: RewardCall, stop: threading.Event) -> Outcome:
    """Attempts until one succeeds."""
    name = reward_name(call.function)
    completions = call.arguments["completions"]
    arguments = accepted(call.function, call.arguments)
    started, problems = time.monotonic(), list[str]()
    while True:
        try:
            values = check_values(name, _attempt(call, arguments), completions)
            return Outcome(values, time.monotonic() - started, len(problems), problems)
        except RewardError:
            raise
        except (Exception, SystemExit) as error:
            problem = _describe(call, error, arguments)
            if isinstance(error, BUGS) or len(problems) >= call.retries or stop.is_set():
                again = f" It was tried {len(problems) + 1} times." if problems else ""
                kind = RewardTimeoutError if isinstance(error, _TimedOut) else RewardError
                raise kind(problem + again) from error
            problems.append(problem)
            log.warning("%s Trying again (%d of %d).", problem, len(problems), call.retries)
            stop.wait(min(LONGEST_PAUSE, 0.5 * 2 ** (len(problems) - 1)))


def _attempt(call: RewardCall, arguments: dict[str, Any]) -> Any:
    function = partial(call.function, **arguments)
    limit = ASYNC_SECONDS if call.timeout is None else call.timeout
    if is_async(call.function):
        return in_loop(function, limit)
    values = function() if call.timeout is None else _in_thread(function, call.timeout)
    if inspect.isawaitable(values):  # a plain function that hands on a coroutine
        return in_loop(lambda: values, limit)
    return values


def _describe(call: RewardCall, error: BaseException, arguments: dict[str, Any]) -> str:
    completions, name = call.arguments["completions"], reward_name(call.function)
    if isinstance(error, _TimedOut):
        limit = ASYNC_SECONDS if call.timeout is None else call.timeout
        held = " It blocks the event loop: await instead, or make it a plain function."
        return (
            f"reward function {name!r} did not return within {limit:g} s "
            f"(on {len(completions)} completions). Fix: raise `timeout`, or make it faster."
            + (held if error.blocked else "")
        )
    given = ", ".join(arguments)
    first = f"; the first was {short(completions[0])}" if len(completions) else ""
    return (
        f"reward function {name!r} raised {type(error).__name__}: {error} "
        f"(on {len(completions)} completions{first}). It was given {given}."
    )


def start_thread(work: Callable[[], Any]) -> Future[Any]:
    """Run in a daemon thread, on the caller's GPU and in its context."""
    future: Future[Any] = Future()
    settle = _on_this_device()

    def body() -> None:
        try:
            settle()
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(body,), daemon=True, name="align-reward").start()
    return future


def _in_thread(work: Callable[[], Any], timeout: float) -> Any:
    future = start_thread(work)
    if not wait([future], timeout).done:
        raise _TimedOut()
    return future.result()


class _Loop:
    """An event loop in a daemon thread, kept from call to call."""

    current: _Loop | None = None
    lock = threading.Lock()

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        run = self.loop.run_forever
        threading.Thread(target=run, daemon=True, name="align-reward-loop").start()

    @classmethod
    def get(cls) -> _Loop:
        """The one in use; a new one after a function blocked the last."""
        with cls.lock:
            if cls.current is None:
                cls.current = cls()
            return cls.current

    def abandon(self) -> None:
        """Leave it to whoever blocks it."""
        with _Loop.lock:
            if _Loop.current is self:
                _Loop.current = None


def in_loop(make: Callable[[], Awaitable[Any]], timeout: float) -> Any:
    """Await on the background loop, so that the caller may itself be in a loop (a notebook).

    Raises:
        TimeoutError: it did not end within `timeout` seconds.
    """
    settle = _on_this_device()

    async def bounded() -> Any:
        settle()
        task = asyncio.ensure_future(make())
        # Not wait_for, which waits on for a task that ignores its cancellation.
        done, _ = await asyncio.wait({task}, timeout=timeout)
        if not done:
            task.cancel()
            raise _TimedOut()
        return task.result()

    loop = _Loop.get()
    future = asyncio.run_coroutine_threadsafe(bounded(), loop.loop)
    if not wait([future], timeout + GRACE).done:
        loop.abandon()
        raise _TimedOut(blocked=True)
    return future.result()


def _on_this_device() -> Callable[[], None]:
    """What makes a new thread compute on the GPU that this thread computes on."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return lambda: None
    return partial(torch.cuda.set_device, torch.cuda.current_device())
