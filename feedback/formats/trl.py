"""TRL's formats, as text or conversations, told apart by their columns.

| columns                                | read as                                          |
|----------------------------------------|--------------------------------------------------|
| `chosen`, `rejected` (and `prompt`)    | a comparison; `response_a` is the chosen answer  |
| `prompt`, `completion`, `label`        | a thumb                                          |
| `prompt`, `completion`                 | a correction of nothing: an answer as it should be |

Further columns `annotator`, `reason`, `lead_time`, `created_at` are kept where they are there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from feedback.conversation import join, shorten, split_last, split_shared
from feedback.dialogue import RowProblem
from feedback.formats.found import Found, check_storable
from feedback.formats.result import Values
from feedback.formats.text import (
    different,
    read_annotator,
    read_extras,
    read_text,
)
from feedback.schema import Comparison, Correction, Text, Thumb, item_id, pair_id

PAIR = ("chosen", "rejected")


def parse(row: Values) -> Iterator[Found]:
    """One judgement.

    Raises:
        RowProblem: the columns or their values do not fit.
    """
    check_storable(row)
    if all(key in row for key in PAIR):
        yield _comparison(row)
    elif "prompt" not in row or "completion" not in row:
        found = ", ".join(row) or "none"
        raise RowProblem("columns are missing", f"found {found}; expected {EXPECTED}")
    elif row.get("label") not in (None, ""):
        yield _thumb(row)
    else:
        yield _demonstration(row)


EXPECTED = "chosen and rejected, or prompt and completion"


def _comparison(row: Values) -> Found:
    prompt: Text
    if row.get("prompt") not in (None, ""):
        (prompt, chosen), (other, rejected) = (_join(row, name) for name in PAIR)
    else:
        first, second = (read_text(row, name) for name in PAIR)
        if isinstance(first, str) and isinstance(second, str):
            different(first.strip(), second.strip(), "chosen and rejected")
            prompt, chosen, rejected = split_shared(first, second)
            other = prompt
        elif isinstance(first, str) or isinstance(second, str):
            raise RowProblem("chosen and rejected differ in type", "one is text, one messages")
        else:
            prompt, chosen = split_last(first, "chosen")
            other, rejected = split_last(second, "rejected")
    if prompt != other:
        raise RowProblem(
            "chosen and rejected answer different prompts",
            "they may differ only in the assistant's last message",
        )
    different(chosen, rejected, "chosen and rejected")
    extras = read_extras(row)
    pair = pair_id(prompt, chosen, rejected)
    judgement = Comparison(prompt, chosen, rejected, "a", read_annotator(row), pair=pair, **extras)
    return Found(judgement, row, dated="created_at" in extras)


def _thumb(row: Values) -> Found:
    prompt, answer = _join(row, "completion")
    extras = read_extras(row)
    judgement = Thumb(
        prompt,
        answer,
        read_flag(row["label"], "label"),
        read_annotator(row),
        item=item_id("thumb", prompt, [answer]),
        **extras,
    )
    return Found(judgement, row, dated="created_at" in extras)


def _demonstration(row: Values) -> Found:
    prompt, answer = _join(row, "completion")
    times = {key: value for key, value in read_extras(row).items() if key == "created_at"}
    judgement = Correction(prompt, "", answer, read_annotator(row), **times)
    return Found(judgement, row, dated=bool(times))


def read_flag(value: Any, field: str) -> bool:
    """True or false; 1, 0 and their texts (of a CSV cell) count.

    Raises:
        RowProblem: it is neither.
    """
    if isinstance(value, str):
        value = {"true": True, "1": True, "false": False, "0": False}.get(value.strip().lower())
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    raise RowProblem(f"{field} is neither true nor false", f"{shorten(value)}; expected one")


def _join(row: Values, name: str) -> tuple[Text, str]:
    return join(read_text(row, "prompt"), read_text(row, name), name)
