"""One parser per format: a row into an `Example`, a prompt with its answers.

What an example then looks like for a stage is said in `align.data.formats`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from align.data.conversation import read_dialogue, read_text
from align.data.rows import Values
from feedback.conversation import check_prompt, join, read_messages, split_last, split_shared
from feedback.dialogue import RowProblem
from feedback.schema import Text

PAIR = ("chosen", "rejected")
EQUAL_ANSWERS = "chosen equals rejected"


@dataclass
class Example:
    """A row understood: a prompt with named answers, or text that is all answer."""

    prompt: Text | None = None
    answers: dict[str, str] = field(default_factory=dict)  # completion, or chosen and rejected
    text: str | None = None
    label: bool = True  # False: an answer marked as bad, which SFT leaves out


def _parse_text(row: Values) -> Example:
    value = row.get("text")
    if value is not None and not isinstance(value, str):
        raise RowProblem("text has the wrong type", f"{type(value).__name__}; expected a string")
    text = read_text(value, "text")
    assert isinstance(text, str)
    return Example(text=text)


def _parse_messages(row: Values) -> Example:
    field = "messages" if "messages" in row else "conversations"
    messages = read_messages(row.get(field), field)
    if messages[-1]["role"] == "user":
        return Example(prompt=messages)  # serves prompts; SFT refuses it below
    prompt, answer = split_last(messages, field)
    return Example(prompt, {"completion": answer})


def _parse_completion(row: Values) -> Example:
    prompt, answer = _join(read_text(row.get("prompt"), "prompt"), row, "completion")
    return Example(prompt, {"completion": answer})


def _parse_unpaired(row: Values) -> Example:
    example = _parse_completion(row)
    label = row.get("label")
    if isinstance(label, str):
        label = {"true": True, "1": True, "false": False, "0": False}.get(label.lower(), label)
    if not isinstance(label, bool | int) or label not in (0, 1):
        raise RowProblem("label has the wrong type", f"{label!r}; expected true or false")
    example.label = bool(label)
    return example


def _parse_prompt(row: Values) -> Example:
    prompt = read_text(row.get("prompt"), "prompt")
    check_prompt(prompt, "prompt")
    return Example(prompt)


def _parse_preference(row: Values) -> Example:
    if row.get("prompt") is not None:
        prompt = read_text(row["prompt"], "prompt")
        (before, chosen), (other, rejected) = (_join(prompt, row, k) for k in PAIR)
        return _pair(before, chosen, other, rejected)
    first, second = (read_text(row.get(k), k) for k in PAIR)
    if isinstance(first, str) and isinstance(second, str):
        _refuse_equal(first, second)
        before, chosen, rejected = split_shared(first, second)
        return Example(before, {"chosen": chosen, "rejected": rejected})
    if isinstance(first, str) or isinstance(second, str):
        raise RowProblem("chosen and rejected differ in type", "one is text, one a conversation")
    return _pair(*split_last(first, "chosen"), *split_last(second, "rejected"))


def _parse_hh(row: Values) -> Example:
    first, second = (read_dialogue(row.get(k), k) for k in PAIR)
    return _pair(*split_last(first, "chosen"), *split_last(second, "rejected"))


def _join(prompt: Text, row: Values, field: str) -> tuple[Text, str]:
    return join(prompt, read_text(row.get(field), field), field)


def _pair(prompt: Text, chosen: str, other: Text, rejected: str) -> Example:
    if prompt != other:
        raise RowProblem(
            "chosen and rejected answer different prompts",
            "they may differ only in the assistant's last message",
        )
    _refuse_equal(chosen, rejected)
    return Example(prompt, {"chosen": chosen, "rejected": rejected})


def _refuse_equal(chosen: str, rejected: str) -> None:
    if chosen.strip() == rejected.strip():
        raise RowProblem(EQUAL_ANSWERS, "a preference needs two different answers")


PARSERS: dict[str, Callable[[Values], Example]] = {
    "preference": _parse_preference,
    "hh": _parse_hh,
    "unpaired": _parse_unpaired,
    "prompt-completion": _parse_completion,
    "messages": _parse_messages,
    "text": _parse_text,
    "prompts": _parse_prompt,
}
