"""Values out of a row, each checked: texts, conversations, numbers, times, HH's raw dialogues.

Conversations follow the rules of Align's training data, so that an imported prompt is the same
prompt that a training file holds. Every function raises `RowProblem` on what does not fit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from feedback.dialogue import RowProblem, parse_dialogue
from feedback.schema import Message, Messages, Text

IMPORTED = "imported"  # the annotator of a row that names none
ROLES = ("system", "user", "assistant")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}  # of from/value messages


def type_name(value: object) -> str:
    """A value's type as JSON calls it."""
    if value is None:
        return "nothing"
    names: dict[type, str] = {str: "text", bool: "true or false", list: "a list", dict: "an object"}
    kind = type(value)
    return names.get(kind, "a number" if kind in (int, float) else f"a {kind.__name__}")


def shorten(value: object, width: int = 60) -> str:
    """A quoted preview on one line."""
    text = repr(value)
    return text if len(text) <= width else text[:width] + "..."


def read_string(row: Mapping[str, Any], field: str, *, empty: bool = False) -> str:
    """A field that must be text; blank text only with `empty`."""
    value = row.get(field)
    if value is None:
        raise RowProblem(f"{field} is missing", "expected text")
    if not isinstance(value, str):
        found = f"{shorten(value)} is {type_name(value)}"
        raise RowProblem(f"{field} has the wrong type", f"{found}; expected text")
    if not empty and not value.strip():
        raise RowProblem(f"{field} is empty", "expected text")
    return value


def read_text(row: Mapping[str, Any], field: str) -> Text:
    """A field as text that is not blank, or as a valid conversation."""
    value = row.get(field)
    if isinstance(value, list):
        return read_messages(value, field)
    if value is not None and not isinstance(value, str):
        found = type_name(value)
        raise RowProblem(
            f"{field} has the wrong type", f"{found}; expected text or a list of messages"
        )
    return read_string(row, field)


def read_messages(value: Any, field: str) -> Messages:
    """A list of messages as role and content (or from and value)."""
    if not isinstance(value, list):
        raise RowProblem(
            f"{field} has the wrong type", f"{type_name(value)}; expected a list of messages"
        )
    if not value:
        raise RowProblem(f"{field} is empty", "expected at least one message")
    messages = [_read_message(item, f"{field}[{i}]", field) for i, item in enumerate(value)]
    if any(message["role"] == "system" for message in messages[1:]):
        raise RowProblem(f"{field} has a late system message", "it may only come first")
    return messages


def _read_message(item: Any, where: str, field: str) -> Message:
    if not isinstance(item, dict):
        raise RowProblem(
            f"{field} has a bad message",
            f"{where} is {type_name(item)}; expected {{role, content}}",
        )
    role, content = item.get("role"), item.get("content")
    if "from" in item and "value" in item:
        role, content = item["from"], item["value"]
        role = SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        known = ", ".join(ROLES)
        raise RowProblem(
            f"{field} has an unknown role", f"{where} is from {shorten(role)}; expected {known}"
        )
    if not isinstance(content, str):
        found = type_name(content)
        raise RowProblem(f"{field} has a bad message", f"{where} holds {found}; expected text")
    if not content.strip():
        raise RowProblem(f"{field} has an empty message", f"{where} ({role}) says nothing")
    return {"role": role, "content": content}


def check_prompt(prompt: Text, field: str) -> None:
    """Refuse a conversation that no assistant's answer can follow."""
    if isinstance(prompt, str) or (prompt and prompt[-1]["role"] == "user"):
        return
    found = f"the {prompt[-1]['role']}'s message" if prompt else "nothing"
    raise RowProblem(
        f"{field} has no user turn before the answer", f"{found} comes right before it"
    )


def read_prompt(row: Mapping[str, Any], field: str = "prompt") -> Text:
    """A field as a prompt: text, or a conversation whose last word is the user's."""
    prompt = read_text(row, field)
    check_prompt(prompt, field)
    return prompt


def split_last(messages: Messages, field: str) -> tuple[Messages, str]:
    """A conversation as its prompt and the assistant's last answer."""
    if messages[-1]["role"] != "assistant":
        found = f"the last message is the {messages[-1]['role']}'s"
        raise RowProblem(f"{field} does not end with the assistant", found)
    check_prompt(messages[:-1], field)
    return messages[:-1], messages[-1]["content"]


def read_dialogue(row: Mapping[str, Any], field: str) -> Messages:
    """A field that must be a raw dialogue, as messages."""
    return parse_dialogue(read_string(row, field), field)


def different(first: str, second: str, names: str) -> None:
    """Refuse two equal answers: nobody can prefer one, and the store holds no such pair."""
    if first == second:
        raise RowProblem(f"{names} are equal", f"both are {shorten(first)}")


def read_integer(row: Mapping[str, Any], field: str, low: int, high: int) -> int:
    """A whole number from low to high; text that is one (of a CSV cell) counts."""
    value = row.get(field)
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,6}\s*", value):
        value = int(value)
    whole = (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and value in range(low, high + 1)
    )
    if not whole:
        raise RowProblem(
            f"{field} is not in its range",
            f"{shorten(row.get(field))}; expected a whole number from {low} to {high}",
        )
    return int(value)  # type: ignore[arg-type]


def read_annotator(row: Mapping[str, Any]) -> str:
    """Who judged: the row's `annotator`, or "imported"."""
    value = row.get("annotator")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # crowd platforms number people
    if value is None or value == "":
        return IMPORTED
    return read_string(row, "annotator")


def read_extras(row: Mapping[str, Any]) -> dict[str, Any]:
    """What any judgement may state besides: reason, lead_time, created_at; absent ones left out."""
    found: dict[str, Any] = {}
    if row.get("reason") not in (None, ""):
        found["reason"] = read_string(row, "reason", empty=True)
    if row.get("lead_time") not in (None, ""):
        found["lead_time"] = _read_seconds(row["lead_time"])
    if row.get("created_at") not in (None, ""):
        found["created_at"] = read_time(row["created_at"], "created_at")
    return found


def _read_seconds(value: Any) -> float:
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not math.isfinite(seconds) or seconds < 0:
        raise RowProblem(
            "lead_time is no duration", f"{shorten(value)}; expected seconds, 0 or more"
        )
    return seconds


def read_time(value: Any, field: str) -> datetime:
    """An ISO 8601 time; one without a zone is UTC."""
    try:
        time = datetime.fromisoformat(value)
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        raise RowProblem(
            f"{field} is no time", f"{shorten(value)}; expected ISO 8601, 2026-01-31T12:00:00Z"
        ) from None
