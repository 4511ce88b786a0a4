"""Real judgements: HH's dialogues and PandaLM's votes."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from feedback.aggregate import aggregate
from feedback.errors import DataError
from feedback.formats import read_feedback, write_feedback
from feedback.schema import Comparison
from feedback.store import FeedbackStore

pytestmark = pytest.mark.data
SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("shared/data is not beside the project")
    return SHARED


def lines(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def squeeze(text: str) -> str:
    """Without what differs where two turns of one speaker are joined."""
    return "".join(text.replace("Assistant:", "").split())


def test_hh(shared):
    path = shared / "hh_harmless.jsonl.gz"
    read = read_feedback(path, bad_rows="quarantine")
    assert (read.format, read.rows, len(read.reads)) == ("hh", 1500, 1496)
    assert read.reasons == {"chosen is empty": 4}
    assert [row.line for row in read.bad] == [87, 517, 926, 1104]
    assert len({r.annotation for r in read.reads}) == 1496
    raw = lines(path)
    for item in read.of(Comparison):
        row = raw[int(item.where.rsplit(":", 1)[1]) - 1]
        assert squeeze(row["chosen"]).endswith(squeeze(item.judgement.response_a))
        assert squeeze(row["rejected"]).endswith(squeeze(item.judgement.response_b))
    with pytest.raises(DataError, match=r"gz:87: chosen is empty"):
        read_feedback(path)


def test_hh_prompts_are_those_of_training_data(shared):
    from align.config.sections import DataSection
    from align.data import load_splits

    path = shared / "hh_harmless.jsonl.gz"
    values = DataSection(
        train=str(path), bad_rows="quarantine", deduplicate="none", validation_fraction=0.0
    )
    rows = load_splits(values, "preference").train
    reads = read_feedback(path, bad_rows="quarantine").of(Comparison)
    ours = [(r.judgement.prompt, r.judgement.response_a, r.judgement.response_b) for r in reads]
    theirs = [(r["prompt"], r["chosen"][0]["content"], r["rejected"][0]["content"]) for r in rows]
    assert sorted(map(str, ours)) == sorted(map(str, theirs))


def test_pandalm(shared, tmp_path):
    path = shared / "pandalm_votes.jsonl.gz"
    read = read_feedback(path, bad_rows="quarantine")
    assert (read.format, read.rows, len(read.reads)) == ("pandalm", 700, 3 * 694)
    assert read.reasons == {"response1 has the wrong type": 4, "response2 has the wrong type": 2}
    comparisons = [r.judgement for r in read.of(Comparison)]
    bad = {row.line for row in read.bad}
    votes = Counter(
        (name, row[name])
        for number, row in enumerate(lines(path), start=1)
        if number not in bad
        for name in ("annotator1", "annotator2", "annotator3")
    )
    codes = {"tie": 0, "a": 1, "b": 2}
    assert Counter((c.annotator, codes[c.label]) for c in comparisons) == votes
    with FeedbackStore(f"sqlite:///{tmp_path / 's.db'}") as store:
        for _ in range(2):
            store.add_comparisons(
                comparisons,
                annotations=[r.annotation for r in read.reads],
                raws=[r.raw for r in read.reads],
            )
        counts = store.counts()
        assert (counts.comparisons, counts.events, counts.annotators) == (2082, 2082, 3)
        assert counts.pairs == len(aggregate(comparisons)) == len(aggregate(store.comparisons()))


@pytest.mark.parametrize("name", ["hh_harmless", "pandalm_votes"])
@pytest.mark.parametrize("suffix", [".jsonl.gz", ".csv"])
def test_real_judgements_survive_export(shared, tmp_path, name, suffix):
    read = read_feedback(shared / f"{name}.jsonl.gz", bad_rows="quarantine")
    path = tmp_path / f"out{suffix}"
    ids = [r.annotation for r in read.reads]
    write_feedback([r.judgement for r in read.reads], path, annotations=ids)
    again = read_feedback(path)
    assert [r.judgement for r in again.reads] == [r.judgement for r in read.reads]
    assert [r.annotation for r in again.reads] == ids
