"""Every format people keep data in, to the columns a stage trains on.

| format            | columns of a row                                  | serves                   |
|-------------------|---------------------------------------------------|--------------------------|
| preference        | chosen, rejected; prompt, or a shared beginning   | sft, preference, prompts |
| hh                | chosen, rejected as raw Human/Assistant dialogues | sft, preference, prompts |
| unpaired          | prompt, completion, label                         | unpaired, sft (if true), |
|                   |                                                   | prompts                  |
| prompt-completion | prompt, completion                                | sft, prompts             |
| messages          | messages (or conversations with from/value)       | sft, prompts             |
| text              | text                                              | sft                      |
| prompts           | prompt                                            | prompts                  |
| ranking           | prompt, responses, and order or ranks             | ranking, prompts         |
| rating            | prompt, completion, scores                        | rating, sft, prompts     |
| steps             | prompt, completions (its steps), labels           | steps                    |

A preference or hh row also serves as a ranking of two.

Two steps: a parser (`align.data.parse`) reads a row into an `Example`, a prompt and its answers; a
projection here writes the columns of the asked kind. So a format is read in one place.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from align.data.conversation import add_system
from align.data.parse import PARSERS, Example
from align.data.rows import Kind, Values
from align.errors import DataError
from feedback.conversation import as_turns
from feedback.dialogue import RowProblem, is_dialogue
from feedback.schema import Text
from reward.preferences import SOFT_LABEL, TIE

SERVES: dict[str, tuple[Kind, ...]] = {
    "preference": ("sft", "preference", "prompts", "ranking"),
    "hh": ("sft", "preference", "prompts", "ranking"),
    "unpaired": ("unpaired", "sft", "prompts"),
    "prompt-completion": ("sft", "prompts"),
    "messages": ("sft", "prompts"),
    "text": ("sft",),
    "prompts": ("prompts",),
    "ranking": ("ranking", "prompts"),
    "rating": ("rating", "sft", "prompts"),
    "steps": ("steps",),
}
PLAINER = {"ranking": "prompts", "rating": "prompt-completion"}  # what else they are read as
FORMAT_FIELDS = frozenset(
    ["prompt", "completion", "chosen", "rejected", "label", "messages", "conversations", "text"]
)
# Optional numbers of a preference, and what changes none.
WEIGHTS = {"margin": 0.0, "weight": 1.0, SOFT_LABEL: 1.0}
RESERVED = ("prompts", "completions")  # names a reward function's own arguments have
SNIFF = 50  # rows that a format is guessed from


def detect_format(rows: Sequence[Values], columns: Mapping[str, str], where: str) -> str:
    """The format most of the first rows have.

    Raises:
        DataError: no known format fits; the message lists the columns found and how to name them.
    """
    sample, problem = [], None
    for row in rows[:SNIFF]:
        try:
            sample.append(rename(row, columns))
        except RowProblem as error:
            problem = problem or error
    if problem and not sample:
        raise DataError(f"{where}: {problem}. Fix: mend `columns` (ours: theirs).")
    votes = Counter(name for row in sample if (name := _format_of(set(row))))
    if not votes:
        found = ", ".join(sorted(set().union(*sample))) or "none"
        raise DataError(
            f"{where}: no known format has these columns: {found}. Fix: name them with `columns`, "
            "ours to theirs, for example columns: {prompt: question, completion: answer}."
        )
    name = votes.most_common(1)[0][0]
    dialogues = sum(is_dialogue(row.get("chosen")) for row in sample)
    return "hh" if name == "preference" and 2 * dialogues > len(sample) else name


def check_serves(format: str, kind: Kind, where: str, also: str = "") -> None:
    """Refuse a format that does not hold what a stage needs.

    Args:
        format: of the data.
        kind: what the stage reads them as.
        where: the file.
        also: columns beyond the formats that the stage reads.

    Raises:
        DataError: naming the formats that do.
    """
    if kind in SERVES[format]:
        return
    able = ", ".join(name for name, kinds in SERVES.items() if kind in kinds)
    need = {
        "sft": "an answer to learn from",
        "preference": "a chosen and a rejected answer",
        "unpaired": "an answer marked good or bad",
        "prompts": "a prompt apart from its answer",
        "ranking": "answers and their order",
        "rating": "an answer with its scores",
        "steps": "the steps of an answer with their labels",
    }[kind]
    raise DataError(
        f"{where}: {format} data cannot serve {kind!r}, which needs {need}. "
        f"Fix: use data in one of these formats: {able}{f'; or {also}' if also else ''}."
    )


def convert(
    values: Values, format: str, kind: Kind, columns: Mapping[str, str], system: str | None = None
) -> Values | None:
    """One row in the columns of the asked kind, or None for a row that this kind leaves out.

    Raises:
        RowProblem: the row is bad.
    """
    renamed = rename(values, columns)
    example = PARSERS[format if kind == format else PLAINER.get(format, format)](renamed)
    if system is not None and example.prompt is not None:
        example.prompt = add_system(as_turns(example.prompt), system)
    if kind == "sft":
        return _to_sft(_likelier_first(example, _weights(renamed, [SOFT_LABEL])))
    if kind == "preference":
        found = _weights(renamed)
        if SOFT_LABEL in found:
            example = _likelier_first(example, found)
            found[SOFT_LABEL] = max(found[SOFT_LABEL], 1 - found[SOFT_LABEL])
        return _to_preference(example) | found
    assert example.prompt is not None
    if kind == "unpaired":
        answer = _answer(example.prompt, example.answers["completion"])
        return {"prompt": example.prompt, "completion": answer, "label": example.label}
    if kind in ("ranking", "rating", "steps"):
        found = _weights(renamed, ["weight", SOFT_LABEL])
        label = found.pop(SOFT_LABEL, 1.0)
        if example.answers and abs(label - 0.5) <= TIE:
            return None  # a preference that names no better answer
        return _to_graded(_likelier_first(example, {SOFT_LABEL: label}), kind) | found
    return {"prompt": example.prompt} | _further_columns(values, renamed, columns)


def rename(values: Values, columns: Mapping[str, str]) -> Values:
    """The row under our names; `a.b` reads inside a nested object.

    Raises:
        RowProblem: a named column is not there.
    """
    if not columns:
        return values
    taken = set(columns.values())
    renamed = {key: value for key, value in values.items() if key not in taken}
    for ours, theirs in columns.items():
        renamed[ours] = _lookup(values, theirs)
    return renamed


def _lookup(values: Values, name: str) -> Any:
    if name in values:
        return values[name]
    node: Any = values
    for part in name.split("."):
        if not isinstance(node, dict) or part not in node:
            near = difflib.get_close_matches(name, list(values), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the row has {', '.join(values)}"
            raise RowProblem(f"has no column {name!r}", hint)
        node = node[part]
    return node


def _format_of(keys: set[str]) -> str | None:
    if {"chosen", "rejected"} <= keys:
        return "preference"
    if "responses" in keys and keys & {"order", "ranks"}:
        return "ranking"
    if {"prompt", "completions", "labels"} <= keys:
        return "steps"
    if {"prompt", "completion", "label"} <= keys:
        return "unpaired"  # beside scores too: SFT must not learn what is marked as bad
    if {"prompt", "completion", "scores"} <= keys:
        return "rating"
    if {"prompt", "completion"} <= keys:
        return "prompt-completion"
    if keys & {"messages", "conversations"}:
        return "messages"
    if "text" in keys:
        return "text"
    return "prompts" if "prompt" in keys else None


def _to_sft(example: Example) -> Values | None:
    if example.text is not None:
        return {"text": example.text}
    if not example.label:
        return None
    assert example.prompt is not None
    answer = example.answers.get("chosen", example.answers.get("completion"))
    if answer is None:
        raise RowProblem("messages does not end with the assistant", "nothing to learn from")
    return {"prompt": example.prompt, "completion": _answer(example.prompt, answer)}


def _to_preference(example: Example) -> Values:
    assert example.prompt is not None
    answers = {name: _answer(example.prompt, text) for name, text in example.answers.items()}
    return {"prompt": example.prompt} | answers


def _to_graded(example: Example, kind: Kind) -> Values:
    """Ranked answers, a rated answer, or an answer's steps, with what people said of them."""
    prompt = example.prompt
    assert prompt is not None
    if kind == "rating":
        return {
            "prompt": prompt,
            "completion": _answer(prompt, example.answers["completion"]),
        } | example.targets
    if kind == "steps":
        return {"prompt": prompt, "completions": example.parts} | example.targets
    parts, targets = example.parts, example.targets
    if not parts:  # a preference
        parts, targets = [example.answers[k] for k in ("chosen", "rejected")], {"ranks": [1, 2]}
    return {"prompt": prompt, "responses": [_answer(prompt, text) for text in parts]} | targets


