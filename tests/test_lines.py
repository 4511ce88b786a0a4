"""A file of JSON lines: when it appears, what it replaces, and what cannot be written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from align.errors import ConfigError, RunError
from align.lines import JsonLines


def test_the_file_appears_with_the_first_batch(tmp_path):
    output = tmp_path / "deep/out.jsonl"
    with JsonLines(output) as file:
        assert not output.exists()
        file.write([])
        assert output.read_text() == ""
        file.write([{"a": "ä"}, {"a": 2}])
        assert output.read_text("utf-8") == '{"a": "ä"}\n{"a": 2}\n'
    with pytest.raises(ConfigError, match=r"exists.*--overwrite"):
        JsonLines(output)


def test_a_file_is_replaced_at_the_end_and_a_link_to_it_stays(tmp_path):
    real, link = tmp_path / "real.jsonl", tmp_path / "link.jsonl"
    real.write_text("old\n")
    link.symlink_to(real)
    with JsonLines(link, overwrite=True) as file:
        file.write([1])
        assert real.read_text() == "old\n"
        assert (tmp_path / "real.unfinished.jsonl").read_text() == "1\n"
    assert link.is_symlink()
    assert real.read_text() == "1\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.jsonl", "real.jsonl"]


def test_an_unfinished_file_stays_until_there_is_something_better(tmp_path):
    output, unfinished = tmp_path / "out.jsonl", tmp_path / "out.unfinished.jsonl"
    output.write_text("old\n")
    unfinished.write_text("an earlier run's\n")
    with pytest.raises(ZeroDivisionError), JsonLines(output, overwrite=True):
        1 / 0  # noqa: B018
    assert unfinished.read_text() == "an earlier run's\n"
    with JsonLines(output, overwrite=True) as file:
        file.write([1])
    assert output.read_text() == "1\n"
    assert not unfinished.exists()


def test_what_another_run_wrote_meanwhile_is_not_touched(tmp_path):
    output = tmp_path / "out.jsonl"
    with JsonLines(output) as one, JsonLines(output) as other:
        one.write([1])
        with pytest.raises(RunError, match=r"out.jsonl failed: File exists.*choose another file"):
            other.write([2])
    assert output.read_text() == "1\n"


def test_what_cannot_be_written_is_told_before_anything_is(tmp_path, locked):
    with pytest.raises(RunError, match=r"cannot write .*out.jsonl: Permission denied"):
        JsonLines(locked / "out.jsonl")
    with pytest.raises(RunError, match=r"cannot write .*: Is a directory"):
        JsonLines(locked, overwrite=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_is_written_as_it_is_and_a_full_one_is_not_removed(tmp_path):
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    disk_full = pytest.raises(RunError, match=r"No space left .* free some space")
    with disk_full, JsonLines(full, overwrite=True) as file:
        file.write([1])
    assert full.is_symlink()
    assert os.path.realpath(full) == "/dev/full"
    assert Path("/dev/full").exists()
