"""The parts of the training benchmarks that decide their figures; the runs take half an hour."""

from __future__ import annotations

import gzip
import json

import pytest

from align.engine import prefix
from benchmarks import batches, sft
from benchmarks.training import (
    check_losses,
    figures_of,
    hh_pairs,
    made_pairs,
    measure,
    prepare,
    word_tokenizer,
)


def found(losses, seconds=1.0, **more):
    return {"losses": losses, "seconds": seconds, "peak_mb": 100.0, "tokens": 500} | more


def test_losses_that_differ_are_refused():
    same = [(found([1.0, 2.0]), found([1.0, 2.00001]))]
    assert check_losses(same) == pytest.approx(5e-6, rel=1e-3)
    with pytest.raises(RuntimeError, match=r"step 2: our loss is 2.0 and the peer's 2.01"):
        check_losses([(found([1.0, 2.0]), found([1.0, 2.01]))])


def test_figures_hold_the_ratio_and_what_tokens_would_allow():
    figures = figures_of([(found([1.0], 2.0, padded_over_unique=4.0), found([1.0], 6.0))])
    assert (figures["ratio"], figures["padded_over_unique"]) == (3.0, 4.0)
    assert sft.a_token(found([], 3.0))["seconds"] == 6.0


def test_rows_have_the_tokens_that_are_asked_for(tmp_path):
    tokenizer, rows = word_tokenizer(), made_pairs(20, 5, 3)
    assert [len(tokenizer(row["prompt"])["input_ids"]) for row in rows] == [20] * 3
    assert {
        len(tokenizer(row[k])["input_ids"]) for row in rows for k in ("chosen", "rejected")
    } == {5}
    dialogues = [
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: x\n\nAssistant: c"},
    ]
    with gzip.open(tmp_path / "hh.gz", "wt") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in dialogues)
    (pair,) = hh_pairs(tmp_path / "hh.gz")
    assert pair == {"prompt": "\n\nHuman: a\n\nAssistant:", "chosen": " b", "rejected": " c"}


def test_pairs_of_one_prompt_stand_together():
    prompts = [row["prompt"] for row in made_pairs(20, 5, 6, each=3)]
    assert prompts[:3] == prompts[:1] * 3
    assert prompts[3:] == prompts[3:4] * 3
    assert prompts[0] != prompts[3]


def test_grouped_batches_compute_fewer_of_the_same_tokens(tmp_path, small, monkeypatch):
    monkeypatch.setattr(prefix, "counted_costs", lambda _: None)  # share, as larger models would
    prepare(tmp_path / "made", small, made_pairs(20, 5, 32, each=4), words=True)
    args = {"per_device_train_batch_size": 4, "learning_rate": 1e-3}
    job = {"steps": 8, "threads": 1, "reference": True, "args": args}
    grouped, chance = (measure("DPO", side, tmp_path / "made", job) for side in batches.SIDES)
    found = batches.tokens_of([(grouped, chance)])
    # 4 pairs of 26 and 26 tokens a batch, policy and reference: 20 shared once, or by pair
    assert found["tokens"]["grouped"] == {"real_tokens": 3328, "computed_tokens": 1088}
    assert 1.2 < found["tokens_ratio"] <= 2048 / 1088
    with pytest.raises(RuntimeError, match="real tokens differ: 3328 grouped, 3327 at random"):
        batches.tokens_of([(grouped, chance | {"real_tokens": 3327})])


def test_both_sides_train_alike(tmp_path, small):
    prepare(tmp_path / "made", small, made_pairs(20, 5, 8), words=True)
    args = {"per_device_train_batch_size": 2, "learning_rate": 1e-3}
    job = {"steps": 2, "threads": 1, "reference": True, "args": args}
    ours, peer = (measure("DPO", side, tmp_path / "made", job) for side in ("ours", "trl"))
    assert check_losses([(ours, peer)]) < 1e-5
    assert ours["tokens"] == peer["tokens"] == 2 * 2 * 26
    assert ours["padded_over_unique"] >= 1.0
    assert 0 < ours["choosing"] < 0.5
    assert "choosing" not in peer
