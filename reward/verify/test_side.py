"""Inside the sandbox, beside the tests: runs them against a solution in another process.

Tests see the solution's functions, classes and values under their own names; each call crosses to
the solution's process and brings plain data back. Assertions run here, where the solution has no
hand in them. Leaves out handing the solution a function of the tests, which cannot cross.
"""

import builtins
import inspect
import io
import json
import os
import sys
from typing import Any

from reward.verify.wire import decode, encode, receive, send

MOST = 8 << 20  # bytes of one message


class SolutionError(Exception):
    """The solution raised something that has no standard name, ended, or gave back nonsense."""


class Link:
    """The line to the solution."""

    def __init__(self, replies: Any, requests: Any):
        self.replies, self.requests = replies, requests
        self.errors: dict[str, type[BaseException]] = {}

    def names(self) -> dict[str, Any]:
        """What the solution defines.

        Raises:
            Exception: what it raised instead.
        """
        said = self.hear()
        return {
            name: decode(value, self.resolve)
            for name, value in said["names"].items()
            # A solution's `all` or `len` must not take the place of the tests' own.
            if not name.startswith("_") and not hasattr(builtins, name)
        }

    def ask(self, request: dict[str, Any], arguments: Any = ()) -> Any:
        """The value of a call or attribute; mutable arguments become what the call made of them."""
        send(self.requests, request)
        said = self.hear()
        left = decode(said.get("arguments"), self.resolve) or ()
        for ours, theirs in zip(arguments, left, strict=False):  # an attribute has none
            replace(ours, theirs)
        return decode(said["value"], self.resolve)

    def hear(self) -> Any:
        """The solution's next message; what it raised is raised here.

        Raises:
            SolutionError: it has ended, or sent what cannot be read.
        """
        try:
            said = receive(self.replies, MOST)
        except (EOFError, ValueError, RecursionError) as error:
            raise SolutionError(f"the solution's process: {error}") from None
        if "raised" in said:
            raise self.exception(said["raised"])(said["message"])
        return said

    def exception(self, bases: list[str]) -> type[BaseException]:
        """The class of that name: the tests' stand-in, a standard one, or SolutionError."""
        for name in bases:
            if name in self.errors:
                return self.errors[name]
            known = getattr(builtins, name, None)
            if isinstance(known, type) and issubclass(known, Exception) and name != "Exception":
                try:
                    known("")
                except TypeError:
                    continue  # UnicodeDecodeError and its like take more than a message
                return known
        return type(bases[0], (SolutionError,), {})

    def resolve(self, held: dict[str, Any]) -> Any:
        """A stand-in for an object over there; exception classes get one that can be caught."""
        if held["e"]:
            name, *bases = held["e"]
            if name not in self.errors:
                self.errors[name] = type(name, (self.exception(bases),), {})
            return self.errors[name]
        return Remote(self, held["o"], held["n"])

    def stand_in(self, value: Any) -> dict[str, Any]:
        """A solution's own object on its way back.

        Raises:
            TypeError: it is an object of the tests, which cannot cross.
        """
        if isinstance(value, Remote):
            return {"o": object.__getattribute__(value, "_number")}
        raise TypeError(f"{type(value).__name__} cannot be handed to the solution: only plain data")


class Remote:
    """An object of the solution."""

    def __init__(self, link: Link, number: int, kind: str):
        for name, value in (("_link", link), ("_number", number), ("_kind", kind)):
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        return self._link.ask({"on": self._number, "attribute": name})

    def __setattr__(self, name: str, value: Any) -> None:
        call(self, "__setattr__", name, value)

    __hash__ = object.__hash__


def call(remote: Remote, method: str, *arguments: Any, **named: Any) -> Any:
    """Call a method over there; "" calls the object itself."""
    link = object.__getattribute__(remote, "_link")
    request = {
        "on": object.__getattribute__(remote, "_number"),
        "method": method,
        "arguments": encode(list(arguments), link.stand_in),
        "named": encode(named, link.stand_in),
    }
    return link.ask(request, arguments)


def forward(method: str, comparing: bool) -> Any:
    """A special method of `Remote`; those that compare do so with objects of the solution only."""

    def forwarded(self: Remote, *arguments: Any, **named: Any) -> Any:
        if comparing and not isinstance(arguments[0], Remote):
            # Its own __eq__ might say yes to anything.
            kind = object.__getattribute__(self, "_kind")
            raise TypeError(f"an object of type {kind} was compared; return plain data instead")
        return call(self, "" if method == "__call__" else method, *arguments, **named)

    return forwarded


COMPARING = ["__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"]
OTHERS = ["call", "len", "iter", "next", "getitem", "setitem", "delitem", "contains"]
OTHERS += ["str", "repr", "bool", "int", "float", "index", "enter", "exit", "abs", "neg"]
OTHERS += ["add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv"]
OTHERS += ["mod", "pow", "matmul", "and", "or", "xor"]
for each in COMPARING:
    setattr(Remote, each, forward(each, comparing=True))
for each in OTHERS:
    setattr(Remote, f"__{each}__", forward(f"__{each}__", comparing=False))


def replace(ours: Any, theirs: Any) -> None:
    """Give a list, dict or set of the tests what the call left in it."""
    if isinstance(ours, list) and isinstance(theirs, list):
        ours[:] = theirs
    elif isinstance(ours, dict | set) and type(ours) is type(theirs):
        ours.clear()
        ours.update(theirs)


def run(test: str, names: dict[str, Any]) -> None:
    """One test: its text, then what it defines the way pytest and unittest name it.

    Raises:
        Exception: it failed.
    """
    namespace: dict[str, Any] = {"__name__": "tests", **names}
    exec(compile(test, "tests.py", "exec"), namespace)
    for name, value in list(namespace.items()):
        if name.startswith("test") and inspect.isfunction(value):
            value()
        elif isinstance(value, type) and "unittest" in sys.modules:
            import unittest

            if issubclass(value, unittest.TestCase) and value is not unittest.TestCase:
                result = unittest.TestResult()
                unittest.defaultTestLoader.loadTestsFromTestCase(value).run(result)
                for _, problem in result.failures + result.errors:
                    raise AssertionError(problem)


def main() -> None:
    """Run all tests; the verdict is the only thing that this process prints."""
    replies, requests = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    verdict = os.fdopen(os.dup(2), "w")
    sys.stdin, sys.stdout, sys.stderr = io.StringIO(), io.StringIO(), io.StringIO()
    with open("/box/tests.json", encoding="utf-8") as file:
        tests = json.load(file)
    link, problems = Link(replies, requests), list[str]()
    try:
        names = link.names()
    except BaseException as error:
        problems = [f"solution: {type(error).__name__}: {error}"] * len(tests)
        tests = []
    for test in tests:
        try:
            run(test, names)
        except BaseException as error:
            problems.append(f"{type(error).__name__}: {error}"[:2000])
        else:
            problems.append("")
    verdict.write(json.dumps(problems))
    verdict.flush()


if __name__ == "__main__":
    main()
