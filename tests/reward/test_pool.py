"""Scoring from Parquet to Parquet: the rewards of the model, whatever the way there."""

from __future__ import annotations

import gzip
import json
import random
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from feedback.errors import DataError
from reward import pool, pool_parts
from reward.errors import RewardError
from reward.model import Normalisation, RewardModel
from reward.pool import score_parquet


@pytest.fixture(scope="module")
def build(tiny_tokenizer):
    """`build(seed=0, **config)`: a tiny reward model with statistics."""

    def make(seed=0, **changes):
        settings = {
            "vocab_size": len(tiny_tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "pad_token_id": tiny_tokenizer.pad_token_id,
            "num_labels": 1,
            "initializer_range": 0.3,
        }
        torch.manual_seed(seed)
        model = LlamaForSequenceClassification(LlamaConfig(**settings | changes)).eval()
        return RewardModel(model, tiny_tokenizer, Normalisation(0.5, 2.0, 10), "tiny")

    return make


@pytest.fixture(scope="module")
def model(build):
    return build()


QUESTIONS = ["Where is my parcel, please?", "Please send it to my office before noon.", "Hi"]
ANSWERS = ["Here.", "Here it is.", "No!", "", "I cannot log in."]


def texts(count=11):
    return [
        {"prompt": QUESTIONS[i % 3], "completion": ANSWERS[i % 5] + "!" * (i % 2), "id": i}
        for i in range(count)
    ]


def said(role, text):
    return [{"role": role, "content": text}]


def write(path, rows, **options):
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def rows_of(path):
    return pq.read_table(path).to_pylist()


def near(found, wanted):
    return found == pytest.approx(wanted, abs=1e-5)


def test_text(model, tmp_path):
    rows = texts()
    source = write(tmp_path / "in.parquet", rows)
    done = score_parquet(model, source, tmp_path / "out.parquet", chunk_rows=4)
    assert (done.rows, done.answers, done.empty, done.resumed) == (11, 11, 0, 0)
    found = rows_of(tmp_path / "out.parquet")
    wanted = model([r["prompt"] for r in rows], [r["completion"] for r in rows])
    assert near([row.pop("reward") for row in found], wanted)
    assert max(wanted) - min(wanted) > 0.1
    assert found == rows
    assert {path.name for path in tmp_path.iterdir()} == {"in.parquet", "out.parquet"}


def test_lists_of_answers_to_conversations(model, tmp_path):
    rows = [
        {"prompt": said("user", q), "completions": [said("assistant", a) for a in ANSWERS[:n]]}
        for q, n in zip(QUESTIONS, (3, 0, 5), strict=True)
    ]
    rows.append({"prompt": said("user", "Hm?"), "completions": None})
    source = write(tmp_path / "in.parquet", rows)
    done = score_parquet(model, source, tmp_path / "out.parquet")
    assert (done.rows, done.answers) == (4, 8)
    found = [row["reward"] for row in rows_of(tmp_path / "out.parquet")]
    for row, rewards in zip(rows[:3], found, strict=False):
        count = len(row["completions"])
        assert near(rewards, model([row["prompt"]] * count, row["completions"]))
    assert found[3] is None


@pytest.mark.parametrize("prompt", [True, False])
def test_pairs(model, tmp_path, prompt):
    rows = [
        {
            "chosen": ANSWERS[i % 5] if prompt else QUESTIONS[i % 3] + ANSWERS[i % 5],
            "rejected": ANSWERS[i % 4] if prompt else QUESTIONS[i % 3] + ANSWERS[i % 4],
        }
        | ({"prompt": QUESTIONS[i % 3]} if prompt else {})
        for i in range(7)
    ]
    source = write(tmp_path / "in.parquet", rows)
    score_parquet(model, source, tmp_path / "out.parquet", chunk_rows=3)
    found = rows_of(tmp_path / "out.parquet")
    for side in ("chosen", "rejected"):
        wanted = model([row.get("prompt", "") for row in rows], [row[side] for row in rows])
        assert near([row[f"reward_{side}"] for row in found], wanted)


def test_what_cannot_be_read_gets_no_reward(model, tmp_path):
    rows = texts(4)
    rows[1]["completion"] = None
    rows[2]["completion"] = "a b c d " * 100
    source = write(tmp_path / "in.parquet", rows)
    done = score_parquet(model, source, tmp_path / "out.parquet")
    found = [row["reward"] for row in rows_of(tmp_path / "out.parquet")]
    assert [value is None for value in found] == [False, True, True, False]
    assert done.empty == 2


def test_several_heads_give_mean_and_deviation(build, tmp_path):
    model = build(num_labels=3)
    source = write(tmp_path / "in.parquet", texts(5))
    score_parquet(model, source, tmp_path / "out.parquet")
    model.normalisation = None
    for row in rows_of(tmp_path / "out.parquet"):
        ids = model.tokenizer(row["prompt"] + row["completion"] + model.tokenizer.eos_token)
        with torch.no_grad():
            heads = model.model(input_ids=torch.tensor([ids["input_ids"]])).logits[0]
        assert row["reward"] == pytest.approx((heads.mean().item() - 0.5) / 2, abs=1e-5)
        assert row["reward_std"] == pytest.approx(heads.std(unbiased=False).item() / 2, abs=1e-5)


@pytest.mark.parametrize("kind", ["packed", "eager"])
def test_scores_do_not_depend_on_order_batch_grouping_or_padding_side(build, tmp_path, kind):
    model = build(attn_implementation="eager") if kind == "eager" else build()
    rows = texts(15)
    wanted = {}
    for row in rows:  # each alone through the plain model
        ids = model.tokenizer(row["prompt"] + row["completion"] + model.tokenizer.eos_token)
        with torch.no_grad():
            raw = model.model(input_ids=torch.tensor([ids["input_ids"]])).logits.item()
        wanted[row["id"]] = (raw - 0.5) / 2
    for seed, (budget, chunk, side) in enumerate(
        [(1, 1, "left"), (50, 4, "right"), (200, 15, "left"), (9999, 7, "right")]
    ):
        model.tokenizer.padding_side = side
        shuffled = random.Random(seed).sample(rows, len(rows))
        source = write(tmp_path / f"in{seed}.parquet", shuffled)
        target = tmp_path / f"out{seed}.parquet"
        score_parquet(model, source, target, batch_tokens=budget, chunk_rows=chunk)
        for row in rows_of(target):
            assert row["reward"] == pytest.approx(wanted[row["id"]], abs=1e-5)


def test_json_lines_and_folders_give_what_parquet_gives(model, tmp_path):
    rows = texts(9)
    rows[4]["note"] = 1.5  # only later lines have it
    source = write(tmp_path / "in.parquet", [{"note": None} | row for row in rows])
    score_parquet(model, source, tmp_path / "wanted.parquet")
    wanted = rows_of(tmp_path / "wanted.parquet")
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "in.jsonl").write_text(lines + "\n")
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    folder = tmp_path / "folder"
    folder.mkdir()
    table = pq.read_table(source)
    for number, (first, count) in enumerate([(0, 5), (5, 1), (6, 3)]):
        pq.write_table(table.slice(first, count), folder / f"{number}.parquet", row_group_size=2)
    for name in ("in.jsonl", "in.jsonl.gz", "folder"):
        target = tmp_path / f"{name}.out.parquet"
        score_parquet(model, tmp_path / name, target, chunk_rows=2)
        found = rows_of(target)
        assert [row["id"] for row in found] == list(range(9))
        assert [row["note"] for row in found] == [None] * 4 + [1.5] + [None] * 4
        assert near([r["reward"] for r in found], [r["reward"] for r in wanted])