def _weights(renamed: Values, names: Iterable[str] = WEIGHTS) -> Values:
    """The row's margin, weight and soft label, where it has them, as finite numbers."""
    found = {}
    for name in names:
        value = renamed.get(name)
        if value is None or value == "":
            continue
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise RowProblem(f"{name} has the wrong type", f"{value!r}; a number") from None
        if not math.isfinite(number):
            raise RowProblem(f"{name} is not finite", f"{value!r}; expected a finite number")
        if name == "weight" and number < 0:
            raise RowProblem("weight is negative", f"{value!r}; expected 0 or more")
        if name == SOFT_LABEL and not 0 <= number <= 1:
            raise RowProblem(f"{name} is no probability", f"{value!r}; expected 0 to 1")
        found[name] = number
    return found


def _likelier_first(example: Example, weights: Values) -> Example:
    """The example with the better answer as `chosen`: turned where its soft label is below 0.5."""
    if weights.get(SOFT_LABEL, 1.0) < 0.5 and "rejected" in example.answers:
        chosen, rejected = (example.answers[name] for name in ("chosen", "rejected"))
        example.answers |= {"chosen": rejected, "rejected": chosen}
    return example


def _further_columns(values: Values, renamed: Values, columns: Mapping[str, str]) -> Values:
    """What reward functions get: every column that is no field of a format, by the file's name."""
    further = {key: value for key, value in renamed.items() if key not in FORMAT_FIELDS}
    for ours, theirs in columns.items():
        if ours in FORMAT_FIELDS - {"prompt", "messages"} and theirs not in FORMAT_FIELDS:
            further[theirs] = _lookup(values, theirs)
    for name in RESERVED:
        if name in further:
            raise RowProblem(f"has a column {name!r}", "reward functions use that name; rename it")
    return further


def _answer(prompt: Text, text: str) -> Text:
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
