"""One parser per format: a row into an `Example`, a prompt with its answers.

What an example then looks like for a stage is said in `align.data.formats`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from align.data.conversation import read_dialogue, read_text
from align.data.rows import Values, shorten
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
    parts: list[str] = field(default_factory=list)  # ranked answers, or the steps of one
    targets: Values = field(default_factory=dict)  # what people said of the parts or the answer


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


def _parse_ranking(row: Values) -> Example:
    prompt = read_text(row.get("prompt"), "prompt")
    given = row.get("responses")
    if not isinstance(given, list) or len(given) < 2:
        raise RowProblem("responses is no list of two or more answers", _shown(given))
    joined = [
        join(prompt, read_text(r, f"responses[{i}]"), "responses") for i, r in enumerate(given)
    ]
    parts = [answer for _, answer in joined]
    ranks = read_ranks(row, len(parts))
    said: dict[str, int] = {}
    for answer, rank in zip(parts, ranks, strict=True):
        if said.setdefault(answer.strip(), rank) != rank:
            raise RowProblem("two equal responses have different ranks", _shown(answer))
    return Example(joined[0][0], parts=parts, targets={"ranks": ranks})


def read_ranks(row: Values, count: int) -> list[int]:
    """A ranking's places, 1 for the best; from `ranks`, where answers may share one, or `order`.

    Args:
        row: with `ranks`, or `order`: the answers' indices, best first.
        count: of the answers.

    Raises:
        RowProblem: they do not fit the answers, or all answers share one place.
    """
    order, ranks = row.get("order"), row.get("ranks")
    if ranks is None:
        if not isinstance(order, list) or sorted(order, key=str) != sorted(range(count), key=str):
            what = f"{_shown(order)}; expected the indices 0 to {count - 1}, best first"
            raise RowProblem("order is no order of the responses", what)
        return [order.index(place) + 1 for place in range(count)]
    whole = isinstance(ranks, list) and all(type(rank) is int for rank in ranks)
    if not whole or len(ranks) != count:
        what = f"{_shown(ranks)}; expected {count} whole numbers, 1 for the best"
        raise RowProblem("ranks do not fit the responses", what)
    if len(set(ranks)) == 1:
        raise RowProblem("all responses share one rank", "none is better than another")
    return list(ranks)


def _parse_rating(row: Values) -> Example:
    example = _parse_completion(row)
    given = row.get("scores")
    scores = given if isinstance(given, dict) else {"score": given}
    known = {name: _number(f"scores.{name}", v) for name, v in scores.items() if v is not None}
    if not known:
        raise RowProblem("scores holds no number", _shown(given))
    example.targets = {"scores": known}
    return example


def _parse_steps(row: Values) -> Example:
    prompt = read_text(row.get("prompt"), "prompt")
    check_prompt(prompt, "prompt")
    steps, labels = row.get("completions"), row.get("labels")
    if not isinstance(steps, list) or not all(isinstance(s, str) and s.strip() for s in steps):
        raise RowProblem("completions is no list of steps", _shown(steps))
    steps = [step.strip("\n") for step in steps]
    broken = next((step for step in steps if "\n" in step), None)
    if broken is not None:
        raise RowProblem("a step holds a line break", f"{_shown(broken)}; a step is one line")
    if not isinstance(labels, list) or len(labels) != len(steps) or not steps:
        raise RowProblem("labels do not fit the steps", f"{_shown(labels)} for {len(steps)} steps")
    found = [None if label is None else _number("labels", label) for label in labels]
    if any(label is not None and not 0 <= label <= 1 for label in found):
        raise RowProblem("a label is no probability", f"{_shown(labels)}; expected 0 to 1")
    if all(label is None for label in found):
        raise RowProblem("no step has a label", "at least one is needed")
    return Example(prompt, parts=list(steps), targets={"labels": found})


def _number(name: str, value: object) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise RowProblem(f"{name} is no finite number", _shown(value))
    return float(value)


def _shown(value: object) -> str:
    return shorten(repr(value), 60)


PARSERS: dict[str, Callable[[Values], Example]] = {
    "preference": _parse_preference,
    "hh": _parse_hh,
    "unpaired": _parse_unpaired,
    "prompt-completion": _parse_completion,
    "messages": _parse_messages,
    "text": _parse_text,
    "prompts": _parse_prompt,
    "ranking": _parse_ranking,
    "rating": _parse_rating,
    "steps": _parse_steps,
}
