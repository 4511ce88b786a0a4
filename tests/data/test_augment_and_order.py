"""Made rows under a curriculum and samplers: they have what their origins have."""

from __future__ import annotations

import json

import pytest

from align.config.sections import DataSection
from align.config.stages import SFTStage
from align.data import load_splits
from align.data.carried import take_out
from align.errors import ConfigError
from align.stages.order_checks import check_order

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


def test_rows_of_no_source_are_refused_where_columns_are_read(path):
    """Before the templates' file is looked for."""
    entries = [*TYPOS, {"kind": "templates", "path": "templates.yaml", "count": 3}]
    for order in (
        {"sampler": [{"by": "class", "column": "topic"}]},
        {"curriculum": {"difficulty": "column", "column": "hardness"}},
    ):
        config = SFTStage(
            model={"path": "x"}, data={"train": str(path), "augment": entries, **order}
        )
        with pytest.raises(ConfigError, match=r"data\.augment\.1: makes rows of no source"):
            check_order(config)
    by_length = {"train": str(path), "augment": entries, "curriculum": {"difficulty": "length"}}
    check_order(SFTStage(model={"path": "x"}, data=by_length))
