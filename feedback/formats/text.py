"""Values out of a row, each checked: texts, conversations, numbers, times, HH's raw dialogues.

Conversations follow the rules of Align's training data (`feedback.conversation`), so that an
imported prompt is the same prompt that a training file holds. Every function raises `RowProblem` on
what does not fit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from feedback.conversation import check_prompt, read_messages, shorten, type_name
from feedback.dialogue import RowProblem, parse_dialogue
from feedback.schema import Messages, Text

IMPORTED = "imported"  # the annotator of a row that names none


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


def read_prompt(row: Mapping[str, Any], field: str = "prompt") -> Text:
    """A field as a prompt: text, or a conversation whose last word is the user's."""
    prompt = read_text(row, field)
    check_prompt(prompt, field)
    return prompt


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
