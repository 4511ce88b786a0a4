"""Align's own format, one judgement a row; what `feedback.formats.write` writes.

| `kind`       | columns                                       | optional                          |
|--------------|-----------------------------------------------|-----------------------------------|
| `comparison` | `prompt`, `response_a`, `response_b`, `label` | `strength`, `swapped`,            |
|              |                                               | `source_a`, `source_b`            |
| `ranking`    | `prompt`, `responses`, `order`                | `sources`                         |
| `rating`     | `prompt`, `response`, `scores`                | `source`                          |
| `thumb`      | `prompt`, `response`, `good`                  | `source`                          |
| `correction` | `prompt`, `response`, `corrected`             | `source`, `item`                  |
| `skip`       | `prompt`, `responses`                         | `sources`, `asked`                |

All: `annotator`, `reason`, `lead_time`, `created_at`, `annotation` (the id), `updated_at` (of this
version), `adjudicated` (it settles its item). A skip is a refusal to judge; `asked` is pair,
ranking, rating or thumb. A row without `kind` is a comparison, so that a plain table of comparisons
needs none. In a CSV file lists, objects and
conversations are JSON, and a column `prompt_is_text` says true where a prompt only looks like one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from feedback.conversation import shorten, type_name
from feedback.dialogue import RowProblem
from feedback.formats.found import Declined, Found, Outcome, check_storable, digest
from feedback.formats.result import Values
from feedback.formats.text import (
    different,
    read_annotator,
    read_extras,
    read_integer,
    read_prompt,
    read_string,
)
from feedback.formats.trl import read_flag
from feedback.records import new_item
from feedback.schema import (
    KINDS,
    RATING_SCALE,
    Comparison,
    Correction,
    Judgement,
    Label,
    Ranking,
    Rating,
    Thumb,
    item_id,
    pair_id,
)

LABELS: dict[str, Label] = {"a": "a", "b": "b", "tie": "tie"}
ID_LENGTH = 128  # what the store's column holds
MOST_RANKED = 26  # as many as the store takes


def parse(row: Values) -> Iterator[Outcome]:
    """One judgement, or one skip.

    Raises:
        RowProblem: the columns or their values do not fit.
    """
    check_storable(row)
    kind = row.get("kind") or "comparison"
    if kind not in ROW_KINDS:
        raise RowProblem("kind is unknown", f"{shorten(kind)}; expected {', '.join(ROW_KINDS)}")
    annotation = _annotation(row)
    if kind == SKIP:
        yield _skip(row, annotation)
        return
    common: dict[str, Any] = {"prompt": read_prompt(row), "annotator": read_annotator(row)}
    extras = read_extras(row)
    said = READERS[kind](row, common, extras)
    final = row.get("adjudicated") not in (None, "") and read_flag(
        row["adjudicated"], "adjudicated"
    )
    yield Found(said, row, annotation, dated="created_at" in extras, adjudicated=final)


def _annotation(row: Values) -> str:
    """The id that the row states, or none."""
    annotation = row.get("annotation")
    if annotation in (None, ""):
        return ""
    if not isinstance(annotation, str) or len(annotation) > ID_LENGTH:
        raise RowProblem(
            "annotation is no id", f"{shorten(annotation)}; up to {ID_LENGTH} characters"
        )
    return annotation


def _skip(row: Values, annotation: str) -> Declined:
    prompt, annotator = read_prompt(row), read_annotator(row)
    responses = _parsed(row, "responses", list)
    asked = row.get("asked") or "pair"
    if asked not in KINDS:
        raise RowProblem("asked is unknown", f"{shorten(asked)}; expected {', '.join(KINDS)}")
    low, high = {"pair": (2, 2), "ranking": (2, MOST_RANKED)}.get(asked, (1, 1))
    texts = all(isinstance(text, str) for text in responses)
    if not texts or not low <= len(set(responses)) == len(responses) <= high:
        raise RowProblem("responses do not fit", f"not those of a {asked}, all different texts")
    item = new_item(asked, prompt, responses, _sources(row, len(responses)))
    return Declined(item, annotator, annotation or digest("skip", item.id, annotator), row)


def _comparison(row: Values, common: Values, extras: Values) -> Judgement:
    answers = [_answer(row, name) for name in ("response_a", "response_b")]
    different(answers[0], answers[1], "response_a and response_b")
    stated = read_string(row, "label").strip().lower()
    if stated not in LABELS:
        raise RowProblem("label is unknown", f"{shorten(stated)}; expected a, b or tie")
    label = LABELS[stated]
    strength = 0 if label == "tie" else 1
    if row.get("strength") not in (None, ""):
        strength = read_integer(row, "strength", 0 if label == "tie" else 1, 2)
    swapped = row.get("swapped") not in (None, "") and read_flag(row["swapped"], "swapped")
    return Comparison(
        response_a=answers[0],
        response_b=answers[1],
        label=label,
        strength=strength,
        swapped=swapped,
        pair=pair_id(common["prompt"], answers[0], answers[1]),
        source_a=_name(row, "source_a"),
        source_b=_name(row, "source_b"),
        **common,
        **extras,
    )


def _ranking(row: Values, common: Values, extras: Values) -> Judgement:
    responses, order = _parsed(row, "responses", list), _parsed(row, "order", list)
    texts = all(isinstance(text, str) for text in responses)
    if not texts or not 2 <= len(set(responses)) == len(responses) <= MOST_RANKED:
        raise RowProblem("responses do not fit", f"expected 2 to {MOST_RANKED} different texts")
    whole = all(isinstance(i, int) and not isinstance(i, bool) for i in order)
    if not whole or sorted(order) != list(range(len(responses))):
        raise RowProblem(
            "order is no full order", f"{shorten(order)}; expected each index of responses once"
        )
    return Ranking(
        responses=tuple(responses),
        order=tuple(order),
        item=item_id("ranking", common["prompt"], responses),
        sources=_sources(row, len(responses)),
        **common,
        **extras,
    )


def _rating(row: Values, common: Values, extras: Values) -> Judgement:
    scores = _parsed(row, "scores", dict)
    if not scores:
        raise RowProblem("scores is empty", "expected at least one aspect")
    low, high = RATING_SCALE[0], RATING_SCALE[-1]
    checked = {aspect: read_integer(scores, aspect, low, high) for aspect in scores}
    return Rating(scores=checked, **_single(row, "rating", common), **extras)


def _thumb(row: Values, common: Values, extras: Values) -> Judgement:
    good = read_flag(row.get("good"), "good")
    return Thumb(good=good, **_single(row, "thumb", common), **extras)


def _correction(row: Values, common: Values, extras: Values) -> Judgement:
    times = {key: value for key, value in extras.items() if key == "created_at"}
    return Correction(
        response=_answer(row, "response"),
        corrected=read_string(row, "corrected"),
        source=_name(row, "source"),
        item=_name(row, "item"),
        **common,
        **times,
    )


READERS: dict[str, Callable[[Values, Values, Values], Judgement]] = {
    "comparison": _comparison,
    "ranking": _ranking,
    "rating": _rating,
    "thumb": _thumb,
    "correction": _correction,
}
SKIP = "skip"
ROW_KINDS = (*READERS, SKIP)


def _sources(row: Values, count: int) -> tuple[str, ...]:
    """Who wrote each of `count` answers, or nothing."""
    sources = _parsed(row, "sources", list) if row.get("sources") not in (None, "") else []
    if len(sources) not in (0, count) or not all(isinstance(name, str) for name in sources):
        raise RowProblem("sources do not fit", "expected one name per response")
    return tuple(sources)


def _single(row: Values, kind: str, common: Values) -> Values:
    """What a judgement of one answer has."""
    answer = _answer(row, "response")
    name = item_id("rating" if kind == "rating" else "thumb", common["prompt"], [answer])
    return common | {"response": answer, "item": name, "source": _name(row, "source")}


def _answer(row: Values, field: str) -> str:
    """An answer; it may be empty, since a model may say nothing and people may judge that."""
    return read_string(row, field, empty=True)


def _name(row: Values, field: str) -> str:
    return read_string(row, field, empty=True) if row.get(field) is not None else ""


def _parsed(row: Values, field: str, expected: type) -> Any:
    """A list or object, as it is or as the JSON of a CSV cell."""
    value = row.get(field)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowProblem(f"{field} is no JSON", f"{shorten(value)}: {error}") from None
    if not isinstance(value, expected):
        wanted = type_name(expected())
        raise RowProblem(f"{field} has the wrong type", f"{type_name(value)}; expected {wanted}")
    return value
