"""Inside the sandbox, beside the solution: runs it, and calls what the tests call.

Whatever the solution does to this process, its only way out is what it returns: the tests and
their assertions run in another sandbox (`reward.verify.test_side`).
"""

import operator
import os
import sys
from functools import cache, partial
from types import ModuleType
from typing import Any

from reward.verify.wire import decode, encode, receive, send

MOST = 8 << 20  # bytes of one message
OPERATORS: dict[str, Any] = {
    f"__{each.__name__}__": each for each in (bool, len, iter, next, str, repr, int, float)
}


@cache
def loop() -> Any:
    """One loop for all that tests await."""
    import asyncio  # which takes longer than most solutions

    return asyncio.new_event_loop()


OPERATORS["__await__"] = lambda awaitable: loop().run_until_complete(awaitable)


class Objects:
    """What was handed out by number, so that tests can use it again."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def stand_in(self, value: Any) -> dict[str, Any]:
        """The number of an object, and what it is."""
        self.kept.append(value)
        kinds = value.__mro__ if isinstance(value, type) else ()
        bases = [k.__name__ for k in kinds] if BaseException in kinds else []
        return {"o": len(self.kept) - 1, "n": type(value).__name__, "e": bases}

    def resolve(self, held: dict[str, Any]) -> Any:
        """The object of a number."""
        return self.kept[held["o"]]


def define(source: str, objects: Objects) -> dict[str, Any]:
    """Run the solution's text; its public names, encoded."""
    module = ModuleType("solution")
    sys.modules["solution"] = module  # dataclasses look themselves up there
    exec(compile(source, "solution.py", "exec"), module.__dict__)
    return {
        name: encode(value, objects.stand_in)
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }


def perform(request: dict[str, Any], objects: Objects) -> dict[str, Any]:
    """Call, or read an attribute; arguments go back as the call left them."""
    target = objects.kept[request["on"]]
    if "attribute" in request:
        value = getattr(target, request["attribute"])
        return {"value": encode(value, objects.stand_in)}
    arguments = decode(request["arguments"], objects.resolve)
    named = decode(request["named"], objects.resolve)
    value = called(target, request["method"])(*arguments, **named)
    return {
        "value": encode(value, objects.stand_in),
        "arguments": encode(arguments, objects.stand_in),
    }


def called(target: Any, method: str) -> Any:
    """What a test's call means here; operators as Python itself would look them up."""
    if not method:
        return target
    own = OPERATORS.get(method) or (method[:2] == "__" and getattr(operator, method, None))
    return partial(own, target) if own else getattr(target, method)


def failure(error: BaseException) -> dict[str, Any]:
    """An exception, by name."""
    bases = [kind.__name__ for kind in type(error).__mro__]
    return {"raised": bases, "message": str(error)[:2000]}


def main() -> None:
    """Serve until the tests have ended."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)  # what the solution prints is none of the tests' business
    objects = Objects()
    with open("/box/solution.py", encoding="utf-8") as file:
        source = file.read()
    try:
        send(replies, {"names": define(source, objects)})
    except BaseException as error:
        send(replies, failure(error))
        return
    while True:
        try:
            request = receive(requests, MOST)
        except EOFError:
            return
        try:
            reply = perform(request, objects)
        except BaseException as error:
            reply = failure(error)
        send(replies, reply)


if __name__ == "__main__":
    main()
