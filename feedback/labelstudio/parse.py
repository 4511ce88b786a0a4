"""What a person submitted, as judgements. Strict: whatever does not fit is refused with a reason.

The server accepts anything as a result (shared with whoever may log in), so nothing is taken on
trust: control names, types, choices, the completeness of a ranking. The caller quarantines what is
refused; nothing is dropped in silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from feedback.labelstudio.tasks import shown_order
from feedback.labelstudio.templates import (
    ASPECTS,
    CORRECTION,
    LEVELS,
    PREFERENCE,
    RANK,
    REASON,
    THUMB,
)
from feedback.schema import (
    RATING_SCALE,
    Comparison,
    Correction,
    Item,
    Judgement,
    Label,
    Ranking,
    Rating,
    Thumb,
)

LONGEST = 1e9  # seconds; a number past it is no time anybody took


class MisfitError(ValueError):
    """A result that does not fit the labelling configuration; the message says how."""


def parse_annotation(
    annotation: Mapping[str, Any], item: Item, key: str, annotator: str
) -> list[Judgement]:
    """The judgements in one annotation, display order undone; the main one first.

    Args:
        annotation: as the server's API gives it.
        item: what was asked.
        key: of the task: it says in which order the answers were shown.
        annotator: who answered.

    Raises:
        MisfitError: the result does not fit.
    """
    values = _by_control(annotation.get("result"))
    reason = _text(values.pop(REASON, None), REASON)
    corrected = _text(values.pop(CORRECTION, None), CORRECTION)
    order = shown_order(item, key)
    common: dict[str, Any] = {
        "annotator": annotator,
        "lead_time": _lead_time(annotation.get("lead_time")),
        "reason": reason,
        "created_at": _time(annotation.get("updated_at") or annotation.get("created_at")),
    }
    main: Judgement
    match item.kind:
        case "pair":
            main = _comparison(values, item, order, common)
        case "ranking":
            main = _ranking(values, item, order, common)
        case "rating":
            scores = {aspect: _stars(values, aspect) for aspect in ASPECTS}
            answer, source = item.responses[0], item.sources[0]
            main = Rating(item.prompt, answer, scores, item=item.id, source=source, **common)
        case "thumb":
            good = _choice(values, THUMB, ("up", "down")) == "up"
            answer, source = item.responses[0], item.sources[0]
            main = Thumb(item.prompt, answer, good, item=item.id, source=source, **common)
    if values:
        raise MisfitError(f"unexpected controls {sorted(values)} for a {item.kind}")
    return [main, *_correction(main, item, corrected)]


def _comparison(
    values: dict[str, Any], item: Item, order: Sequence[int], common: Mapping[str, Any]
) -> Comparison:
    said, strength = LEVELS[_choice(values, PREFERENCE, tuple(LEVELS))]
    swapped = tuple(order) == (1, 0)
    names: dict[str, Label] = {"a": "b", "b": "a"} if swapped else {"a": "a", "b": "b"}
    label: Label = names.get(said, "tie")
    return Comparison(
        item.prompt,
        item.responses[0],
        item.responses[1],
        label,
        strength=strength,
        swapped=swapped,
        pair=item.id,
        source_a=item.sources[0],
        source_b=item.sources[1],
        **common,
    )


def _ranking(
    values: dict[str, Any], item: Item, order: Sequence[int], common: Mapping[str, Any]
) -> Ranking:
    value = _value(values, RANK, "ranker")
    ranked = value.get("ranker")
    if isinstance(ranked, dict) and len(ranked) == 1:  # {"rank": [...]}: the single bucket
        (ranked,) = ranked.values()
    expected = [f"r{place}" for place in range(len(order))]
    if not isinstance(ranked, list) or sorted(map(str, ranked)) != sorted(expected):
        raise MisfitError(f"the ranking is {ranked!r}; expected each of {', '.join(expected)} once")
    places = [order[int(str(name)[1:])] for name in ranked]
    return Ranking(
        item.prompt, item.responses, tuple(places), item=item.id, sources=item.sources, **common
    )


def _correction(main: Judgement, item: Item, corrected: str) -> list[Correction]:
    """The rewritten answer, if any: of the answer preferred (a tie's first), or the only one."""
    if not corrected.strip():
        return []
    place = 1 if isinstance(main, Comparison) and main.label == "b" else 0
    if isinstance(main, Ranking):
        place = main.order[0]
    answer = item.responses[place]
    if corrected == answer:
        return []
    source = item.sources[place]
    return [
        Correction(item.prompt, answer, corrected, main.annotator, item.id, source, main.created_at)
    ]


def _by_control(result: Any) -> dict[str, Any]:
    if not isinstance(result, list) or not result:
        raise MisfitError(f"the result is {'empty' if result == [] else 'no list'}")
    found: dict[str, Any] = {}
    for entry in result:
        name = entry.get("from_name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not isinstance(entry.get("value"), dict):
            raise MisfitError(f"a result without control and value: {str(entry)[:120]}")
        if name in found:
            raise MisfitError(f"the control {name!r} answered twice")
        found[name] = entry
    return found


def _value(values: dict[str, Any], name: str, kind: str) -> dict[str, Any]:
    entry = values.pop(name, None)
    if entry is None:
        raise MisfitError(f"the control {name!r} was not answered")
    if entry.get("type") != kind:
        raise MisfitError(f"the control {name!r} has type {entry.get('type')!r}; expected {kind!r}")
    value: dict[str, Any] = entry["value"]
    return value


def _choice(values: dict[str, Any], name: str, known: Sequence[str]) -> str:
    chosen = _value(values, name, "choices").get("choices")
    if not isinstance(chosen, list) or len(chosen) != 1 or chosen[0] not in known:
        raise MisfitError(f"{name!r} is {chosen!r}; expected one of {', '.join(known)}")
    return str(chosen[0])


def _stars(values: dict[str, Any], aspect: str) -> int:
    stars = _value(values, aspect, "rating").get("rating")
    if isinstance(stars, bool) or not isinstance(stars, int) or stars not in RATING_SCALE:
        raise MisfitError(f"{aspect!r} is {stars!r}; expected a whole number from 1 to 7")
    return stars


def _text(entry: Any, name: str) -> str:
    if entry is None:
        return ""
    text = entry["value"].get("text")
    lines = [text] if isinstance(text, str) else text
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise MisfitError(f"{name!r} holds {str(text)[:80]!r}; expected text")
    return "\n".join(lines)


def _lead_time(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= LONGEST else None  # NaN is neither


def _time(value: Any) -> datetime:
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    try:
        found = datetime.fromisoformat(str(value))
    except ValueError as error:
        raise MisfitError(f"the time {value!r} cannot be read") from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)
