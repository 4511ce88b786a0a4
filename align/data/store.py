"""Rows of what people said in a feedback store, and what of it they leave out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import make_url

from align.data.read import missing
from align.data.rows import Kind
from align.errors import DataError
from feedback.schema import Comparison, Judgement, Ranking, Rating, Thumb
from feedback.store import FeedbackStore
from reward.preferences import Preferences, preferences
from reward.training_rows import ranking_rows, regression_rows, unpaired_rows

if TYPE_CHECKING:
    from feedback.quality.soft import SoftMethod

# Judgements, and which stage reads them.
READ_BY: dict[type, tuple[str, str]] = {
    Comparison: ("comparisons", "`align dpo` and `align reward`, and `align kto` without thumbs"),
    Thumb: ("thumbs", "`align kto`"),
    Ranking: ("rankings", "`align reward` with objective.kind=rankings"),
    Rating: ("ratings", "`align reward` with objective.kind=ratings"),
}


@dataclass(frozen=True)
class StoreRows:
    """What a store's judgements became."""

    name: str  # the store's URL, without its password
    rows: list[dict[str, Any]]
    format: str
    ties: int
    contested: int
    unread: str | None  # judgements of other kinds, and what reads them


def store_rows(url: str, labels: SoftMethod, kind: Kind) -> StoreRows:
    """One row per ranking, rating or thumb where these are asked for, or one per pair.

    Args:
        url: the store's.
        labels: how votes on a pair become its label.
        kind: which rows a stage reads; unpaired ones are thumbs, or comparisons without any.

    Raises:
        DataError: there is no such store.
    """
    address = make_url(url)
    database = address.database
    if address.get_backend_name() == "sqlite" and database and not Path(database).is_file():
        raise DataError(missing(Path(database)))
    with FeedbackStore(url, create=False) as store:
        everything = store.judgements()
        thumbs = [j for j in everything if isinstance(j, Thumb)]
        pairs = any(isinstance(j, Comparison) for j in everything)
        read: type = Comparison
        if kind == "ranking":
            read = Ranking
            found = Preferences(_counted(ranking_rows(_only(Ranking, everything))))
        elif kind == "rating":
            read = Rating
            found = Preferences(regression_rows(_only(Rating, everything)))
        elif thumbs and (kind == "unpaired" or not pairs):
            read = Thumb
            found = Preferences(unpaired_rows(thumbs))
        elif labels == "majority":
            found = preferences(store.settled())  # adjudications in the place of the votes
        else:
            found = preferences(store.settled(), soft="column", labels=labels)
        format = {Ranking: "ranking", Rating: "rating", Thumb: "unpaired"}.get(read, "preference")
        unread = _unread(everything, read)
        return StoreRows(store.url, found.rows, format, found.ties, found.contested, unread)


def _only(kind: type, judgements: list[Judgement]) -> list[Any]:
    return [judgement for judgement in judgements if isinstance(judgement, kind)]


def _unread(judgements: list[Judgement], read: type) -> str | None:
    """Which judgements were not read, how many, and what reads them."""
    counts = Counter(type(judgement) for judgement in judgements)
    others = [
        f"{counts[kind]} {name} are not read here ({by} would)"
        for kind, (name, by) in READ_BY.items()
        if kind is not read and counts[kind]
    ]
    return "; ".join(others) or None


def _counted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row once, with the number of people who said it as its weight."""
    same: dict[str, dict[str, Any]] = {}
    for row in rows:
        kept = same.setdefault(repr(row), row | {"weight": 0.0})
        kept["weight"] += 1.0
    return list(same.values())
