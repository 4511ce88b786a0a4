"""Inside the sandbox, beside the tests: runs them against a solution in another process.

Tests see the solution's functions, classes and values under their own names, as
`reward.verify.remote` has them. Assertions run here, where the solution has no hand in them.
Leaves out handing the solution a function of the tests, which cannot cross, and pytest's fixtures.
"""

import ast
import builtins
import inspect
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from reward.verify.remote import Link, Remote

UNUSED = "the test never used the solution"


class UnusedError(Exception):
    """A test passed without the solution: it says nothing about it."""


class Names(dict[str, Any]):
    """The names of a test; counts the reading of the solution's data, which asks it nothing."""

    def __init__(self, theirs: dict[str, Any]):
        super().__init__(theirs, __name__="tests")
        self.data = {name: v for name, v in theirs.items() if not isinstance(v, Remote)}
        self.read = 0

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        self.read += name in self.data and value is self.data[name]
        return value


def meant(test: str, entry_point: str | None) -> set[str]:
    """Builtins by whose names the test means the solution's functions, not Python's.

    That is for the test to say, or a solution could bring an `all` or `len` of its own: it names
    the entry point, or uses one builtin function and nothing else that it has not defined.
    """
    if entry_point:
        return {entry_point}
    bound, used = set[str](), set[str]()
    for node in ast.walk(ast.parse(test)):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    free = used - bound
    functions = {name for name in free if is_function(name)}
    return functions if len(functions) == 1 and not free - set(dir(builtins)) else set()


def is_function(name: str) -> bool:
    """Whether it is a builtin that is called and is no exception."""
    value = getattr(builtins, name, None)
    return callable(value) and not (isinstance(value, type) and issubclass(value, BaseException))


def run(test: str, link: Link, names: dict[str, Any], entry_point: str | None) -> None:
    """One test: its text, then what it defines the way HumanEval, pytest and unittest name it.

    Raises:
        Exception: it failed.
        UnusedError: it passed without asking the solution anything.
    """
    code, own = compile(test, "tests.py", "exec"), meant(test, entry_point)
    space = Names({n: v for n, v in names.items() if n in own or not hasattr(builtins, n)})
    before = link.asked
    exec(code, space)
    if entry_point and inspect.isfunction(space.get("check")) and link.asked == before:
        exec(f"check({entry_point})", space)
    for each in defined(space):
        each()
    if link.asked == before and not space.read:
        raise UnusedError(
            f"{UNUSED}, so it says nothing about it. Fix: call what it is to test; where that has "
            "the name of a builtin, name it in the column entry_point"
        )


def defined(space: Names) -> Iterator[Callable[[], Any]]:
    """What pytest and unittest would run."""
    unittest = sys.modules.get("unittest")
    for name, value in list(space.items()):
        if inspect.isfunction(value) and name.startswith("test"):
            yield partial(settle, value)
        elif isinstance(value, type) and unittest and issubclass(value, unittest.TestCase):
            if value.__module__ == "tests":  # not TestCase itself
                yield partial(run_case, value)
        elif isinstance(value, type) and name.startswith("Test"):
            for method in (each for each in dir(value) if each.startswith("test")):
                yield partial(settle, getattr(value(), method))


def settle(function: Callable[[], Any]) -> None:
    """Call, and wait where that gives a coroutine."""
    value = function()
    if inspect.iscoroutine(value):
        import asyncio  # which takes longer than most tests

        asyncio.run(value)


def run_case(kind: Any) -> None:
    """Run one of unittest's classes.

    Raises:
        AssertionError: a test of it failed.
    """
    import unittest

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(kind).run(result)
    for _, problem in result.failures + result.errors:
        raise AssertionError(problem)


def main() -> None:
    """Run all tests; the verdict is the only thing that this process prints."""
    replies, requests = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    verdict = os.fdopen(os.dup(2), "w")
    sys.stdin, sys.stdout, sys.stderr = io.StringIO(), io.StringIO(), io.StringIO()
    with open("/box/tests.json", encoding="utf-8") as file:
        asked = json.load(file)
    tests, entry_point = asked["tests"], asked["entry_point"]
    link, problems = Link(replies, requests), list[str]()
    try:
        names = link.names()
    except BaseException as error:
        problems = [f"solution: {type(error).__name__}: {error}"] * len(tests)
        tests = []
    for test in tests:
        try:
            run(test, link, names, entry_point)
        except BaseException as error:
            problems.append(f"{type(error).__name__}: {error}"[:2000])
        else:
            problems.append("")
    verdict.write(json.dumps(problems))
    verdict.flush()


if __name__ == "__main__":
    main()
