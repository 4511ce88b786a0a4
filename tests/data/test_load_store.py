"""`load_splits` on a feedback store: what people said, as rows."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from align.config.sections import DataSection
from align.data import load_splits
from align.errors import DataError
from feedback.schema import Comparison, Ranking, Rating, Thumb
from feedback.store import FeedbackStore


def section(train: Any) -> DataSection:
    return DataSection(train=train, validation_fraction=0.0, deduplicate="none")


def compare(prompt: str, label: str, annotator: str) -> Comparison:
    return Comparison(
        prompt, "yes", "no", label, annotator, created_at=datetime(2026, 1, 1, tzinfo=UTC)
    )


def test_comparisons_become_preferences(tmp_path):
    url = f"sqlite:///{tmp_path / 'feedback.db'}"
    with FeedbackStore(url) as store:
        for annotator, label in zip("xyz", ("b", "b", "a"), strict=True):
            store.add_comparison(compare("q1", label, annotator))
        store.add_comparison(compare("q2", "a", "x"))
        store.add_comparison(compare("q3", "tie", "x"))
    splits = load_splits(section(url), "preference")
    rows = {row["prompt"]: (row["chosen"], row["rejected"]) for row in splits.train}
    assert rows == {"q1": ("no", "yes"), "q2": ("yes", "no")}
    assert (splits.card.ties, splits.card.contested) == (1, 1)
    assert splits.card.sources[0].format == "preference"
    file = {"path": str(tmp_path / "feedback.db"), "format": "store"}
    prompts = load_splits(section(file), "prompts").train
    assert sorted(prompts["prompt"]) == ["q1", "q2"]


def test_only_ties(tmp_path):
    url = f"sqlite:///{tmp_path / 'feedback.db'}"
    with FeedbackStore(url) as store:
        store.add_comparison(compare("q", "tie", "x"))
    with pytest.raises(DataError, match=r"holds no rows \(1 pairs are ties\)"):
        load_splits(section(url), "preference")


def test_what_a_store_holds_beside_is_named(tmp_path):
    url = f"sqlite:///{tmp_path / 'feedback.db'}"
    with FeedbackStore(url) as store:
        store.add_comparison(compare("q1", "a", "x"))
        store.add_judgements([Thumb("q2", "yes", True, "x"), Thumb("q3", "no", False, "x")])
    thumbs = load_splits(section(url), "unpaired")
    assert sorted(thumbs.train["prompt"]) == ["q2", "q3"]
    said = "1 comparisons are not read here (`align dpo` and `align reward`"
    assert any(said in warning for warning in thumbs.card.warnings)
    pairs = load_splits(section(url), "preference")
    assert pairs.train["prompt"] == ["q1"]
    said = "2 thumbs are not read here (`align kto` would)"
    assert any(said in warning for warning in pairs.card.warnings)


def test_rankings_and_ratings_are_named_where_nothing_else_is_there(tmp_path):
    url = f"sqlite:///{tmp_path / 'feedback.db'}"
    ranking = Ranking("q", ("yes", "no", "so"), (0, 1, 2), "x")
    with FeedbackStore(url) as store:
        store.add_judgements([ranking, Rating("q", "yes", {"tone": 3}, "x")])
    with pytest.raises(
        DataError, match=r"no rows \(1 rankings are not read here .*=rankings.*1 rat"
    ):
        load_splits(section(url), "preference")
    assert load_splits(section(url), "ranking").train["prompt"] == ["q"]
