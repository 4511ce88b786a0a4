"""What people said, from a feedback file or store, as sets of graded answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.data.formats import FORMAT_FIELDS, RESERVED, WEIGHTS
from align.data.read import missing
from align.data.remote import STORE_URL
from align.errors import DataError
from align.evaluate.reward_sets import AnswerSet, Rated, gather_rated
from feedback.schema import (
    Comparison,
    Judgement,
    Ranking,
    Rating,
    Text,
    Thumb,
    item_id,
    pair_id,
)
from reward.functions import final
from reward.preferences import SOFT_LABEL, preferences
from reward.training_rows import ranking_rows, regression_rows, unpaired_rows

# Columns of feedback files that hold the judgement itself.
JUDGED = frozenset(
    [
        "adjudicated",
        "annotation",
        "annotator",
        "asked",
        "corrected",
        "created_at",
        "good",
        "input",
        "instruction",
        "item",
        "kind",
        "label",
        "lead_time",
        "order",
        "pair",
        "prompt_is_text",
        "reason",
        "response",
        "response1",
        "response2",
        "response_a",
        "response_b",
        "responses",
        "score",
        "scores",
        "source",
        "source_a",
        "source_b",
        "sources",
        "strength",
        "swapped",
        "updated_at",
    ]
)


@dataclass(frozen=True)
class Said:
    """A judgement with what its row or item says beside it."""

    judgement: Judgement
    category: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)  # for the reward function
    adjudicated: bool = False  # it settles what others disagreed on


def settled(said: Iterable[Said]) -> list[Said]:
    """An item that was adjudicated has its adjudications and no other vote.

    As `FeedbackStore.settled`, for judgements of any kind.
    """
    every = list(said)
    closed = {_item(one.judgement) for one in every if one.adjudicated}
    return [one for one in every if one.adjudicated or _item(one.judgement) not in closed]


def from_judgements(judged: Iterable[Said]) -> list[AnswerSet]:
    """Sets of judgements of any kind.

    Votes on a pair become one set, graded by the shares of the votes; several ratings of an answer
    their mean. Corrections are left out: what was wrong with an answer is no grade. What is said
    first of a pair or prompt gives its category and columns.
    """
    said = list(judged)
    about: dict[str, tuple[str, float, Mapping[str, Any]]] = {}
    for one in said:
        name, weight, columns = about.get(_key(one.judgement), ("", 1.0, {}))
        about[_key(one.judgement)] = (name or one.category, weight, columns or one.columns)
    every = [one.judgement for one in said]
    comparisons = [one for one in every if isinstance(one, Comparison)]
    sets = []
    for row in preferences(comparisons, soft="column").rows if comparisons else []:
        pair = pair_id(row["prompt"], final(row["chosen"]), final(row["rejected"]))
        share = row[SOFT_LABEL]
        answers = (row["chosen"], row["rejected"])
        found = AnswerSet(row["prompt"], answers, (share, 1 - share), soft=share)
        sets.append(found.about(*about[pair]))
    for one in said:
        if isinstance(one.judgement, Ranking):
            row = ranking_rows([one.judgement])[0]
            order = row["order"]
            grades = tuple(float(len(order) - 1 - order.index(i)) for i in range(len(order)))
            found = AnswerSet(row["prompt"], tuple(row["responses"]), grades)
            sets.append(found.about(one.category, 1.0, one.columns))
    ratings = regression_rows(one for one in every if isinstance(one, Rating))
    thumbs = unpaired_rows(one for one in every if isinstance(one, Thumb))
    for rows in (ratings, thumbs):
        rated = [
            Rated(row["prompt"], row["completion"], row.get("scores") or {"label": row["label"]})
            for row in rows
        ]
        sets += gather_rated(one.about(*about[_prompt_key(one.prompt)]) for one in rated)
    return sets


def from_store(url: str, category: str | None) -> tuple[list[AnswerSet], int]:
    """Sets of what stands in a feedback store, and the number of judgements read.

    Args:
        url: of the store.
        category: a further column of the items.

    Raises:
        DataError: there is no such database.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    from feedback.store import FeedbackStore

    where = url if STORE_URL.match(url) else f"sqlite:///{url}"
    try:
        address = make_url(where)
        file = address.database if address.get_backend_name() == "sqlite" else None
    except (ArgumentError, ValueError):
        file = None  # the store's own error hides a password
    if file and not Path(file).is_file():
        raise DataError(missing(Path(file)))
    with FeedbackStore(where, create=False) as store:
        columns = {item.id: item.columns for item in store.items()}
        said = [
            Said(one, _named(columns.get(_item(one), {}), category),
                 columns.get(_item(one), {}), adjudicated)
            for adjudicated in (False, True)
            for one in store.judgements(adjudicated=adjudicated)
        ]  # fmt: skip
    said = settled(said)
    return from_judgements(said), len(said)


def beside(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a feedback file's row that are no part of the judgement: for the reward."""
    if "result" in raw:  # an annotation of Label Studio, whose columns are all its own
        return {}
    own = (*FORMAT_FIELDS, *RESERVED, *WEIGHTS, *JUDGED)
    return {
        name: value
        for name, value in raw.items()
        if name not in own and not (name.startswith("annotator") and name[9:].isdigit())
    }


def shown_source(path: str) -> str:
    """A source as messages may show it: a store's URL without its password."""
    if not STORE_URL.match(path):
        return path
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    from feedback.connect import shown

    try:
        return shown(make_url(path))
    except (ArgumentError, ValueError):
        return "the feedback store"


def _named(columns: Mapping[str, Any], category: str | None) -> str:
    found = columns.get(category) if category is not None else None
    return "" if found is None else str(found)


def _item(judgement: Judgement) -> str:
    """The id of what a judgement speaks of."""
    if isinstance(judgement, Comparison):
        answers = (judgement.response_a, judgement.response_b)
        return judgement.pair or pair_id(judgement.prompt, *answers)
    if judgement.item:
        return judgement.item
    kind, prompt = type(judgement).__name__.lower(), judgement.prompt
    texts = judgement.responses if isinstance(judgement, Ranking) else [judgement.response]
    return item_id(kind, prompt, texts)  # type: ignore[arg-type]


def _key(judgement: Judgement) -> str:
    """What a category belongs to: a pair, or else a prompt."""
    if isinstance(judgement, Comparison):
        return pair_id(judgement.prompt, judgement.response_a, judgement.response_b)
    return _prompt_key(judgement.prompt)


def _prompt_key(prompt: Text) -> str:
    return json.dumps(prompt, sort_keys=True)
