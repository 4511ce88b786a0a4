"""The small types of the data layer: a record as read, a row as used, and why a row is bad."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from feedback.dialogue import RowProblem
from feedback.schema import Text

Kind: TypeAlias = Literal[  # what a stage asks for
    "sft", "preference", "unpaired", "prompts", "ranking", "rating", "steps"
]
Values: TypeAlias = dict[str, Any]  # one JSON object: whatever columns a file has


@dataclass(frozen=True)
class Record:
    """One row as it was read: its values, or the problem that kept it from being read."""

    where: str  # "file:line"
    values: Values | None
    problem: RowProblem | None = None
    raw: str = ""  # the text of an unreadable row, cut to a few hundred characters


@dataclass(frozen=True)
class BadRow:
    """A row set aside, with the reason."""

    where: str
    reason: str
    detail: str
    row: Values | str


@dataclass
class Row:
    """One usable row in a stage's canonical columns."""

    where: str
    source: int  # index of its source within its split
    values: Values
    key: str = field(repr=False, default="")  # the normalised prompt: what splits go by
    lineage: Values | None = field(repr=False, default=None)  # of a made row (augment.lineage)
    group: str = ""  # the class that data.balance counts it in


def normalise(text: str) -> str:
    """Text without the differences that make no other text: case and runs of whitespace."""
    return " ".join(text.casefold().split())


def prompt_key(prompt: Text) -> str:
    """What makes two prompts the same prompt, in every stage and format.

    System messages do not count (so that setting one moves no prompt to another split), and a
    single user turn equals the same words as plain text.
    """
    if isinstance(prompt, str):
        return normalise(prompt)
    turns = [message for message in prompt if message["role"] != "system"]
    if len(turns) == 1 and turns[0]["role"] == "user":
        return normalise(turns[0]["content"])
    return "\n".join(f"{turn['role']}: {normalise(turn['content'])}" for turn in turns)


def plain_text(text: Text) -> str:
    """The words of a text or of a conversation's turns, one turn a line."""
    return text if isinstance(text, str) else "\n".join(message["content"] for message in text)


def shorten(text: str, width: int = 80) -> str:
    """A quoted preview on one line."""
    return repr(text if len(text) <= width else text[:width] + "...")
