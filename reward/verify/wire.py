"""How values cross between a solution and its tests: plain data as JSON, objects by number.

Nothing but data crosses, so that a solution cannot hand its tests an object that equals
everything. Subclasses of plain types arrive as the plain type. Standard library only: this text
also runs inside the sandbox.
"""

import json
from collections.abc import Callable
from typing import Any

Encode = Callable[[Any], Any]  # what stands for an object that is no plain data
KINDS: dict[str, Any] = {"l": list, "t": tuple, "s": set, "z": frozenset}


def encode(value: Any, other: Encode) -> Any:
    """A value as JSON can hold it; `other` makes the stand-in of what is no plain data."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes | bytearray):
        return {"b": bytes(value).hex(), "m": isinstance(value, bytearray)}
    if isinstance(value, complex):
        return {"c": [value.real, value.imag]}
    for tag, kind in KINDS.items():
        if isinstance(value, kind):
            return {tag: [encode(item, other) for item in kind.__iter__(value)]}
    if isinstance(value, dict):
        return {"d": [[encode(k, other), encode(v, other)] for k, v in dict.items(value)]}
    return other(value)


def decode(value: Any, other: Encode) -> Any:
    """What `encode` was given; `other` resolves the stand-ins."""
    if not isinstance(value, dict):
        return value
    ((tag, held), *_) = value.items()
    if tag == "b":
        return bytearray.fromhex(held) if value["m"] else bytes.fromhex(held)
    if tag == "c":
        return complex(*held)
    if tag == "d":
        return {decode(k, other): decode(v, other) for k, v in held}
    if tag in KINDS:
        return KINDS[tag](decode(item, other) for item in held)
    return other(value)


def send(stream: Any, message: Any) -> None:
    """One message, one line."""
    stream.write(json.dumps(message).encode() + b"\n")
    stream.flush()


def receive(stream: Any, most: int) -> Any:
    """The next message.

    Raises:
        EOFError: the other side has ended.
        ValueError: it is longer than `most` bytes, or no JSON.
    """
    line = stream.readline(most)
    if not line:
        raise EOFError("the other side has ended")
    if not line.endswith(b"\n"):
        raise ValueError(f"a value of more than {most} bytes")
    return json.loads(line)
