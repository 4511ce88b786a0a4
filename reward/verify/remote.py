"""Inside the sandbox, beside the tests: the solution's objects as the tests see them.

A test's use of an object crosses to the solution's process and brings plain data back. An object
never learns the value it is held against: what a test compares or computes with plain data has to
be data.
"""

import builtins
from typing import Any

from reward.verify.wire import decode, encode, receive, send

MOST = 8 << 20  # bytes of one message


class SolutionError(Exception):
    """The solution raised something that has no standard name, ended, or gave back nonsense."""


class Link:
    """The line to the solution; `asked` counts what tests wanted of it."""

    def __init__(self, replies: Any, requests: Any):
        self.replies, self.requests = replies, requests
        self.errors: dict[str, type[BaseException]] = {}
        self.asked = 0

    def names(self) -> dict[str, Any]:
        """What the solution defines.

        Raises:
            Exception: what it raised instead.
        """
        found = {}
        for name, value in self.hear()["names"].items():
            if not name.startswith("_"):
                found[name] = decode(value, self.resolve)
                if isinstance(found[name], Remote) and name[:1].isupper():
                    become(found[name], CLASS)
        return found

    def ask(self, request: dict[str, Any], arguments: Any = ()) -> Any:
        """The value of a call or attribute; mutable arguments become what the call made of them."""
        self.asked += 1
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


# What the tests know of an object, by their own words and not by the solution's:
CLASS = "class"  # they name it with a capital, so that calling it makes an object
MADE = "made"  # they made it that way, so that its operators are what they test
DERIVED = "derived"  # it came of such an object and plain data


class Remote:
    """An object of the solution."""

    def __init__(self, link: Link, number: int, kind: str):
        for name, value in (("link", link), ("number", number), ("kind", kind), ("known", "")):
            object.__setattr__(self, f"_{name}", value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__array"):  # numpy would read memory where the solution says
            raise AttributeError(name)
        if name in VERDICTS and known(self) != MADE:
            raise TypeError(refusal(self, name))
        return self._link.ask({"on": self._number, "attribute": name})

    def __setattr__(self, name: str, value: Any) -> None:
        call(self, "__setattr__", name, value)

    def __await__(self) -> Any:
        yield from ()
        return call(self, "__await__")

    __hash__ = object.__hash__


def known(value: Any) -> str:
    """What the tests know of it."""
    return object.__getattribute__(value, "_known") if isinstance(value, Remote) else ""


def become(remote: Remote, what: str) -> None:
    """Note what the tests know of it."""
    object.__setattr__(remote, "_known", what)


def refusal(remote: Remote, method: str) -> str:
    """Why an object does not do."""
    kind = object.__getattribute__(remote, "_kind")
    return f"an object of type {kind} met plain data in {method}; return plain data instead"


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


COMPARING = ["eq", "ne", "lt", "le", "gt", "ge"]
ARITHMETIC = ["add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv"]
ARITHMETIC += ["mod", "pow", "matmul", "and", "or", "xor"]
NUMBERS = ["abs", "neg", "bool", "int", "float", "index", "len", "iter", "next", "contains"]
OTHERS = ["call", "getitem", "setitem", "delitem", "str", "repr", "enter", "exit"]
# Methods of plain data that hold it against a value; a class under test may have its own.
VERDICTS = {"startswith", "endswith", "issubset", "issuperset", "isdisjoint"}
VERDICTS |= {"difference", "symmetric_difference"}


def forward(method: str) -> Any:
    """A special method of `Remote`.

    Comparing with plain data is refused: its own __eq__ might say yes to anything. So is computing
    with it, since `abs(f(x) - 2.5) < 0.1` and `2.5 in f(x)` compare too. The operators of an object
    that the tests made may take plain data, if an object and no number comes of it.
    """

    def forwarded(self: Remote, *arguments: Any, **named: Any) -> Any:
        told = any(not isinstance(argument, Remote) for argument in arguments)
        own = known(self) in (MADE, DERIVED)
        refused = (
            (told and method in COMPARING)
            or (told and method in [*ARITHMETIC, "contains"] and not own)
            or (method in NUMBERS and known(self) == DERIVED)
        )
        if refused:
            raise TypeError(refusal(self, method))
        value = call(self, "" if method == "call" else f"__{method}__", *arguments, **named)
        if method == "call" and known(self) == CLASS and isinstance(value, Remote):
            become(value, MADE)
        elif method in ARITHMETIC and own:
            if isinstance(value, Remote):
                mixed = told or DERIVED in map(known, [self, *arguments])
                become(value, DERIVED if mixed else MADE)
            elif told:
                raise TypeError(refusal(self, method))
        return value

    return forwarded


for each in COMPARING + ARITHMETIC + NUMBERS + OTHERS:
    setattr(Remote, f"__{each}__", forward(each))


def replace(ours: Any, theirs: Any) -> None:
    """Give a list, dict or set of the tests what the call left in it."""
    if isinstance(ours, list) and isinstance(theirs, list):
        ours[:] = theirs
    elif isinstance(ours, dict | set) and type(ours) is type(theirs):
        ours.clear()
        ours.update(theirs)
