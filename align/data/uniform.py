"""What all rows of a stage must have in common, since a column has one type and one meaning."""

from __future__ import annotations

from collections.abc import Sequence

from align.data.rows import Row, Values
from align.errors import DataError
from reward.preferences import SOFT_LABEL

LAYOUTS = {
    "text": "text without a prompt",
    "plain": "plain text",
    "conversation": "a conversation",
}


def check_layout(rows: Sequence[Row]) -> str:
    """text, plain or conversation: the same in every row, since a column has one type."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(_layout(row.values), row)
    if len(first) > 1:
        (one, a), (two, b) = list(first.items())[:2]
        raise DataError(
            f"{a.where} is {LAYOUTS[one]}, but {b.where} is {LAYOUTS[two]}; a dataset holds one or "
            "the other. Fix: write both alike; data.system_prompt turns plain prompts into "
            "conversations."
        )
    return next(iter(first), "")


def check_one_strength(rows: Sequence[Row]) -> None:
    """Refuse margins beside soft labels: two ways of saying how far apart answers are."""
    found = {name: row for row in rows for name in ("margin", SOFT_LABEL) if name in row.values}
    if len(found) == 2:
        raise DataError(
            f"{found['margin'].where} has a margin and {found[SOFT_LABEL].where} a soft_label; a "
            "reward model reads one or the other. Fix: leave one column out, or read the store "
            "with data.labels=majority."
        )


def _layout(values: Values) -> str:
    if "text" in values and "prompt" not in values:
        return "text"
    return "plain" if isinstance(values["prompt"], str) else "conversation"
