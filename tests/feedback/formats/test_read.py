"""Containers, detection, ids and errors."""

from __future__ import annotations

import gzip
import json

import pytest

from feedback.errors import DataError
from feedback.formats import read_feedback
from feedback.schema import Comparison
from feedback.store import FeedbackStore

ROW = {"prompt": "p", "response_a": "x", "response_b": "y", "label": "a", "annotator": "ann"}
HH = {
    "chosen": "\n\nHuman: hi\n\nHuman: you\n\nAssistant: good",
    "rejected": "\n\nHuman: hi\n\nHuman: you\n\nAssistant: bad",
}


def said(path, **options):
    return [read.judgement for read in read_feedback(path, **options).reads]


@pytest.mark.parametrize("name", ["x.jsonl", "x.ndjson", "x.json", "x.jsonl.gz", "x.json.gz"])
def test_every_container_gives_the_same(save, name):
    rows = [ROW, ROW | {"label": "tie"}]
    body = json.dumps(rows) if ".json" in name and "jsonl" not in name else None
    body = body or "\ufeff" + "".join(json.dumps(row) + "\n\n" for row in rows)
    read = read_feedback(save(name, body))
    assert (read.format, read.rows, read.bad) == ("align", 2, [])
    assert [r.judgement.label for r in read.reads] == ["a", "tie"]
    assert [r.judgement.strength for r in read.reads] == [1, 0]


def test_json_lines_under_the_name_json(save):
    path = save("x.json", "\n" + "".join(json.dumps(ROW | {"label": x}) + "\n" for x in "ab"))
    assert [j.label for j in said(path)] == ["a", "b"]
    assert read_feedback(path).reads[1].where == f"{path}:3"


def test_csv_as_a_spreadsheet_writes_it(save):
    path = save(
        "votes.csv",
        "\ufeffprompt,response_a,response_b,label,annotator,strength,reason\r\n"
        '"two\nlines, ""quoted""",x,y,B,ann,2,because\r\n'
        "q,x,y,Tie,,,\r\n"
        "q,x,,a,,,\r\n",
    )
    first, second, third = said(path)
    assert (first.prompt, first.label, first.strength) == ('two\nlines, "quoted"', "b", 2)
    assert (first.annotator, first.reason) == ("ann", "because")
    assert (second.label, second.annotator, second.strength) == ("tie", "imported", 0)
    assert third.response_b == ""


def test_csv_names_the_line_where_a_record_starts(save):
    path = save(
        "x.csv", 'prompt,response_a,response_b,label\n"a\nb",x,y,a\n"a\nb",x,y,c\nq,x\nq,x,y,b\n'
    )
    read = read_feedback(path, bad_rows="quarantine")
    assert [(row.line, row.reason) for row in read.bad] == [
        (4, "label is unknown"),
        (6, "wrong number of cells"),
    ]
    assert len(read.reads) == 2


def test_tab_separated_and_conversation_in_a_cell(save):
    talk = [{"role": "user", "content": "hi"}]
    cell = '"' + json.dumps(talk).replace('"', '""') + '"'
    path = save(
        "x.tsv", f"prompt\tresponse_a\tresponse_b\tlabel\n{cell}\tx\ty\ta\n[{{no\tx\ty\ta\n"
    )
    assert [j.prompt for j in said(path)] == [talk, "[{no"]


@pytest.mark.parametrize(
    ("row", "format"),
    [
        (ROW, "align"),
        ({"kind": "thumb", "prompt": "p", "response": "x", "good": True}, "align"),
        (HH, "hh"),
        ({"chosen": "the sky is blue", "rejected": "the sky is red"}, "trl"),
        ({"prompt": "p", "chosen": "x", "rejected": "y"}, "trl"),
        ({"prompt": "p", "completion": "x", "label": True}, "trl"),
        ({"prompt": "p", "completion": "x"}, "trl"),
        (
            {"instruction": "i", "input": "", "response1": "x", "response2": "y", "annotator1": 0},
            "pandalm",
        ),
        ({"data": {}, "annotations": []}, "label-studio"),
    ],
)
def test_format_is_told_by_the_columns(save, row, format):
    assert read_feedback(save("x.jsonl", [row]), bad_rows="quarantine").format == format


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            [{"question": "q", "answer": "a"}],
            ["hold question, answer.", "chosen, rejected", "Fix:"],
        ),
        ([{"annotation_id": 3, "annotator": 1, "pref": "a1"}], ["JSON_MIN", "export as JSON"]),
        ([{"messages": []}], ["training data, not judgements"]),
        ([{}], ["no columns"]),
        ([ROW, HH], ["1 in align and 1 in hh", "split the file"]),
        ("{nothing\n", ["x.jsonl:1", "invalid JSON", "no row can be read"]),
    ],
)
def test_undecided_says_what_it_saw(save, content, words):
    with pytest.raises(DataError) as caught:
        read_feedback(save("x.jsonl", content), bad_rows="quarantine")
    assert all(word in str(caught.value) for word in words), caught.value


def test_most_rows_decide_and_the_others_are_set_aside(save):
    read = read_feedback(save("x.jsonl", [ROW, HH, ROW | {"label": "b"}]), bad_rows="quarantine")
    assert (read.format, len(read.reads), len(read.bad)) == ("align", 2, 1)
    assert read.bad[0].reason == "prompt is missing"


