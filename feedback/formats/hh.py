"""HH: `chosen` and `rejected`, two raw Human/Assistant dialogues that share a beginning.

Each row is one person's choice. HH does not say which answer was shown first: `swapped` is False
and means nothing, so position bias cannot be read from it.
"""

from __future__ import annotations

from collections.abc import Iterator

from feedback.conversation import split_last
from feedback.dialogue import RowProblem
from feedback.formats.found import Found, check_storable
from feedback.formats.result import Values
from feedback.formats.text import (
    different,
    read_annotator,
    read_dialogue,
    read_extras,
)
from feedback.schema import Comparison, pair_id


def parse(row: Values) -> Iterator[Found]:
    """One comparison; `response_a` is the chosen answer.

    Raises:
        RowProblem: a dialogue is none, the two differ before the last answer, or not at all.
    """
    check_storable(row)
    prompt, chosen = split_last(read_dialogue(row, "chosen"), "chosen")
    other, rejected = split_last(read_dialogue(row, "rejected"), "rejected")
    if prompt != other:
        raise RowProblem(
            "chosen and rejected answer different prompts",
            "they may differ only in the assistant's last message",
        )
    different(chosen, rejected, "chosen and rejected")
    extras = read_extras(row)
    judgement = Comparison(
        prompt,
        chosen,
        rejected,
        "a",
        read_annotator(row),
        pair=pair_id(prompt, chosen, rejected),
        **extras,
    )
    yield Found(judgement, row, dated="created_at" in extras)
