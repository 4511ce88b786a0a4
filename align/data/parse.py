"""One parser per format: a row into an `Example`, a prompt with its answers.

What an example then looks like for a stage is said in `align.data.formats`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from align.data.conversation import (
    check_prompt,
    read_dialogue,
    read_messages,
    read_text,
    split_last,
)
from align.data.rows import Values
from feedback.dialogue import RowProblem
from feedback.schema import Messages, Text

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
        return _split_shared(first, second)
    if isinstance(first, str) or isinstance(second, str):
        raise RowProblem("chosen and rejected differ in type", "one is text, one a conversation")
    return _pair(*split_last(first, "chosen"), *split_last(second, "rejected"))


def _parse_hh(row: Values) -> Example:
    first, second = (read_dialogue(row.get(k), k) for k in PAIR)
    return _pair(*split_last(first, "chosen"), *split_last(second, "rejected"))


def _join(prompt: Text, row: Values, field: str) -> tuple[Text, str]:
    """The whole prompt and the last answer, however the two fields share the conversation."""
    answer = read_text(row.get(field), field)
    if isinstance(answer, str):
        check_prompt(prompt, "prompt")
        return prompt, answer
    turns = as_turns(prompt)
    if answer[: len(turns)] == turns:  # the answer's field repeats the prompt
        return split_last(answer, field)
    if len(answer) > 1 and isinstance(prompt, str) and answer[-2]["content"] == prompt:
        return split_last(answer, field)  # the same, with a system message or earlier turns
    check_prompt(turns, "prompt")
    return split_last([*turns, *answer], field)


def _pair(prompt: Text, chosen: str, other: Text, rejected: str) -> Example:
    if prompt != other:
        raise RowProblem(
            "chosen and rejected answer different prompts",
            "they may differ only in the assistant's last message",
        )
    if chosen.strip() == rejected.strip():
        raise RowProblem(EQUAL_ANSWERS, "a preference needs two different answers")
    return Example(prompt, {"chosen": chosen, "rejected": rejected})


def _split_shared(chosen: str, rejected: str) -> Example:
    """Two texts as the beginning they share and two answers, split between words.

    `trl.extract_prompt` splits inside a word ("bl|ue", "bl|ack") and loses a letter where one
    text continues the other, so it is not used here.
    """
    if chosen.strip() == rejected.strip():
        raise RowProblem(EQUAL_ANSWERS, "a preference needs two different answers")
    shared = 0
    for a, b in zip(chosen, rejected, strict=False):
        if a != b:
            break
        shared += 1
    inside = [text[shared - 1 : shared + 1] for text in (chosen, rejected)]
    if any(len(pair) == 2 and not pair[0].isspace() and not pair[1].isspace() for pair in inside):
        while shared and not chosen[shared - 1].isspace():
            shared -= 1
    while shared and chosen[shared - 1].isspace():  # answers keep the space before them
        shared -= 1
    if not shared:
        raise RowProblem("chosen and rejected share no beginning", "add a prompt column")
    answers = {"chosen": chosen[shared:], "rejected": rejected[shared:]}
    for name, answer in answers.items():
        if not answer.strip():
            raise RowProblem(f"{name} is empty", "it ends where the shared beginning does")
    return Example(chosen[:shared], answers)


def as_turns(prompt: Text) -> Messages:
    """A prompt as a conversation: plain text is the user's turn."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


PARSERS: dict[str, Callable[[Values], Example]] = {
    "preference": _parse_preference,
    "hh": _parse_hh,
    "unpaired": _parse_unpaired,
    "prompt-completion": _parse_completion,
    "messages": _parse_messages,
    "text": _parse_text,
    "prompts": _parse_prompt,
}
