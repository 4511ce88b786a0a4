"""What a format's parser yields, and the ids that make importing twice add nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from feedback.dialogue import RowProblem
from feedback.formats.result import Values
from feedback.records import FLIPPED
from feedback.schema import Comparison, Correction, Item, Judgement, Ranking, Rating


@dataclass(frozen=True)
class Found:
    """A judgement in a row. Without an `id` one is made from what the judgement says."""

    judgement: Judgement
    raw: Mapping[str, Any]
    id: str = ""  # the annotation's id, where the row states one
    dated: bool = False  # the row says when; otherwise `created_at` is the time of reading
    adjudicated: bool = False  # it settles what others disagreed on


@dataclass(frozen=True)
class Declined:
    """An annotation by which a person declined to judge an item."""

    item: Item
    annotator: str
    id: str
    raw: Mapping[str, Any]


@dataclass(frozen=True)
class Misfit:
    """A part of a row that does not fit, where other parts of it do."""

    problem: RowProblem
    raw: object


Outcome: TypeAlias = Found | Declined | Misfit
Parser: TypeAlias = Callable[[Values], Iterator[Outcome]]  # raises RowProblem for a whole row


def digest(*parts: object) -> str:
    """32 hex digits of JSON values that are storable."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def check_storable(raw: object) -> None:
    """Refuse what no store keeps: text with lone surrogates, which is no valid Unicode.

    Such text comes from bytes that are not UTF-8 and from JSON escapes such as a halved emoji.

    Raises:
        RowProblem: saying so.
    """
    try:
        json.dumps(raw, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        bad = ascii(error.object[error.start])
        raise RowProblem("not valid Unicode", f"{bad} stands alone; save as UTF-8") from None
    except RecursionError:
        raise RowProblem("nested too deeply", "expected plain rows") from None


def content_id(found: Found, occurrence: int = 0) -> str:
    """The id of what a judgement says; the order in which it names two answers does not matter.

    The same person saying the same of the same answers again, at no stated time, is told apart by
    its `occurrence` in the file.
    """
    item = found.judgement
    when = item.created_at.isoformat() if found.dated else ""
    parts = [type(item).__name__, item.annotator, item.prompt, *_said(item), when]
    return digest(*parts, occurrence) if occurrence else digest(*parts)


def _said(item: Judgement) -> list[object]:
    if isinstance(item, Comparison):
        answers, label = [item.response_a, item.response_b], item.label
        if answers[0] > answers[1]:
            answers, label = answers[::-1], FLIPPED[label]
        return [*answers, label, item.strength, item.reason]
    if isinstance(item, Ranking):
        return [[item.responses[i] for i in item.order], item.reason]
    if isinstance(item, Rating):
        return [item.response, dict(item.scores), item.reason]
    if isinstance(item, Correction):
        return [item.response, item.corrected]
    return [item.response, item.good, item.reason]