def test_files_that_cannot_be_opened(save, tmp_path):
    save("votes.jsonl", [ROW])
    with pytest.raises(DataError, match=r"did you mean .*votes\.jsonl\?"):
        read_feedback(tmp_path / "vote.jsonl")
    with pytest.raises(DataError, match=r"\.parquet is not a known kind .* Fix: use \.jsonl"):
        read_feedback(tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"'csv' is no feedback format\. Fix: use auto, align"):
        read_feedback(tmp_path / "votes.jsonl", format="csv")
    with pytest.raises(DataError, match="Fix: "):
        read_feedback(tmp_path / "nowhere" / "x.jsonl")


def test_strict_names_file_line_and_fix(save):
    path = save("x.jsonl", [ROW] + [ROW | {"label": "z"}] * 7)
    with pytest.raises(DataError) as caught:
        read_feedback(path)
    text = str(caught.value)
    assert f"{path}:2: label is unknown ('z'; expected a, b or tie)" in text
    assert "... and 2 more" in text
    assert "bad_rows='quarantine'" in text


def test_damage_keeps_what_came_before_it(save, tmp_path):
    rows = [ROW | {"prompt": f"p{i}", "reason": str(i) * 50} for i in range(3000)]
    whole = save("x.jsonl", rows).read_bytes()
    zipped = gzip.compress(whole)
    for name, data in [
        ("cut.jsonl.gz", zipped[: len(zipped) // 2]),
        ("cut.json", save("y.json", rows).read_bytes()[:200_000]),
        ("cut.json.gz", gzip.compress((tmp_path / "y.json").read_bytes())[:9000]),
    ]:
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"cut short|invalid JSON"):
            read_feedback(path)
        read = read_feedback(path, bad_rows="quarantine")
        assert len(read.bad) == 1
        assert 100 < len(read.reads) < 3000
        assert [r.judgement.prompt for r in read.reads] == [f"p{i}" for i in range(len(read.reads))]


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv"])
def test_bytes_that_are_not_utf8_cost_their_own_row_only(save, name):
    if name == "x.csv":
        head = b"prompt,response_a,response_b,label\n"
        data = head + b"p,x,y,a\np,x,\xff,a\np,x,y,b\n"
    else:
        lines = [json.dumps(ROW).encode() for _ in range(3)]
        lines[1] = lines[1].replace(b'"y"', b'"\xff"')
        data = b"\n".join(lines) if name == "x.jsonl" else b"[" + b",\n".join(lines) + b"]"
    read = read_feedback(save(name, data), bad_rows="quarantine")
    assert len(read.reads) == 2
    assert [row.reason for row in read.bad] in (["not UTF-8"], ["not valid Unicode"])
    assert read.bad[0].line == (3 if name == "x.csv" else 2)


def test_importing_twice_from_any_file_adds_nothing(save, tmp_path):
    rows = [ROW, ROW, ROW | {"annotator": "bob"}, ROW | {"prompt": "q"}]
    turned = {"prompt": "q", "response_a": "y", "response_b": "x", "label": "b", "annotator": "ann"}
    first = read_feedback(save("one.jsonl", rows)).of(Comparison)
    again = read_feedback(
        save(
            "other.json",
            [
                *reversed(rows),
            ],
        )
    ).of(Comparison)
    assert len({read.annotation for read in first}) == 4  # said twice is not said once
    assert {read.annotation for read in first} == {read.annotation for read in again}
    assert read_feedback(save("t.jsonl", [turned])).reads[0].annotation == first[3].annotation
    with FeedbackStore(f"sqlite:///{tmp_path / 's.db'}") as store:
        for reads in (first, again, first):
            store.add_comparisons(
                [read.judgement for read in reads],
                annotations=[read.annotation for read in reads],
            )
        counts = store.counts()
    assert (counts.comparisons, counts.events, counts.pairs) == (4, 4, 2)


def test_an_id_changes_with_what_is_said(save):
    changes = [
        {"label": "b"}, {"strength": 2}, {"reason": "r"}, {"annotator": "bob"}, {"prompt": "q"},
        {"response_b": "z"}, {"created_at": "2026-01-01T00:00:00Z"},
    ]  # fmt: skip
    reads = read_feedback(save("x.jsonl", [ROW] + [ROW | change for change in changes])).reads
    assert len({read.annotation for read in reads}) == 1 + len(changes)
    timed = read_feedback(save("y.jsonl", [ROW | {"lead_time": 3, "source_a": "sft"}])).reads
    assert timed[0].annotation == reads[0].annotation


def test_annotators_can_be_renamed(save):
    path = save("x.jsonl", [ROW | {"annotator": 7}, ROW | {"annotator": None}])
    assert [j.annotator for j in said(path, annotators={"7": "grace"})] == ["grace", "imported"]


def test_quarantine_file_holds_row_and_reason(save, tmp_path):
    bad = ROW | {"response_a": "\ud800"}
    text = json.dumps(ROW) + "\n" + json.dumps(bad) + "\n{oops\n"
    read = read_feedback(save("x.jsonl", text), bad_rows="quarantine")
    assert read.write_quarantine(str(tmp_path / "deep" / "q.jsonl"))  # as docs/formats.md does
    lines = [json.loads(line) for line in (tmp_path / "deep" / "q.jsonl").open(encoding="utf-8")]
    assert [(line["line"], line["reason"]) for line in lines] == [
        (2, "not valid Unicode"),
        (3, "invalid JSON"),
    ]
    assert lines[0]["row"] == bad
    assert lines[1]["row"] == "{oops"
    assert read.reasons == {"not valid Unicode": 1, "invalid JSON": 1}