class Enough(Exception):  # noqa: N818 - what a person does
    pass


def stop_after(parts):
    def progress(at):
        if at.rows - at.resumed >= parts * 3:
            raise Enough

    return progress


@pytest.mark.parametrize("damage", ["cut", "short"])
def test_a_run_that_was_stopped_goes_on_where_it_was(model, tmp_path, damage):
    source, target = write(tmp_path / "in.parquet", texts()), tmp_path / "out.parquet"
    with pytest.raises(Enough):
        score_parquet(model, source, target, chunk_rows=3, progress=stop_after(2))
    assert not target.exists()
    with pytest.raises(DataError, match="begun and not finished"):
        score_parquet(model, source, target, chunk_rows=3)
    damaged = pool_parts.parts_folder(target) / "part-0000001.parquet"
    whole = damaged.read_bytes()
    if damage == "cut":
        damaged.write_bytes(whole[: len(whole) // 2])
    else:
        pq.write_table(pq.read_table(damaged).slice(0, 2), damaged)
    done = score_parquet(model, source, target, chunk_rows=3, resume=True)
    assert (done.resumed, done.answers, done.rows) == (3, 8, 11)
    assert [row["id"] for row in rows_of(target)] == list(range(11))
    again = score_parquet(model, source, target, chunk_rows=3, resume=True)
    assert (again.answers, again.resumed) == (0, 11)
    with pytest.raises(DataError, match=r"out\.parquet exists"):
        score_parquet(model, source, target, chunk_rows=3)


def test_a_target_of_something_else_is_refused(model, build, tmp_path):
    source, target = write(tmp_path / "in.parquet", texts()), tmp_path / "out.parquet"
    with pytest.raises(Enough):
        score_parquet(model, source, target, chunk_rows=3, progress=stop_after(1))
    changed = write(tmp_path / "other.parquet", list(reversed(texts())))
    with pytest.raises(DataError, match="begun with another source"):
        score_parquet(model, changed, target, chunk_rows=3, resume=True)
    with pytest.raises(DataError, match="begun with another model"):
        score_parquet(build(seed=1), source, target, chunk_rows=3, resume=True)
    with pytest.raises(DataError, match="begun with another chunk_rows"):
        score_parquet(model, source, target, chunk_rows=4, resume=True)
    raw = RewardModel(model.model, model.tokenizer, None, "raw")
    with pytest.raises(DataError, match="begun with another model"):
        score_parquet(raw, source, target, chunk_rows=3, resume=True)
    score_parquet(model, source, target, chunk_rows=3, resume=True)
    with pytest.raises(DataError, match="begun with another source"):
        score_parquet(model, changed, target, chunk_rows=3, resume=True)
    score_parquet(model, changed, target, chunk_rows=3, overwrite=True)
    assert [row["id"] for row in rows_of(target)] == list(range(10, -1, -1))
    stranger = write(tmp_path / "stranger.parquet", texts(2))
    with pytest.raises(DataError, match="begun with another source and model"):
        score_parquet(model, source, stranger, resume=True)
    assert rows_of(stranger) == texts(2)


def test_a_run_that_overwrites_leaves_the_old_file_until_its_end(model, tmp_path):
    source, target = write(tmp_path / "in.parquet", texts()), tmp_path / "out.parquet"
    write(target, [{"old": 1}])
    with pytest.raises(Enough):
        score_parquet(model, source, target, chunk_rows=3, overwrite=True, progress=stop_after(2))
    assert rows_of(target) == [{"old": 1}]
    done = score_parquet(model, source, target, chunk_rows=3, resume=True)
    assert done.resumed == 6
    assert [row["id"] for row in rows_of(target)] == list(range(11))


def test_two_processes_do_not_write_one_target(model, tmp_path):
    source, target = write(tmp_path / "in.parquet", texts()), tmp_path / "out.parquet"

    def second(at):
        with pytest.raises(DataError, match="another process is scoring into it"):
            score_parquet(model, source, target, chunk_rows=3, resume=True)

    score_parquet(model, source, target, chunk_rows=3, progress=second)
    assert len(rows_of(target)) == 11


def test_a_full_disk_is_told_of_before_and_during(model, tmp_path, monkeypatch):
    source, target = write(tmp_path / "in.parquet", texts()), tmp_path / "out.parquet"
    free = shutil.disk_usage(tmp_path)._replace(free=100)
    with monkeypatch.context() as patch:
        patch.setattr(pool_parts.shutil, "disk_usage", lambda path: free)
        with pytest.raises(RewardError, match=r"0 MiB free, and about .* needed"):
            score_parquet(model, source, target)
    assert not pool_parts.parts_folder(target).exists()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pool_parts.os, "fsync", full)
    with pytest.raises(RewardError, match=r"No space left on device\. Fix: free some space"):
        score_parquet(model, source, target)


def test_what_is_written_already_needs_no_room(model, tmp_path, monkeypatch):
    source, target = write(tmp_path / "in.parquet", texts(60)), tmp_path / "out.parquet"
    with pytest.raises(Enough):
        score_parquet(model, source, target, chunk_rows=10, progress=stop_after(5))
    (tmp_path / "out.parquet.unfinished").write_bytes(b"x" * 1000)
    parts = sum(p.stat().st_size for p in pool_parts.parts_folder(target).glob("*"))
    assert pool_parts.written(target) == parts + 1000
    needed = int(pool_parts.ROOM * source.stat().st_size) + 1 - parts - 1000
    free = shutil.disk_usage(tmp_path)

    def leave(room):
        monkeypatch.setattr(pool_parts.shutil, "disk_usage", lambda _: free._replace(free=room))

    leave(needed - 10)
    with pytest.raises(RewardError, match="MiB free"):
        score_parquet(model, source, target, chunk_rows=10, resume=True)
    leave(needed)
    assert score_parquet(model, source, target, chunk_rows=10, resume=True).resumed == 20
    leave(0)  # of a finished target nothing is written
    assert score_parquet(model, source, target, chunk_rows=10, resume=True).resumed == 60


def test_a_score_that_is_no_number_stops(build, tmp_path):
    model = build(seed=3)
    with torch.no_grad():
        model.model.score.weight.fill_(float("nan"))
    source = write(tmp_path / "in.parquet", texts(2))
    with pytest.raises(RewardError, match=r"tiny gives \[nan\] to the answer 'Here.'"):
        score_parquet(model, source, tmp_path / "out.parquet")


def test_numbers_that_mean_nothing(model, tmp_path):
    source = write(tmp_path / "in.parquet", texts(2))
    for wrong in ({"batch_tokens": 0}, {"chunk_rows": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            score_parquet(model, source, tmp_path / "out.parquet", **wrong)
    with pytest.raises(DataError, match=r"ends in \.parquet"):
        score_parquet(model, source, tmp_path / "out.csv")
    with pytest.raises(DataError, match="either resumed or overwritten"):
        score_parquet(model, source, tmp_path / "o.parquet", resume=True, overwrite=True)


def test_progress_counts_this_process_alone():
    at = pool.Progress(rows=600, total=1000, answers=1200, seconds=20.0, resumed=200)
    assert at.rows_per_second == 20.0
    assert at.seconds_left == 20.0
