"""Rows of labelled sets, by shape: pairs, lists, rankings and ratings.

Prompts and answers are laid out as in training: rows that training reads go through
`align.data.formats.convert`, the others through the same `feedback.conversation.join`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from align.data.conversation import read_text
from align.data.formats import convert, detect_format, rename
from align.data.rows import Values
from align.errors import DataError
from align.evaluate.reward_sets import AnswerSet, Rated, aspects_of, grades_of
from feedback.conversation import as_turns, join
from feedback.dialogue import RowProblem
from feedback.schema import Text
from reward.preferences import SOFT_LABEL

Reader = Callable[[Values, dict[str, str]], "AnswerSet | Rated"]


def reader_of(rows: Sequence[Values], columns: dict[str, str], path: str) -> Reader:
    """How rows are read, by the columns most of the first ones have.

    Raises:
        DataError: nothing in them says which answer is better.
    """
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
    better, worse = (list(row[name]) for name in ("chosen", "rejected"))
    if not better or not worse:
        raise RowProblem("chosen or rejected is an empty list", "expected an answer in each")
    prompt, answers = _joined(row, [*better, *worse], "chosen and rejected")
    return AnswerSet(prompt, answers, (1.0,) * len(better) + (0.0,) * len(worse))


def _read_ranking(values: Values, columns: dict[str, str]) -> AnswerSet:
    row = rename(values, columns)
    scores, ranks = row.get("scores"), row.get("ranks")
    scored = row.get("order") is None and ranks is None
    level = isinstance(ranks, list) and len({str(rank) for rank in ranks}) == 1
    if not scored and not level:
        found = convert(values, "ranking", "ranking", columns)
        assert found is not None
        places = found["ranks"]
        grades = tuple(float(max(places) - place) for place in places)
        return AnswerSet(found["prompt"], tuple(found["responses"]), grades)
    prompt, answers = _joined(row, row.get("responses"), "responses")
    given, what = (scores, "scores") if scored else (ranks, "ranks")
    if not isinstance(given, list | tuple) or len(given) != len(answers):
        raise RowProblem(f"{what} is no list", f"expected {len(answers)} numbers")
    # Equal ranks, which training refuses, grade all alike: the row says nothing.
    return AnswerSet(prompt, answers, grades_of([aspects_of(one, what) for one in given]))


def _read_rated(values: Values, columns: dict[str, str]) -> Rated:
    row = rename(values, columns)
    name = next(n for n in ("score", "rating", "scores", "label") if n in row or n == "label")
    given = {
        "prompt": row.get("prompt"),
        "completion": row.get("completion", row.get("response")),
        "scores": aspects_of(row.get(name), name),
    }
    found = convert(given, "rating", "rating", {})
    assert found is not None
    return Rated(found["prompt"], found["completion"], found["scores"])


def _joined(row: Values, texts: Any, field: str) -> tuple[Text, tuple[Text, ...]]:
    """A prompt and its answers, however the fields share the conversation.

    Raises:
        RowProblem: one of them is missing, or the answers follow different prompts.
    """
    if not isinstance(texts, list | tuple) or len(texts) < 2:
        raise RowProblem(f"{field} is no list of answers", "expected two or more")
    prompt = read_text(row.get("prompt"), "prompt")
    joined = [join(prompt, read_text(text, field), field) for text in texts]
    before = joined[0][0]
    if any(as_turns(other) != as_turns(before) for other, _ in joined):
        raise RowProblem(f"{field} answer different prompts", "expected one for all")
    texts = [answer for _, answer in joined]
    if isinstance(before, str):
        return before, tuple(texts)
    return before, tuple([{"role": "assistant", "content": text}] for text in texts)
