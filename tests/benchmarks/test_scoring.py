"""The parts of the scoring benchmarks that decide their figures."""

from __future__ import annotations

import gzip
import json
import os
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import scoring, scoring_kills

WORDS = ("where", "is", "my", "parcel", "order", "bill", "office", "please", "send", "it", "back")


def dialogue(number):
    words = [WORDS[(number * 7 + i * i) % len(WORDS)] for i in range(6 + number % 9)]
    prompt = f"\n\nHuman: {' '.join(words)}?\n\nAssistant:"
    return {
        "chosen": f"{prompt} Yes, {words[0]} {number}.",
        "rejected": f"{prompt} No {words[1]}.",
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("workload")
    with gzip.open(place / "data.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps(dialogue(i)) + "\n" for i in range(40))
    settings = json.loads(scoring.MODEL.read_text()) | {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
    }
    (place / "small.json").write_text(json.dumps(settings))
    sizes = scoring.prepare(place, place / "data.jsonl.gz", place / "small.json", 32)
    (place / "sizes.json").write_text(json.dumps(sizes))
    return place


def test_pools_are_what_is_said(folder):
    rows = {name: pq.read_table(folder / f"{name}.parquet").to_pylist() for name in scoring.POOLS}
    assert [len(rows[name]) for name in scoring.POOLS] == [16, 4, 4]
    assert all(row["prompt"].endswith(scoring.MARK) for row in rows["pairs"])
    assert all(len(row["completions"]) == 8 for row in rows["eight"])
    longest = min(len(row["prompt"]) for row in rows["eight_long"])
    assert longest > max(len(row["prompt"]) for row in rows["eight"]) - 40
    sizes = json.loads((folder / "sizes.json").read_text())
    for name in scoring.POOLS:
        assert sizes[name]["answers"] == 32
        assert sizes[name]["unique"] < sizes[name]["real"]
    assert sizes["eight"]["unique"] * 2 < sizes["eight"]["real"]


def test_the_arms_agree_and_one_that_does_not_is_refused(folder, monkeypatch):
    monkeypatch.setattr(scoring.pool, "pooled_states", scoring.pool.pooled_states)  # put back
    for name in ("pairs", "eight"):
        for arm_name, measure in scoring.ARMS.items():
            seconds, scores, _ = measure(folder, folder / f"{name}.parquet")
            assert seconds > 0
            assert len(scores) == 32
            np.save(folder / f"{name}.{arm_name}.npy", scores)
        scoring.agree(folder, name)
    assert scores.std() > 100 * scoring.AGREE
    np.save(folder / "pairs.ours.npy", scores)
    with pytest.raises(RuntimeError, match="scores of ours and the peer differ"):
        scoring.agree(folder, "pairs")


def test_rows_that_are_lost_doubled_or_changed_are_seen(tmp_path):
    rows = [{"id": i, "reward": i / 2} for i in range(2500)]
    changed = [*rows[:9], {"id": 9, "reward": 1.0}, *rows[10:]]
    for name, these, wanted in (
        ("same", rows, 0),
        ("lost", rows[:-1], 1),
        ("doubled", [*rows, rows[3]], 1),
        ("changed", changed, 1),
        ("shifted", [*rows[:2000], *rows[1999:-1]], 500),
    ):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "whole.parquet")
        pq.write_table(pa.Table.from_pylist(these), tmp_path / f"{name}.parquet")
        found = scoring_kills.compare(tmp_path / "whole.parquet", tmp_path / f"{name}.parquet")
        assert found == wanted, name


@pytest.mark.slow
def test_a_small_run_with_a_kill(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ":".join(filter(None, sys.path)))
    path = tmp_path / "kills.json"
    options = ["--answers", "1600", "--kills", "1", "--chunk-rows", "8", "--pause", "0.02"]
    assert scoring_kills.main(["--json", str(path), *options]) == 0
    found = json.loads(path.read_text())
    assert (found["rows"], found["different_rows"], found["kills"]) == (200, 0, 1)
    assert 0 < found["killed_at_row"][0] < 200
    assert found["peak_mb_at_the_end"] < 1.5 * found["peak_mb_after_a_tenth"]


def test_a_process_that_ended_by_itself_was_not_killed(tmp_path, monkeypatch):
    ended = os.P_ALL, 0, os.WEXITED | os.WNOWAIT
    monkeypatch.setattr(scoring_kills.time, "sleep", lambda _: os.waitid(*ended))
    command = [sys.executable, "-c", "print(1), print(2), print(3)"]
    with pytest.raises(RuntimeError, match="ended before it was killed"):
        scoring_kills.killed(command, tmp_path, kills=1, seed=0)
