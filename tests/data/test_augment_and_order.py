"""Made rows under a curriculum and samplers: they have what their origins have."""

from __future__ import annotations

import json

import pytest

from align.config.sections import DataSection
from align.data import load_splits
from align.data.carried import take_out
from align.errors import DataError

TYPOS = [{"kind": "typos", "rate": 0.3, "seed": 1}]


@pytest.fixture
def path(tmp_path):
    rows = [
        {
            "prompt": f"Where is parcel number {n} of the order?",
            "completion": f"Parcel {n} is at the depot in the north.",
            "topic": "even" if n % 2 == 0 else "odd",
            "hardness": n,
        }
        for n in range(30)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def section(path, **keys) -> DataSection:
    return DataSection(train=str(path), validation_fraction=0.0, **keys)


def test_made_rows_have_the_columns_of_their_origins(path, tmp_path):
    order = {
        "curriculum": {"difficulty": "column", "column": "hardness"},
        "sampler": [{"by": "class", "column": "topic"}, {"by": "source"}],
    }
    aside = tmp_path / "run" / "quarantine.jsonl"
    splits = load_splits(section(path, augment=TYPOS, **order), "sft", quarantine=aside)
    parts, carried = take_out({"train": splits.train})
    train = parts["train"]
    assert train.column_names == ["prompt", "completion"]
    assert set(carried) == {"hardness", "topic", ""}
    assert len(train) > 50
    for row, hard, topic, source in zip(
        train, carried["hardness"], carried["topic"], carried[""], strict=True
    ):
        number = "".join(c for c in row["completion"] if c.isdigit())
        assert (number, source) == (str(hard), 0)
        assert topic == ("even" if hard % 2 == 0 else "odd")

    plain = load_splits(section(path, augment=TYPOS), "sft")
    assert train.to_list() == plain.train.to_list()  # an order changes no made row

    made = [json.loads(line) for line in (aside.parent / "augmented.jsonl").open()]
    assert {*made[0]} == {"prompt", "completion", "hardness", "topic", "lineage"}
    assert [row["hardness"] for row in made] == carried["hardness"][30:]


def test_rows_of_no_source_cannot_be_drawn_by_source(path, tmp_path):
    templates = tmp_path / "templates.json"
    templates.write_text(
        json.dumps(
            {
                "templates": [{"prompt": "Is {n} large?", "completion": "{n} is."}],
                "slots": {"n": ["7", "8", "9"]},
            }
        )
    )
    entry = {"kind": "templates", "path": str(templates), "count": 3}
    splits = load_splits(section(path, augment=[entry], sampler=[{"by": "source"}]), "sft")
    with pytest.raises(DataError, match="3 of 33 training rows come of no source"):
        take_out({"train": splits.train})
