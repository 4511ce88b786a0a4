"""What a person who judges the quickstart is asked, and when the labels suffice to go on.

Stages keep some prompts for validation, by a hash. A few labels in the order of issue may hold none
of them, and the run would fail after the person's work; so held-out questions come at regular
places, and the run waits until both sides have labels that decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from align.data import prompt_key
from align.data.split import split_of
from feedback.schema import Comparison, Item, Text

HOLDOUT = 0.15  # of the pairs, by prompt; the stages' configs hold the same number
EVERY = 5  # one question in so many is a held-out one, as long as there are any
LEAST_DECIDED = 2  # labels other than ties that each side needs
LEAST_LABELS = LEAST_DECIDED * EVERY  # so many questions hold LEAST_DECIDED held-out ones
MARK = "of-a-person"  # in a server's folder: labels in it may be nowhere else


def held_out(prompt: Text) -> bool:
    """Whether the stages keep this prompt for validation (they split by the same hash)."""
    return split_of(prompt_key(prompt), HOLDOUT, 0.0, 0) == "validation"


def asking_order(items: Sequence[Item]) -> list[Item]:
    """The items in the order in which a person gets them: every fifth is held out, at first."""
    sides: dict[bool, list[Item]] = {True: [], False: []}
    for item in items:
        sides[held_out(item.prompt)].append(item)
    kept, rest = iter(sides[True]), iter(sides[False])
    order: list[Item] = []
    while len(order) < len(items):
        first, second = (kept, rest) if len(order) % EVERY == EVERY - 1 else (rest, kept)
        order.append(next(chain(first, second)))
    return order


def lacking(comparisons: Iterable[Comparison], enough: int) -> str:
    """What labels are missing before the run can go on, in words; empty where they suffice."""
    said = list(comparisons)
    if len(said) < enough:
        return f"{enough - len(said)} more labels"
    decided = [held_out(one.prompt) for one in said if one.label != "tie"]
    for side, name in ((True, "held-out questions"), (False, "questions to train on")):
        missing = LEAST_DECIDED - decided.count(side)
        if missing > 0:
            return f"{missing} more labels of {name} that are not ties"
    return ""


def belongs_to_person(folder: Path) -> bool:
    """Whether the server in a seed's folder was one that a person labels at."""
    return (folder / "label-studio" / MARK).is_file()
