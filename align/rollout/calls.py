"""Calls into code of a user's, sync or async, each within a time-out.

All calls run in one thread of their own: sync ones one after another, so that what they use is
never met by two threads at once; async ones all at once in that thread's event loop. A thread
cannot be stopped from outside: one that hangs is left behind, and a new one takes its place.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from align.errors import SamplerError

GRACE = 1.0  # seconds beyond the time-out for an async call to take note of it


@dataclass(frozen=True)
class Call:
    """A function with its arguments, and what errors say about it."""

    label: str  # "environment Guess, episode 3, turn 2: step"
    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


class Caller:
    """`with Caller(timeout=60) as caller: values = caller([Call(...), ...])`."""

    def __init__(self, timeout: float):
        self.timeout = timeout
        self._loop: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def __call__(self, calls: Sequence[Call]) -> list[Any]:
        """What the functions return, in order.

        Raises:
            SamplerError: the first call that raised or did not return in time.
        """
        together = [call for call in calls if inspect.iscoroutinefunction(call.function)]
        pending = {id(call): self._submit(self._run(call)) for call in together}
        results = []
        try:
            for call in calls:
                future = pending.pop(id(call), None) or self._submit(self._run(call))
                results.append(self._wait(call, future))
        finally:
            for future in pending.values():  # left over after an error
                future.cancel()
        return results

    def _wait(self, call: Call, future: concurrent.futures.Future[Any]) -> Any:
        alone = not inspect.iscoroutinefunction(call.function)
        try:
            return future.result(self.timeout if alone else self.timeout + GRACE)
        except _TimeOut:
            raise self._late(call) from None
        except TimeoutError as error:
            if future.done() and future.exception() is error:  # the function itself raised it
                raise _failed(call, error) from error
            self._stop()  # this thread hangs; it ends when what it waits for does
            self._start()
            raise self._late(call) from None
        except Exception as error:
            raise _failed(call, error) from error

    async def _run(self, call: Call) -> Any:
        value = call.function(*call.args, **call.kwargs)
        if not inspect.isawaitable(value):
            return value
        try:
            async with asyncio.timeout(self.timeout) as limit:
                return await value
        except TimeoutError:
            if limit.expired():
                raise _TimeOut from None
            raise

    def _late(self, call: Call) -> SamplerError:
        return SamplerError(
            f"{call.label} did not return within {self.timeout:g} s. Fix: find out what it waits "
            "for, or allow it more time (timeout)."
        )

    def _start(self) -> None:
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=_serve, args=(self._loop,), name="align-calls")
        thread.daemon = True  # one that hangs must not keep the process
        thread.start()

    def _stop(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None:
            asyncio.run_coroutine_threadsafe(_cancel_all(), loop).add_done_callback(
                lambda _: loop.call_soon_threadsafe(loop.stop)
            )

    def _submit(self, coroutine: Coroutine[Any, Any, Any]) -> concurrent.futures.Future[Any]:
        assert self._loop is not None, "use `with Caller(...)`"
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)


class _TimeOut(Exception):  # noqa: N818 - never leaves this file
    """Our own limit, as against a TimeoutError of the function's."""


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


async def _cancel_all() -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _failed(call: Call, error: BaseException) -> SamplerError:
    return SamplerError(f"{call.label} raised {type(error).__name__}: {error}")
