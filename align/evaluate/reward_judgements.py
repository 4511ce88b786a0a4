"""What people said, from a feedback file or store, as sets of graded answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

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
    pair_id,
)
from reward.functions import final
from reward.preferences import SOFT_LABEL, preferences
from reward.training_rows import ranking_rows, regression_rows, unpaired_rows


def from_judgements(judged: Iterable[tuple[Judgement, str]]) -> list[AnswerSet]:
    """Sets of judgements of any kind.

    Votes on a pair become one set, graded by the shares of the votes; several ratings of an answer
    their mean. Corrections are left out: what was wrong with an answer is no grade.

    Args:
        judged: judgements, each with the category of what it speaks of, or "".
    """
    said = list(judged)
    category = {_key(one): name for one, name in said if name}
    comparisons = [one for one, _ in said if isinstance(one, Comparison)]
    sets = []
    votes = preferences(comparisons, soft="column").rows if comparisons else []
    for row in votes:
        pair = pair_id(row["prompt"], final(row["chosen"]), final(row["rejected"]))
        share = row[SOFT_LABEL]
        sets.append(
            AnswerSet(
                row["prompt"],
                (row["chosen"], row["rejected"]),
                (share, 1 - share),
                category.get(pair, ""),
                soft=share,
            )
        )
    for ranking in (one for one, _ in said if isinstance(one, Ranking)):
        row = ranking_rows([ranking])[0]
        order = row["order"]
        sets.append(
            AnswerSet(
                row["prompt"],
                tuple(row["responses"]),
                tuple(float(len(order) - 1 - order.index(i)) for i in range(len(order))),
                category.get(_key(ranking), ""),
            )
        )
    rated = [
        Rated(
            row["prompt"],
            row["completion"],
            sum(row["scores"].values()) / len(row["scores"]),
            category.get(_prompt_key(row["prompt"]), ""),
        )
        for row in regression_rows(one for one, _ in said if isinstance(one, Rating))
    ]
    sets += gather_rated(rated)
    thumbs = [
        Rated(
            row["prompt"],
            row["completion"],
            float(row["label"]),
            category.get(_prompt_key(row["prompt"]), ""),
        )
        for row in unpaired_rows(one for one, _ in said if isinstance(one, Thumb))
    ]
    return sets + gather_rated(thumbs)


def from_store(url: str, category: str | None) -> tuple[list[AnswerSet], int]:
    """Sets of what stands in a feedback store, and the number of judgements read.

    Args:
        url: of the store.
        category: a further column of the items.

    Raises:
        DataError: there is no such database.
    """
    from sqlalchemy.engine import make_url

    from feedback.store import FeedbackStore

    where = url if STORE_URL.match(url) else f"sqlite:///{url}"
    address = make_url(where)
    file = address.database
    if address.get_backend_name() == "sqlite" and file and not Path(file).is_file():
        raise DataError(missing(Path(file)))
    with FeedbackStore(where, create=False) as store:
        others = [one for one in store.judgements() if not isinstance(one, Comparison)]
        said: list[Judgement] = [*store.settled(), *others]
        columns = {item.id: item.columns for item in store.items()}
    return from_judgements([(one, _named(one, columns, category)) for one in said]), len(said)


def _named(
    judgement: Judgement, columns: Mapping[str, Mapping[str, Any]], category: str | None
) -> str:
    item = judgement.pair if isinstance(judgement, Comparison) else judgement.item
    found = columns.get(item, {}).get(category) if category is not None else None
    return "" if found is None else str(found)


def _key(judgement: Judgement) -> str:
    """What a category belongs to: a pair, or else a prompt."""
    if isinstance(judgement, Comparison):
        return pair_id(judgement.prompt, judgement.response_a, judgement.response_b)
    return _prompt_key(judgement.prompt)


def _prompt_key(prompt: Text) -> str:
    return json.dumps(prompt, sort_keys=True)
