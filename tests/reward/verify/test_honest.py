"""Honest solutions and tests of many kinds: functions, classes, values, coroutines."""

from __future__ import annotations

import pytest

from reward.sandbox import Limits
from reward.verify.code import run_tests

QUICK = Limits(seconds=20, cpu=20)  # the machine may be busy
TESTS = "assert add(2, 3) == 5\nassert add(-1, 1) == 0"
RIGHT = "def add(a, b):\n    return a + b\n"


HONEST = [
    (
        """
def first(xs):
    xs.sort()
    return xs[0]
""",
        """
a = [3, 1]
assert first(a) == 1
assert a == [1, 3]
""",
    ),
    (
        """
def f(d):
    d['k'] = (1, {2})
""",
        """
d = {}
assert f(d) is None
assert d == {'k': (1, {2})}
""",
    ),
    ("def f():\n    yield from range(3)", "assert list(f()) == [0, 1, 2]"),
    ("def f(): return range(3)", "assert list(f()) == [0, 1, 2] and len(f()) == 3"),
    (
        """
def f(x):
    raise ValueError('bad ' + x)
""",
        """
try:
    f('x')
except ValueError as e:
    assert str(e) == 'bad x'
else:
    assert False
""",
    ),
    (
        """
class Empty(LookupError): pass
def f():
    raise Empty('no')
""",
        """
try:
    f()
except Empty as e:
    assert isinstance(e, LookupError)
else:
    assert False
""",
    ),
    (
        """
class Stack:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x)
    def pop(self): return self.items.pop()
    def __len__(self): return len(self.items)
""",
        """
s = Stack()
s.push(4)
assert len(s) == 1 and s.items == [4]
assert s.pop() == 4
assert not s
""",
    ),
    (
        """
from dataclasses import dataclass
@dataclass
class V:
    x: int
    def __add__(self, o): return V(self.x + o.x)
""",
        """
assert V(1) + V(2) == V(3)
assert V(1) != V(2)
assert (V(1) + V(1)).x == 2
assert str(V(1)) == 'V(x=1)'
""",
    ),
    (
        """
from collections import Counter
def f(s): return Counter(s)
""",
        "assert f('aab') == {'a': 2, 'b': 1}",
    ),
    (
        """
PI = 3.5
def area(r): return PI * r * r
""",
        """
import math
assert math.isclose(area(2.0), 14.0) and PI == 3.5
""",
    ),
    (
        "def f(x): return float(x)",
        "assert f('inf') == float('inf') and f('nan') != f('nan')",
    ),
    (
        "def f(x): return x",
        """
for x in [b'a', bytearray(b'b'), 1j, None, 10**30, {1: (2, [3])}, frozenset({1})]:
    assert f(x) == x and type(f(x)) is type(x)
""",
    ),
    (
        """
class N:
    def __init__(self, v, n=None): self.v, self.n = v, n
def total(n):
    return n.v + (total(n.n) if n.n else 0)
""",
        "assert total(N(1, N(2))) == 3",
    ),
    (
        RIGHT,
        """
def test_one():
    assert add(1, 1) == 2
""",
    ),
    (
        RIGHT,
        """
import unittest
class T(unittest.TestCase):
    def test_one(self):
        self.assertEqual(add(1, 1), 2)
""",
    ),
    (
        """
class Vector:
    def __init__(self, x, y): self.x, self.y = x, y
    def __mul__(self, k): return Vector(self.x * k, self.y * k)
    __rmul__ = __mul__
    def __sub__(self, o): return Vector(self.x - o.x, self.y - o.y)
    def __matmul__(self, o): return self.x * o.x + self.y * o.y
    def __eq__(self, o): return (self.x, self.y) == (o.x, o.y)
    def __abs__(self): return (self @ self) ** 0.5
    def __contains__(self, k): return k in (self.x, self.y)
""",
        """
v = Vector(1, 2)
assert v * 3 == 3 * v == Vector(3, 6)
assert (v * 2 * 2).y == 8 and v @ v == 5
assert abs(Vector(3, 4)) == 5.0 and abs(Vector(3, 4) - Vector(0, 4)) == 3.0
assert 2 in v and 3 not in v
""",
    ),
    (
        """
class Trie:
    def __init__(self): self.words = []
    def add(self, w): self.words.append(w)
    def startswith(self, p): return any(w.startswith(p) for w in self.words)
def trie(*words):
    t = Trie()
    for w in words: t.add(w)
    return t
""",
        """
t = Trie()
t.add('apple')
assert t.startswith('app') and not t.startswith('b')
assert trie('a').words == ['a']
""",
    ),
    (
        """
import asyncio
LOCK = asyncio.Lock()
async def double(x):
    async with LOCK:
        await asyncio.sleep(0)
    return 2 * x
async def fail():
    raise KeyError('no')
""",
        """
async def test_it():
    assert await double(2) == 4
    try:
        await fail()
    except KeyError:
        return
    assert False
""",
    ),
    (
        RIGHT,
        """
class TestAdd:
    def test_one(self):
        assert add(1, 1) == 2
""",
    ),
    ("PI = 3.5", "assert PI == 3.5"),
    ("PI = 3.5", "def test_pi():\n    assert PI == 3.5"),
    ("class Empty(LookupError): pass", "assert issubclass(Empty, LookupError)"),
    (
        """
print('noise')
def add(a, b):
    return a + b
if __name__ == '__main__':
    input()
""",
        TESTS,
    ),
]


@pytest.mark.parametrize(("source", "tests"), HONEST)
def test_honest_solutions_of_many_kinds_pass(source, tests):
    assert run_tests(source, tests, QUICK).problems == [""]


FAILING = [
    """
def test_one():
    assert add(1, 1) == 3
""",
    """
import unittest
class T(unittest.TestCase):
    def test_one(self):
        self.assertEqual(add(1, 1), 3)
""",
    """
class TestAdd:
    def test_one(self):
        assert add(1, 1) == 3
""",
    """
async def test_one():
    assert add(1, 1) == 3
""",
]


@pytest.mark.parametrize("tests", FAILING)
def test_tests_in_functions_and_classes_can_fail(tests):
    assert run_tests(RIGHT, tests, QUICK).passed == [False]
