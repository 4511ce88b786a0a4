"""What guards keep for later runs: whole or refused, and found along a model's lineage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from align.engine.guards.artefact import (
    About,
    find_artefacts,
    load_importance,
    load_rows,
    read_about,
    save_importance,
    save_rows,
)
from align.errors import CheckpointError

VALUES = {"a.weight": torch.rand(2, 3), "b": torch.zeros(4)}
ANCHOR = {"a.weight": torch.randn(2, 3), "b": torch.ones(4)}


def write(path: Path, *tasks: str, kind: str = "ewc") -> Path:
    save_importance(path, VALUES, ANCHOR, About(kind, tasks, "m", {"samples": 3}))
    return path


def test_importances_come_back_without_what_counts_for_nothing(tmp_path):
    found = load_importance(write(tmp_path / "deep" / "x.safetensors", "t1"))
    assert found.about == About("ewc", ("t1",), "m", {"samples": 3})
    assert list(found.importance) == list(found.anchor) == ["a.weight"]
    assert torch.equal(found.importance["a.weight"], VALUES["a.weight"])
    assert torch.equal(found.anchor["a.weight"], ANCHOR["a.weight"])
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["x.safetensors"]


def test_rows_come_back(tmp_path):
    rows = [{"text": "ä\nb"}, {"prompt": [{"role": "user", "content": "x"}]}]
    save_rows(tmp_path / "r.safetensors", rows, About("rows", ("t",)))
    assert load_rows(tmp_path / "r.safetensors") == (rows, About("rows", ("t",)))
    save_rows(tmp_path / "none.safetensors", [], About("rows"))
    assert load_rows(tmp_path / "none.safetensors")[0] == []


def test_a_flipped_bit_a_missing_file_and_another_kind_are_refused(tmp_path):
    path = write(tmp_path / "x.safetensors", "t1")
    whole = bytearray(path.read_bytes())
    whole[-5] ^= 1
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match="is damaged"):
        load_importance(path)
    path.write_bytes(whole[:40])
    with pytest.raises(CheckpointError, match="cannot read"):
        load_importance(path)
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors"):
        read_about(tmp_path / "nothing.safetensors")
    save_rows(tmp_path / "r.safetensors", [{}], About("rows"))
    with pytest.raises(CheckpointError, match="importances were expected"):
        load_importance(tmp_path / "r.safetensors")
    with pytest.raises(CheckpointError, match="rows were expected"):
        load_rows(write(tmp_path / "y.safetensors", "t1"))


def run_of(folder: Path, start: Path | None) -> Path:
    (folder / "model").mkdir(parents=True)
    parents = [{"role": "model", "path": str(start)}] if start else []
    (folder / "run.json").write_text(json.dumps({"parents": parents}))
    return folder / "model"


def test_lineage_finds_each_task_once_oldest_first(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    hand = write(base / "guards" / "ewc.safetensors", "t0")
    first = run_of(tmp_path / "one", base)
    write(tmp_path / "one" / "guards" / "ewc-0-start.safetensors", "t1")
    one = write(tmp_path / "one" / "guards" / "ewc-0.safetensors", "t1", "t2")
    second = run_of(tmp_path / "two", first)
    two = write(tmp_path / "two" / "guards" / "ewc-0.safetensors", "t3")
    write(tmp_path / "two" / "guards" / "si-0.safetensors", "t9", kind="si")
    assert find_artefacts(second, "ewc") == [hand, one, two]
    assert find_artefacts(first, "ewc") == [hand, one]
    assert find_artefacts(second, "mas") == []
    assert find_artefacts("some/hub-id", "ewc") == []
