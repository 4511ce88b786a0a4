"""Values as the store's rows hold them, and back."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from feedback.errors import DataError
from feedback.schema import (
    RATING_SCALE,
    Comparison,
    Correction,
    Item,
    Judgement,
    Kind,
    Label,
    Pair,
    Ranking,
    Rating,
    Text,
    Thumb,
    item_id,
)

FLIPPED: dict[Label, Label] = {"a": "b", "b": "a", "tie": "tie"}


def display_order(item: str, seed: int, n: int = 2) -> tuple[int, ...]:
    """Which answer is shown at each of n places: a fair draw that only item id and seed decide."""
    draw = random.Random(f"{seed}:{item}")
    if n == 2:
        return (1, 0) if draw.random() < 0.5 else (0, 1)
    order = list(range(n))
    draw.shuffle(order)
    return tuple(order)


def new_item(
    kind: Kind,
    prompt: Text,
    responses: Sequence[str],
    sources: Sequence[str] = (),
    columns: Mapping[str, Any] | None = None,
    seed: int = 0,
    round: str = "",
) -> Item:
    """An item with its id and its display order.

    Raises:
        DataError: answers are equal, too few or too many for the kind, or the text cannot be
            stored.
    """
    _check_responses(kind, prompt, responses)
    try:
        name = item_id(kind, prompt, responses)
    except (UnicodeEncodeError, TypeError) as error:
        raise DataError(
            f"a {kind}'s text cannot be stored: {error} (prompt {str(prompt)[:80]!r})."
        ) from error
    return Item(
        name,
        kind,
        prompt,
        tuple(responses),
        tuple(sources) or ("",) * len(responses),
        dict(columns or {}),
        seed,
        display_order(name, seed, len(responses)),
        round,
    )


def new_pair(
    prompt: Text,
    response_a: str,
    response_b: str,
    source_a: str,
    source_b: str,
    columns: Mapping[str, Any],
    seed: int = 0,
    round: str = "",
) -> Pair:
    """A pair with its id and its display order.

    Raises:
        DataError: the answers are equal, or the text cannot be stored.
    """
    item = new_item(
        "pair", prompt, (response_a, response_b), (source_a, source_b), columns, seed, round
    )
    return pair_of(item)


def pair_of(item: Item) -> Pair:
    """An item with two answers as the pair it is."""
    (response_a, response_b), (source_a, source_b) = item.responses, item.sources
    return Pair(
        item.id,
        item.prompt,
        response_a,
        response_b,
        source_a,
        source_b,
        item.columns,
        item.seed,
        item.shown == (1, 0),
        item.round,
        item.created_at,
    )


def item_of_pair(pair: Pair) -> Item:
    """A pair as the general item."""
    return Item(
        pair.id,
        "pair",
        pair.prompt,
        (pair.response_a, pair.response_b),
        (pair.source_a, pair.source_b),
        pair.columns,
        pair.seed,
        (1, 0) if pair.swapped else (0, 1),
        pair.round,
        pair.created_at,
    )


def item_of(row: Mapping[str, Any]) -> Item:
    """An item from its row."""
    values = {key: value for key, value in row.items() if key != "position"}
    tuples = {key: tuple(values[key]) for key in ("responses", "sources", "shown")}
    return Item(**(values | tuples))


def item_of_judgement(judgement: Judgement) -> Item:
    """The item a judgement speaks of, for judgements that come without one.

    A correction belongs to the item it names; alone it is a rating of what it corrects.
    """
    match judgement:
        case Comparison():
            sources = (judgement.source_a, judgement.source_b)
            answers = (judgement.response_a, judgement.response_b)
            return new_item("pair", judgement.prompt, answers, sources)
        case Ranking():
            return new_item("ranking", judgement.prompt, judgement.responses, judgement.sources)
        case Thumb():
            return new_item("thumb", judgement.prompt, [judgement.response], [judgement.source])
        case Rating() | Correction():
            return new_item("rating", judgement.prompt, [judgement.response], [judgement.source])


def row_of_judgement(judgement: Judgement, item: Item) -> dict[str, Any]:
    """What was said, in the order of the stored item's answers.

    Raises:
        DataError: a label, order, score or answer that does not fit the item.
    """
    return {"type": type(judgement).__name__.lower()} | _ROWS[type(judgement)](judgement, item)


def event_row(
    kind: str,
    annotation: str,
    item: str,
    annotator: str,
    raw: Mapping[str, Any] | None,
    judgement: Mapping[str, Any] | None = None,
    created_at: datetime | None = None,
) -> dict[str, Any]:
    """The row of an event that the store hears of now."""
    now = datetime.now(UTC)
    return {
        "kind": kind,
        "annotation": annotation,
        "item": item,
        "annotator": annotator,
        "judgement": dict(judgement or {}),
        "raw": dict(raw or {}),
        "created_at": created_at or now,
        "recorded_at": now,
    }


def judgement_of(row: Mapping[str, Any]) -> Judgement:
    """The judgement from an event's row joined with its item's."""
    said = dict(row["judgement"])
    build = _BUILDERS[said.pop("type", "comparison")]
    judgement = build(row, said)
    return replace(judgement, annotator=row["annotator"], created_at=row["created_at"])


def _check_responses(kind: Kind, prompt: Text, responses: Sequence[str]) -> None:
    expected = {"pair": (2, 2), "ranking": (2, 26), "rating": (1, 1), "thumb": (1, 1)}
    low, high = expected[kind]
    if not low <= len(responses) <= high:
        raise DataError(
            f"a {kind} needs {low if low == high else f'{low} to {high}'} answers, not "
            f"{len(responses)} (to {str(prompt)[:80]!r})."
        )
    if len(set(responses)) < len(responses):
        twice = max(responses, key=list(responses).count)
        short = twice if len(twice) <= 80 else twice[:80] + "..."
        what = "but both are" if kind == "pair" else "but one is there twice:"
        raise DataError(
            f"a {kind} needs {'two ' if kind == 'pair' else ''}different answers, {what} {short!r} "
            f"(to {str(prompt)[:80]!r}). Fix: leave such {kind}s out."
        )


def _comparison_row(judgement: Comparison, item: Item) -> dict[str, Any]:
    if judgement.label not in FLIPPED:
        raise DataError(
            f"a comparison by {judgement.annotator!r} has the label {judgement.label!r}; "
            "expected 'a', 'b' or 'tie'."
        )
    turned = judgement.response_a != item.responses[0]
    return {
        "label": FLIPPED[judgement.label] if turned else judgement.label,
        "strength": judgement.strength,
        "swapped": judgement.swapped != turned,
        "lead_time": judgement.lead_time,
        "reason": judgement.reason,
    }


def _ranking_row(judgement: Ranking, item: Item) -> dict[str, Any]:
    if sorted(judgement.order) != list(range(len(item.responses))):
        raise DataError(
            f"a ranking by {judgement.annotator!r} has the order {list(judgement.order)}; expected "
            f"each of 0 to {len(item.responses) - 1} once, best first."
        )
    order = [item.responses.index(judgement.responses[place]) for place in judgement.order]
    return {"order": order, "lead_time": judgement.lead_time, "reason": judgement.reason}


def _rating_row(judgement: Rating, item: Item) -> dict[str, Any]:
    bad = {k: v for k, v in judgement.scores.items() if v not in RATING_SCALE}
    if bad or not judgement.scores:
        raise DataError(
            f"a rating by {judgement.annotator!r} has {bad or 'no scores'}; expected whole numbers "
            f"from {RATING_SCALE[0]} to {RATING_SCALE[-1]}."
        )
    return {
        "scores": dict(judgement.scores),
        "lead_time": judgement.lead_time,
        "reason": judgement.reason,
    }


def _thumb_row(judgement: Thumb, item: Item) -> dict[str, Any]:
    return {
        "good": bool(judgement.good),
        "lead_time": judgement.lead_time,
        "reason": judgement.reason,
    }


def _correction_row(judgement: Correction, item: Item) -> dict[str, Any]:
    if judgement.response not in item.responses:
        raise DataError(
            f"a correction by {judgement.annotator!r} is of an answer that its item does not have."
        )
    return {
        "answer": item.responses.index(judgement.response),
        "corrected": judgement.corrected,
    }


_ROWS: dict[type, Callable[[Any, Item], dict[str, Any]]] = {
    Comparison: _comparison_row,
    Ranking: _ranking_row,
    Rating: _rating_row,
    Thumb: _thumb_row,
    Correction: _correction_row,
}


def _comparison(row: Mapping[str, Any], said: dict[str, Any]) -> Comparison:
    a, b = row["responses"]
    source_a, source_b = row["sources"]
    return Comparison(
        row["prompt"],
        a,
        b,
        annotator="",
        pair=row["item"],
        source_a=source_a,
        source_b=source_b,
        **said,
    )


def _ranking(row: Mapping[str, Any], said: dict[str, Any]) -> Ranking:
    order = tuple(said.pop("order"))
    answers, sources = tuple(row["responses"]), tuple(row["sources"])
    return Ranking(row["prompt"], answers, order, "", row["item"], sources, **said)


def _rating(row: Mapping[str, Any], said: dict[str, Any]) -> Rating:
    scores = said.pop("scores")
    answer, source = row["responses"][0], row["sources"][0]
    return Rating(row["prompt"], answer, scores, "", row["item"], source, **said)


def _thumb(row: Mapping[str, Any], said: dict[str, Any]) -> Thumb:
    good = said.pop("good")
    answer, source = row["responses"][0], row["sources"][0]
    return Thumb(row["prompt"], answer, good, "", row["item"], source, **said)


def _correction(row: Mapping[str, Any], said: dict[str, Any]) -> Correction:
    place = said["answer"]
    answer, source = row["responses"][place], row["sources"][place]
    return Correction(row["prompt"], answer, said["corrected"], "", row["item"], source)


_BUILDERS: dict[str, Callable[[Mapping[str, Any], dict[str, Any]], Judgement]] = {
    "comparison": _comparison,
    "ranking": _ranking,
    "rating": _rating,
    "thumb": _thumb,
    "correction": _correction,
}
