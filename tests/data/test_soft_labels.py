"""Soft labels from a store and from files: read, checked, kept apart from margins, deduplicated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.config.sections import DataSection
from align.data import load_splits
from align.errors import ConfigError, DataError
from feedback.schema import Comparison
from feedback.store import FeedbackStore


def row(name: str, label: float | str | None = None, **more: Any) -> dict[str, Any]:
    made = {"prompt": name, "chosen": "yes", "rejected": "no"} | more
    return made if label is None else made | {"soft_label": label}


def write(folder: Path, *rows: dict[str, Any]) -> str:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in rows))
    return str(path)


def load(path: str, kind: Any = "preference", **options: Any) -> Any:
    section = DataSection.model_validate({"train": path, "validation_fraction": 0.0} | options)
    return load_splits(section, kind)


@pytest.fixture
def store(tmp_path) -> str:
    """Three people on four pairs: 2 to 1, unanimous, a tie, and one with equal answers."""
    url = f"sqlite:///{tmp_path / 'feedback.db'}"
    said = {"q1": "aab", "q2": "bbb", "q3": "abt", "q4": "ttt"}
    words = {"a": "a", "b": "b", "t": "tie"}
    with FeedbackStore(url) as opened:
        for prompt, votes in said.items():
            for person, vote in zip(("ann", "ben", "cem"), votes, strict=True):
                other = "x " if prompt == "q4" else "y"  # the same but for a space
                opened.add_comparison(Comparison(prompt, "x", other, words[vote], person))  # type: ignore[arg-type]
    return url


def test_majority_is_the_default_and_has_no_column(store):
    found = load(store)
    assert found.train.column_names == ["prompt", "chosen", "rejected"]
    assert (len(found.train), found.card.ties, found.card.contested) == (2, 2, 2)


@pytest.mark.parametrize("labels", ["votes", "dawid-skene"])
def test_a_store_gives_soft_labels_and_keeps_ties(store, labels):
    found = load(store, labels=labels)
    rows = {item["prompt"]: item for item in found.train}
    assert list(rows) == ["q1", "q2", "q3"]  # equal answers cannot be told apart
    assert rows["q2"]["chosen"] == "y"
    if labels == "votes":
        assert [item["soft_label"] for item in rows.values()] == pytest.approx([2 / 3, 1.0, 0.5])
    else:
        assert 0.5 < rows["q1"]["soft_label"] < rows["q2"]["soft_label"] <= 1
        assert abs(rows["q1"]["soft_label"] - 2 / 3) > 0.01  # who voted counts
    assert found.card.ties == 2
    assert found.card.options["labels"] == labels


def test_files_of_either_kind_have_their_column_read(tmp_path):
    rows = [row("p", 0.8), row("q", 0.5), row("r")]
    files = [write(tmp_path, *rows), str(tmp_path / "pairs.parquet")]
    pq.write_table(pa.Table.from_pylist(rows), files[1])
    for path in files:
        found = load(path).train
        assert found["soft_label"][:] == [0.8, 0.5, 1.0]  # none is certainty


def test_a_label_below_one_half_turns_the_row(tmp_path):
    path = write(tmp_path, row("p", 0.25), row("q", 0.75))
    (first, second) = load(path).train
    assert (first["chosen"], first["rejected"], first["soft_label"]) == ("no", "yes", 0.75)
    assert (second["chosen"], second["rejected"], second["soft_label"]) == ("yes", "no", 0.75)
    assert [item["completion"] for item in load(path, "sft").train] == ["no", "yes"]


@pytest.mark.parametrize("label", [1.2, -0.1, "much", float("nan")])
def test_what_is_no_probability_is_a_bad_row(label, tmp_path):
    with pytest.raises(DataError, match="soft_label"):
        load(write(tmp_path, row("p", label)))


def test_repeats_go_and_two_opinions_of_one_pair_stay(tmp_path):
    path = write(tmp_path, row("p", 0.9), row("p", 0.9), row("P ", 0.6))
    assert load(path).train["soft_label"][:] == [0.9, 0.6]
    assert load(path, deduplicate="none").train["soft_label"][:] == [0.9, 0.9, 0.6]


def test_deduplication_leaves_a_stores_labels_alone(store):
    by_mode = [
        {item["prompt"]: item["soft_label"] for item in load(store, labels="votes", **mode).train}
        for mode in ({"deduplicate": "none"}, {"deduplicate": "exact"})
    ]
    assert by_mode[0] == by_mode[1]


def test_margins_beside_soft_labels_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"pairs.jsonl:1 has a margin and .*:2 a soft_label"):
        load(write(tmp_path, row("p", margin=1.0), row("q", 0.7)))


def test_labels_without_a_use_are_refused(tmp_path, store):
    path = write(tmp_path, row("p"))
    with pytest.raises(ConfigError, match=r"data\.labels: votes: .*no source of data is a store"):
        load(path, labels="votes")
    with pytest.raises(ConfigError, match="compare two answers"):
        load(store, "sft", labels="votes")
    with pytest.raises(ValueError, match="labels"):
        DataSection.model_validate({"train": path, "labels": "mean"})
