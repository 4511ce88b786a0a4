"""Where answers to be scored come from: files, folders, columns, and what is wrong with them."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feedback.errors import DataError
from reward.pool_source import open_source


def texts(count):
    return [{"prompt": "Where is it?", "completion": f"{i}", "id": i} for i in range(count)]


def said(role, text):
    return [{"role": role, "content": text}]


def write(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_chunks_start_anywhere_in_a_source(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    table = pa.Table.from_pylist(texts(23))
    for number, (first, count) in enumerate([(0, 10), (10, 13)]):
        pq.write_table(table.slice(first, count), folder / f"{number}.parquet", row_group_size=4)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts(23)))
    for place in (folder, tmp_path / "in.jsonl"):
        opened = open_source(place)
        assert opened.rows == 23
        for first in range(24):
            for size in (1, 3, 7, 50):
                tables = list(opened.tables(first, size))
                found = [n for part in tables for n in part["id"].to_pylist()]
                assert found == list(range(first, 23))
                assert all(len(part) == size for part in tables[:-1])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a"}], r"columns \(text\) are none of answers"),
        ([{"prompt": "a", "completion": "b", "completions": ["c"]}], "more than one kind"),
        ([{"prompt": "a", "completions": "b"}], "completions is string, and must be a list"),
        ([{"prompt": "a", "completion": 3}], "completion is int64; it must be text"),
        ([{"prompt": "a", "completion": said("assistant", "b")}], "all be text, or all be conv"),
        ([{"prompt": "a", "completion": "b", "reward": 1.0}], "has a column 'reward' already"),
        ([{"chosen": "a", "rejected": "b", "reward_rejected_std": 1}], "'reward_rejected_std'"),
    ],
)
def test_columns_that_are_not_those_of_answers(rows, message, tmp_path):
    with pytest.raises(DataError, match=message):
        open_source(write(tmp_path / "in.parquet", rows))


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    (tmp_path / "data.csv").write_text("prompt,completion\n")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt"\n')
    (tmp_path / "mixed.jsonl").write_text(
        '{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": 3}\n'
    )
    (tmp_path / "none.jsonl").write_text("\n")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "a"}\n' * 999)[:-9])
    differ = tmp_path / "differ"
    differ.mkdir()
    write(differ / "a.parquet", texts(1))
    write(differ / "b.parquet", [{"prompt": "a", "completion": "b"}])
    for name, message in {
        "gone.parquet": "no such file",
        "empty": "no .parquet files",
        "bad.parquet": "cannot be read as Parquet",
        "data.csv": "pools are read from .parquet",
        "bad.jsonl": r"bad\.jsonl:2: no line of JSON",
        "mixed.jsonl": "values of different kinds",
        "none.jsonl": "holds no rows",
        "cut.jsonl.gz": "no line of JSON",
        "differ": r"b\.parquet: its columns differ from those of a\.parquet",
    }.items():
        with pytest.raises(DataError, match=message):
            open_source(tmp_path / name)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a", "completion": "\\ud800"}', "row 3 holds a text with half a surrogate"),
        (
            '{"prompt": "a", "completion": "b", "n": 99999999999999999999}',
            "row 3 .* beyond 64 bits",
        ),
        (
            '{"prompt": "a", "completion": "b", "n": [1, "x"]}',
            "row 3 .* different kinds in one list",
        ),
        ('{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}", r"in\.jsonl:4: no line of JSON"),
    ],
)
def test_lines_that_no_table_holds_are_named(line, message, tmp_path):
    good = '{"prompt": "a", "completion": "b"}'
    file = tmp_path / "in.jsonl"
    file.write_text(f"{good}\n\n{good}\n{line}\n{good}\n")
    with pytest.raises(DataError, match=message):
        open_source(file)


def test_a_line_that_changed_since_it_was_looked_at_is_named(tmp_path):
    good = '{"prompt": "a", "completion": "b"}\n'
    file = tmp_path / "in.jsonl"
    file.write_text(good * 5)
    opened = open_source(file)
    file.write_text(good * 3 + '{"prompt": "a", "completion": 3}\n' + good)
    with pytest.raises(DataError):
        list(opened.tables(0, 2))
