"""Values as the store's rows hold them, and back."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from feedback.errors import DataError
from feedback.schema import Comparison, Label, Pair, Text, pair_id

FLIPPED: dict[Label, Label] = {"a": "b", "b": "a", "tie": "tie"}


def display_order(pair: str, seed: int) -> bool:
    """Whether `response_b` is shown first: a fair coin that only pair id and seed decide."""
    return random.Random(f"{seed}:{pair}").random() < 0.5


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
    if response_a == response_b:
        short = response_a if len(response_a) <= 80 else response_a[:80] + "..."
        raise DataError(
            f"a pair needs two different answers, but both are {short!r} "
            f"(to {str(prompt)[:80]!r}). Fix: leave such pairs out."
        )
    try:
        name = pair_id(prompt, response_a, response_b)
    except (UnicodeEncodeError, TypeError) as error:
        raise DataError(
            f"a pair's text cannot be stored: {error} (prompt {str(prompt)[:80]!r})."
        ) from error
    return Pair(
        name,
        prompt,
        response_a,
        response_b,
        source_a,
        source_b,
        dict(columns),
        seed,
        display_order(name, seed),
        round,
    )


def judgement_of(comparison: Comparison, turned: bool) -> dict[str, Any]:
    """The judgement in the order of the stored pair; `turned` says that it came the other way.

    Raises:
        DataError: the label is none of a, b and tie.
    """
    if comparison.label not in FLIPPED:
        raise DataError(
            f"a comparison by {comparison.annotator!r} has the label {comparison.label!r}; "
            "expected 'a', 'b' or 'tie'."
        )
    return {
        "label": FLIPPED[comparison.label] if turned else comparison.label,
        "strength": comparison.strength,
        "swapped": comparison.swapped != turned,
        "lead_time": comparison.lead_time,
        "reason": comparison.reason,
    }


def comparison_of(row: Mapping[str, Any]) -> Comparison:
    """A comparison from an event's row joined with its pair's."""
    kept = ("prompt", "response_a", "response_b", "source_a", "source_b", "annotator", "pair")
    values = {key: row[key] for key in kept} | row["judgement"]
    return Comparison(**values, created_at=row["created_at"])


def pair_of(row: Mapping[str, Any]) -> Pair:
    """A pair from its row."""
    return Pair(**{key: value for key, value in row.items() if key != "position"})
