"""Labelled answers from anywhere, as sets: a prompt, its answers, and a grade for each.

| rows hold                                              | a set is                          |
|--------------------------------------------------------|-----------------------------------|
| `chosen`, `rejected` in any format of `align.data`     | two answers                       |
| `prompt`, `chosen`, `rejected` as lists of texts       | all of them (RewardBench 2)       |
| `prompt`, `responses` and `order` (indices, best first)| a ranking                         |
| or `ranks` (1 for the best)                            |                                   |
| `prompt`, `responses` and `scores`                     | rated answers, in one row         |
| `prompt`, `completion` and `score` or `label`          | rated answers, the rows of a      |
|                                                        | prompt together                   |
| a feedback file (PandaLM, Label Studio, our own)       | pairs, rankings, ratings, thumbs  |
| the URL of a feedback store                            | the same                          |

Further columns go to the reward function, as in training.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.data.conversation import read_text
from align.data.formats import (
    FORMAT_FIELDS,
    RESERVED,
    SNIFF,
    WEIGHTS,
    convert,
    detect_format,
    rename,
)
from align.data.parse import read_ranks
from align.data.read import READERS, file_suffix
from align.data.remote import is_store, read_source
from align.data.rows import Record, Values
from align.errors import DataError
from align.evaluate.reward_judgements import from_judgements, from_store
from align.evaluate.reward_sets import AnswerSet, Rated, gather_rated, single
from feedback.conversation import check_prompt
from feedback.dialogue import RowProblem
from feedback.formats import read_feedback
from feedback.formats.detect import format_of
from feedback.schema import Text
from reward.preferences import SOFT_LABEL

SHOWN = 3  # bad rows that an error names
LISTS = ("responses", "order", "ranks", "scores", "score", "rating", "label")


@dataclass
class LabelledRows:
    """What a source held."""

    source: str
    sets: list[AnswerSet] = field(default_factory=list)
    rows: int = 0
    undecided: int = 0  # sets whose answers are all graded alike
    bad: dict[str, int] = field(default_factory=dict)  # rows set aside, by reason

    @property
    def decided(self) -> list[AnswerSet]:
        """The sets that say of some answer that it is better."""
        return [one for one in self.sets if one.decided]


def read_labelled(
    path: str,
    *,
    category: str | None = None,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    limit: int | None = None,
    skip_bad: bool = False,
) -> LabelledRows:
    """Read a labelled set.

    Args:
        path: a data file, a folder, a hub id, or a feedback store's URL.
        category: the column that names a row's category; `a.b` reads inside an object.
        columns: ours to theirs, as in `data.columns`.
        split: of a folder or hub dataset.
        limit: the first sets only.
        skip_bad: set rows aside that cannot be used, and count them, instead of refusing the file.

    Raises:
        DataError: the source is missing or damaged, its format is unknown, it has bad rows, no
            row has the category, or nothing in it says which answer is better.
    """
    if is_store(path):
        found = LabelledRows(path)
        found.sets, found.rows = from_store(path, category)
        problems: list[tuple[str, RowProblem]] = []
    else:
        found, problems = _read_rows(path, category, dict(columns or {}), split)
    if problems and not skip_bad:
        shown = "\n".join(f"  - {where}: {problem}" for where, problem in problems[:SHOWN])
        more = f"\n  ... and {len(problems) - SHOWN:,} more" if len(problems) > SHOWN else ""
        raise DataError(
            f"{path}: {len(problems):,} rows cannot be used:\n{shown}{more}\n"
            "Fix: mend them, or set them aside and go on: --skip-bad, in Python skip_bad=True."
        )
    found.bad = dict(Counter(problem.reason for _, problem in problems).most_common())
    found.sets = found.sets[:limit]
    found.undecided = sum(not one.decided for one in found.sets)
    if not found.decided:
        raise DataError(
            f"{path}: no row says which of two answers is better ({found.rows:,} rows read). Fix: "
            "see docs/reward_evaluation.md for the columns that are understood."
        )
    if category is not None and not any(one.category for one in found.sets):
        raise DataError(
            f"{path}: no row has a category in the column {category!r}. Fix: name a column that "
            "the rows have."
        )
    return found


def _read_rows(
    path: str, category: str | None, columns: dict[str, str], split: str
) -> tuple[LabelledRows, list[tuple[str, RowProblem]]]:
    data = read_source(path, split=split)
    found = LabelledRows(path, rows=len(data.records))
    readable = [record.values for record in data.records if record.values is not None]
    first = [_renamed(values, columns) for values in readable[:SNIFF]]
    if not columns and Path(path).is_file() and _is_feedback(first) and _readable(path):
        read = read_feedback(path, bad_rows="quarantine")
        names = [(one.judgement, _category(one.raw, category)) for one in read.reads]
        found.sets = from_judgements(names)
        return found, [(bad.where, RowProblem(bad.reason, bad.detail)) for bad in read.bad]
    reader = _reader_of(first, columns, path)
    problems: list[tuple[str, RowProblem]] = []
    rated: list[Rated] = []
    for record in data.records:
        try:
            one = _read_row(record, reader, columns, category)
        except RowProblem as problem:
            problems.append((record.where, problem))
            continue
        if isinstance(one, AnswerSet):
            found.sets.append(one)
        else:
            rated.append(one)
    found.sets += gather_rated(rated)
    return found, problems


Reader = Callable[[Values, dict[str, str]], "AnswerSet | Rated"]


def _read_row(
    record: Record, reader: Reader, columns: dict[str, str], category: str | None
) -> AnswerSet | Rated:
    if record.values is None:
        raise record.problem or RowProblem("unreadable", "expected an object")
    one = reader(record.values, columns)
    renamed = rename(record.values, columns)
    further = {
        name: value
        for name, value in renamed.items()
        if name not in FORMAT_FIELDS and name not in (*RESERVED, *LISTS, *WEIGHTS)
    }
    return one.about(_category(record.values, category), _weight(renamed), further)


def _reader_of(rows: Sequence[Values], columns: dict[str, str], path: str) -> Reader:
    """How rows are read, by the columns most of the first ones have."""
    shapes = Counter(_shape(set(row), row) for row in rows)
    shape = shapes.most_common(1)[0][0] if shapes else ""
    readers: dict[str, Reader] = {
        "lists": _read_lists,
        "ranking": _read_ranking,
        "rated": _read_rated,
    }
    if shape:
        return readers[shape]
    format = detect_format(list(rows), {}, path) if rows else "unreadable"
    if format not in ("preference", "hh", "unreadable"):
        held = ", ".join(sorted(set().union(*rows)))
        raise DataError(
            f"{path}: {format} data do not say which answer is better; the columns are {held}. "
            "Fix: name chosen and rejected, responses and order or scores, or completion and score "
            "with --column ours=theirs."
        )
    return lambda values, names: _read_pair(values, names, format)


def _shape(keys: set[str], row: Values) -> str:
    if "prompt" not in keys:
        return ""
    if {"chosen", "rejected"} <= keys:
        lists = all(
            isinstance(row[k], list | tuple) and all(isinstance(t, str) for t in row[k])
            for k in ("chosen", "rejected")
        )
        return "lists" if lists else ""
    if "responses" in keys and keys & {"order", "ranks", "scores"}:
        return "ranking"
    graded = keys & {"score", "scores", "rating", "label"}
    return "rated" if graded and keys & {"completion", "response"} else ""


def _read_pair(values: Values, columns: dict[str, str], format: str) -> AnswerSet:
    found = convert(values, format, "preference", columns)
    assert found is not None
    soft = found.get(SOFT_LABEL)
    return AnswerSet(
        found["prompt"],
        (found["chosen"], found["rejected"]),
        (1.0, 0.0) if soft is None else (soft, 1 - soft),
        soft=soft,
    )


def _read_lists(values: Values, columns: dict[str, str]) -> AnswerSet:
    row = rename(values, columns)
    prompt = _prompt(row)
    better, worse = (list(row[name]) for name in ("chosen", "rejected"))
    if not better or not worse:
        raise RowProblem("chosen or rejected is an empty list", "expected an answer in each")
    answers = [_answer(prompt, text) for text in (*better, *worse)]
    return AnswerSet(prompt, tuple(answers), (1.0,) * len(better) + (0.0,) * len(worse))


def _read_ranking(values: Values, columns: dict[str, str]) -> AnswerSet:
    row = rename(values, columns)
    prompt = _prompt(row)
    responses = row.get("responses")
    if not isinstance(responses, list | tuple) or len(responses) < 2:
        raise RowProblem("responses is no list of answers", "expected two or more")
    answers = tuple(_answer(prompt, text) for text in responses)
    if row.get("order") is None and row.get("ranks") is None:
        scores = row.get("scores")
        if not isinstance(scores, list | tuple) or len(scores) != len(answers):
            raise RowProblem("scores is no list", f"expected {len(answers)} numbers")
        return AnswerSet(prompt, answers, tuple(single(score, "scores") for score in scores))
    places = read_ranks(row, len(answers))
    return AnswerSet(prompt, answers, tuple(float(max(places) - place) for place in places))


def _read_rated(values: Values, columns: dict[str, str]) -> Rated:
    row = rename(values, columns)
    prompt = _prompt(row)
    name = next(n for n in ("score", "rating", "scores", "label") if n in row or n == "label")
    text = row.get("completion", row.get("response"))
    return Rated(prompt, _answer(prompt, text), single(row.get(name), name))


def _prompt(row: Values) -> Text:
    prompt = read_text(row.get("prompt"), "prompt")
    check_prompt(prompt, "prompt")
    return prompt


def _answer(prompt: Text, value: Any) -> Text:
    """An answer in the prompt's layout; an empty one is kept, since somebody graded it."""
    if isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], dict):
        value = value[0].get("content")
    if not isinstance(value, str):
        raise RowProblem("an answer has the wrong type", f"{type(value).__name__}; expected text")
    return value if isinstance(prompt, str) else [{"role": "assistant", "content": value}]


def _category(row: Mapping[str, Any], column: str | None) -> str:
    if column is None:
        return ""
    try:
        found = rename(dict(row), {"category": column})["category"]
    except RowProblem:
        return ""
    return "" if found is None else str(found)


def _weight(row: Values) -> float:
    value = row.get("weight")
    if value in (None, ""):
        return 1.0
    weight = single(value, "weight")
    if not (math.isfinite(weight) and weight >= 0):
        raise RowProblem("weight is negative", f"{value!r}; expected 0 or more")
    return weight


def _renamed(values: Values, columns: dict[str, str]) -> Values:
    try:
        return rename(values, columns)
    except RowProblem as problem:
        raise DataError(f"{problem}. Fix: mend --column ours=theirs.") from problem


def _is_feedback(rows: Sequence[Values]) -> bool:
    """Whether most rows are judgements in a format that only `feedback.formats` reads."""
    names = Counter(format_of(row) for row in rows)
    return sum(names[name] for name in ("pandalm", "align", "label-studio")) * 2 > len(rows)


def _readable(path: str) -> bool:
    return file_suffix(Path(path)) in set(READERS) - {".parquet"}
