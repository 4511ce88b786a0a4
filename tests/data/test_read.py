"""Reading: every kind of file, positions, and what happens to files that are broken."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from align.data.read import file_sha256, read_file
from align.data.remote import read_source
from align.errors import DataError

ROWS = [{"prompt": "a?", "completion": "one, two"}, {"prompt": 'b "q"\n?', "completion": "é"}]


def values(path: Path) -> list:
    return [record.values for record in read_file(path)]


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "jsonl.gz", "json", "json.gz"])
def test_json_files(write, suffix):
    lines = "jsonl" in suffix or suffix == "ndjson"
    path = write(f"rows.{suffix}", ROWS if lines else json.dumps(ROWS, indent=1))
    assert values(path) == ROWS


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "rows.tsv"])
def test_csv_files(write, name):
    comma = "\t" if "tsv" in name else ","
    text = comma.join(ROWS[0]) + "\n"
    for row in ROWS:
        text += comma.join('"' + value.replace('"', '""') + '"' for value in row.values()) + "\n"
    records = list(read_file(write(name, text)))
    assert [record.values for record in records] == ROWS
    assert [record.where.rpartition(":")[2] for record in records] == ["2", "3"]


def test_csv_cell_with_a_conversation(write):
    turns = [{"role": "user", "content": "hi"}]
    cell = '"' + json.dumps(turns).replace('"', '""') + '"'
    assert values(write("x.csv", f"prompt,note\n{cell},[1]\n")) == [
        {"prompt": turns, "note": "[1]"}
    ]


def test_parquet(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    assert values(path) == ROWS


def test_positions_are_lines(write):
    text = '{"text": "a"}\n\n{"text": "b"}\n'
    assert [r.where[-2:] for r in read_file(write("x.jsonl", text))] == [":1", ":3"]
    array = '[\n{"text":\n "a"},\n\n{"text": "b"}]'
    assert [r.where[-2:] for r in read_file(write("x.json", array))] == [":2", ":5"]


def test_json_lines_and_wrapped_rows_under_the_name_json(write):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    assert values(write("lines.json", lines)) == ROWS
    assert values(write("wrapped.json", json.dumps({"version": 1, "data": ROWS}))) == ROWS
    one = {"messages": [{"role": "user", "content": "a"}]}
    assert values(write("one.json", json.dumps(one))) == [one]


def test_gzip_is_known_by_its_content(write):
    packed = gzip.compress(b'{"text": "a"}\n')
    assert values(write("x.jsonl", packed)) == [{"text": "a"}]


def test_byte_order_mark(write):
    assert values(write("x.jsonl", b'\xef\xbb\xbf{"text": "a"}')) == [{"text": "a"}]
    assert values(write("x.csv", b"\xef\xbb\xbftext\na\n")) == [{"text": "a"}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a",}', "invalid JSON: "),
        (b'{"text": "a"', "invalid JSON: Expecting ',' delimiter at column 13"),
        (b'["a"]', "not an object: a list where columns are expected"),
        (b'"a"', "not an object: a str"),
        (b'{"text": "\xff"}', "not UTF-8: byte 10 is 0xff"),
    ],
)
def test_an_unreadable_line_is_a_record_with_its_problem(write, line, reason):
    path = write("x.jsonl", b'{"text": "a"}\n' + line + b'\n{"text": "b"}\n')
    good, bad, after = read_file(path)
    assert (good.values, after.values) == ({"text": "a"}, {"text": "b"})
    assert bad.values is None
    assert bad.where == f"{path}:2"
    assert str(bad.problem).startswith(reason)


def test_csv_row_of_another_width(write):
    good, bad = read_file(write("x.csv", "prompt,completion\na,b\na\n"))
    assert good.values == {"prompt": "a", "completion": "b"}
    assert str(bad.problem) == "wrong number of cells: 1 cells under 2 columns (prompt, completion)"


def fails(path: Path) -> str:
    with pytest.raises(DataError) as error:
        list(read_file(path))
    return str(error.value).replace(f"{path.parent}/", "")


def test_a_missing_file_names_the_nearest(write):
    path = write("train.jsonl", ROWS)
    message = fails(path.with_name("trian.jsonl"))
    assert message.startswith("trian.jsonl: no such file. Fix: did you mean train.jsonl?")
    message = fails(path.parent / "nowhere" / "x.jsonl")
    assert "no such file" in message
    assert "it holds train.jsonl" in message


def test_unknown_suffix(write):
    assert "known kind of data file. Fix: use .jsonl" in fails(write("x.txt", "a"))


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.json.gz", "x.csv.gz"])
def test_compressed_file_cut_short(write, name):
    rows = [{"text": f"{i * 7919 % 1000} words"} for i in range(2000)]
    path = write(name, rows)
    path.write_bytes(path.read_bytes()[:-200])
    message = fails(path)
    assert message.startswith(f"{name}: the compressed file is cut short or damaged after line ")
    assert 0 < int(message.split("after line ")[1].split()[0]) < 2000


def test_compressed_file_damaged(write):
    path = write("x.jsonl.gz", [{"text": str(i)} for i in range(2000)])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    assert "cut short or damaged" in fails(path)


def test_gz_in_the_name_only(write, tmp_path):
    path = tmp_path / "x.jsonl.gz"
    path.write_text('{"text": "a"}\n')
    assert "the content is not gzip" in fails(path)


def test_parquet_cut_short(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    path.write_bytes(path.read_bytes()[:-20])
    assert "x.parquet: is not a readable Parquet file" in fails(path)


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ('[{"a": 1},\n{"a": }]', "x.json:2: invalid JSON: Expecting value at column 7"),
        ('[{"a": 1}\n{"a": 2}]', "x.json:2: invalid JSON: expected ',' or ']' at column 1"),
        ('[{"a": 1},\n', "x.json:2: invalid JSON: "),
        ('{"a": \n', "x.json:2: invalid JSON: "),
        ("hello", "x.json:1: a JSON file starts with '['"),
    ],
)
def test_json_that_cannot_be_read_on(write, text, start):
    assert fails(write("x.json", text)).startswith(start)


def test_not_utf8(write):
    assert fails(write("x.csv", b"text\nok\n\xff\n")).startswith("x.csv:3: is not UTF-8")


class TestSources:
    def test_limit_and_fingerprint(self, write):
        path = write("x.jsonl", ROWS)
        data = read_source(str(path), limit=1)
        assert [record.values for record in data.records] == ROWS[:1]
        assert data.sha256 == file_sha256(path)
        path.write_text(path.read_text() + "\n")
        assert read_source(str(path)).sha256 != data.sha256

    def test_folder_of_a_saved_dataset(self, tmp_path):
        splits = DatasetDict(
            {"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:1])}
        )
        splits.save_to_disk(tmp_path / "both")
        data = read_source(str(tmp_path / "both"), split="test")
        assert [record.values for record in data.records] == ROWS[:1]
        assert data.records[0].where.endswith("both[test]:row 1")
        Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
        assert len(read_source(str(tmp_path / "one")).records) == 2
        with pytest.raises(DataError, match=r"has no split 'dev'; it has train, test"):
            read_source(str(tmp_path / "both"), split="dev")

    def test_folder_of_files(self, write, tmp_path, monkeypatch):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
        (tmp_path / "raw").mkdir()
        write("raw/train.jsonl", ROWS)
        assert [r.values for r in read_source(str(tmp_path / "raw")).records] == ROWS
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match="cannot be read as a dataset"):
            read_source(str(tmp_path / "empty"))

    def test_hub_dataset_that_cannot_be_had(self, monkeypatch):
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
        with pytest.raises(DataError, match=r"owner/nothing: no file or folder of that name.*hub"):
            read_source("owner/nothing")

    def test_a_path_that_is_no_hub_id(self, write):
        path = write("train.jsonl", ROWS)
        with pytest.raises(DataError, match=r"did you mean .*train\.jsonl\?"):
            read_source(str(path.with_suffix("")))

    def test_store_that_is_not_there(self, write):
        path = write("feedback.db", "")
        with pytest.raises(DataError, match=r"no such file.*did you mean .*feedback\.db"):
            read_source(f"sqlite:///{path.with_name('feedbck.db')}")
