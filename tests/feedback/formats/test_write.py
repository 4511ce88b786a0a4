"""What is written is read back the same, and written again is the same bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from feedback.errors import DataError
from feedback.formats import read_feedback, write_feedback, write_rows
from feedback.schema import Comparison, Correction, Judgement, item_id, pair_id
from feedback.store import FeedbackStore

NAMES = ["x.jsonl", "x.csv", "x.jsonl.gz", "x.csv.gz"]


def with_items(judgement: Judgement) -> Judgement:
    """The judgement naming its item by the id that its text makes, as reading does."""
    if isinstance(judgement, Comparison):
        pair = pair_id(judgement.prompt, judgement.response_a, judgement.response_b)
        return replace(judgement, pair=pair)
    if isinstance(judgement, Correction):
        return judgement
    kind = type(judgement).__name__.lower()
    answers = judgement.responses if kind == "ranking" else [judgement.response]
    return replace(judgement, item=item_id(kind, judgement.prompt, answers))


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_of_hard_texts(judgements, tmp_path, name):
    path, again = tmp_path / name, tmp_path / f"again-{name}"
    ids = [f"id {number}" for number in range(len(judgements))]
    assert write_feedback(judgements, path, annotations=ids) == len(judgements)
    read = read_feedback(path)
    assert read.format == "align"
    assert [r.judgement for r in read.reads] == [with_items(j) for j in judgements]
    assert [r.annotation for r in read.reads] == ids
    write_feedback([r.judgement for r in read.reads], again, annotations=ids)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_ids_do_not_depend_on_the_container(judgements, tmp_path, name):
    plain = tmp_path / "plain.jsonl"
    write_feedback(judgements, plain)
    write_feedback(judgements, tmp_path / name)
    expected = [r.annotation for r in read_feedback(plain).reads]
    assert [r.annotation for r in read_feedback(tmp_path / name).reads] == expected
    assert len(set(expected)) == len(judgements)


def test_through_a_store_and_out_again(judgements, tmp_path):
    """Import, export, import into another store: the same judgements."""
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_feedback(judgements, path)
    kept = []
    for number in range(2):
        reads = read_feedback(out if number else path).reads
        with FeedbackStore(f"sqlite:///{tmp_path / f'{number}.db'}") as store:
            store.add_judgements(
                [r.judgement for r in reads], annotations=[r.annotation for r in reads]
            )
            kept.append(store.judgements())
        write_feedback(kept[-1], out)
    assert len(kept[0]) == len(judgements)
    assert kept[0] == kept[1]


def test_a_text_that_looks_like_a_conversation_stays_text(tmp_path):
    text = '[{"role": "user", "content": "hi"}]'
    talk = [{"role": "user", "content": "hi"}]
    both = [Comparison(prompt, "x", text, "a", "ann") for prompt in (text, talk)]
    for name in NAMES:
        write_feedback(both, tmp_path / name)
        read = [r.judgement for r in read_feedback(tmp_path / name).reads]
        assert [j.prompt for j in read] == [text, talk]
        assert {j.response_b for j in read} == {text}


def test_what_cannot_be_written_leaves_the_old_file(judgements, tmp_path):
    path = tmp_path / "x.jsonl"
    write_feedback(judgements[:1], path)
    before = path.read_bytes()
    bad = Comparison("p", "x", "\udc80", "a", "ann")
    with pytest.raises(DataError, match=r"cannot be written .* Fix: .* Nothing was written"):
        write_feedback([bad], path)
    with pytest.raises(DataError, match="cannot be written"):
        write_feedback([replace(bad, response_b="y", lead_time=float("nan"))], path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(DataError, match=r"not written as \.parquet\. Fix: use \.jsonl or \.csv"):
        write_rows([], tmp_path / "x.parquet")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"Fix: check the folder"):
        write_rows([], tmp_path / "file" / "x.jsonl")
