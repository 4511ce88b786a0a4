"""The texts of a row that a transform sees, and a row with them exchanged.

Of a conversation's prompt the user's turns are changed; with `all`, every turn of everything.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from align.data.rows import Values

Path = tuple[str | int, ...]  # into a row's values
TEXTS = ("prompt", "completion", "text", "chosen", "rejected")
LISTS = ("responses", "completions")
ANSWERS = ("chosen", "rejected", "responses")


def texts_of(values: Mapping[str, Any], fields: Sequence[str]) -> dict[Path, str]:
    """Where texts stand in the named fields, and what they are; empty ones are left out."""
    found: dict[Path, str] = {}
    every = "all" in fields
    for name in TEXTS:
        named = name in fields or ("answers" in fields and name in ANSWERS)
        if name in values and (every or named):
            roles = None if every or name != "prompt" else ("user",)
            found |= _inside(values[name], (name,), roles)
    for name in LISTS:
        if name in values and (every or ("answers" in fields and name in ANSWERS)):
            for index, item in enumerate(values[name]):
                found |= _inside(item, (name, index), None)
    return {path: text for path, text in found.items() if text.strip()}


def with_texts(values: Mapping[str, Any], texts: Mapping[Path, str]) -> Values:
    """A copy of the row with the texts exchanged."""
    made = copy.deepcopy(dict(values))
    for path, text in texts.items():
        node: Any = made
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = text
    return made


def _inside(value: Any, path: Path, roles: tuple[str, ...] | None) -> dict[Path, str]:
    if isinstance(value, str):
        return {path: value}
    return {
        (*path, index, "content"): turn["content"]
        for index, turn in enumerate(value)
        if roles is None or turn["role"] in roles
    }
