"""Checkpoints: whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerControl, TrainerState, TrainingArguments

from align.engine import checkpoint
from align.engine.checkpoint import (
    MANIFEST,
    CheckpointCallback,
    check_space,
    disk_errors,
    list_checkpoints,
    load_state,
    newest_valid,
    rotate,
    verify,
    write_manifest,
)
from align.errors import CheckpointError


def write(folder: Path, step: int, complete: bool = True) -> Path:
    place = folder / f"checkpoint-{step}"
    place.mkdir(parents=True)
    save_file({"w": torch.full((64,), float(step))}, place / "model.safetensors")
    (place / "deep").mkdir()
    (place / "deep" / "state.json").write_text("{}")
    if complete:
        write_manifest(place, {"step": step})
    return place


def flip(file: Path, bit: int = 4) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= bit
    file.write_bytes(bytes(content))


def test_a_flipped_bit_is_found_that_loading_would_not_notice(tmp_path):
    place = write(tmp_path, 1)
    verify(place)
    flip(place / "model.safetensors")
    assert load_file(place / "model.safetensors")["w"].shape == (64,)  # no complaint
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged: its SHA-256"):
        verify(place)


def test_a_missing_file_and_a_damaged_manifest_are_found(tmp_path):
    place = write(tmp_path, 1)
    (place / "deep" / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"lacks deep/state\.json"):
        verify(place)
    (place / MANIFEST).write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        verify(place)


def test_unfinished_and_damaged_ones_are_passed_over(tmp_path):
    good = write(tmp_path, 5)
    write(tmp_path, 9, complete=False)
    flip(write(tmp_path, 20) / "model.safetensors")
    (tmp_path / "checkpoint-best").mkdir()  # not a step
    assert [p.name for p in list_checkpoints(tmp_path)] == [
        "checkpoint-20",
        "checkpoint-9",
        "checkpoint-5",
    ]
    found, passed = newest_valid(tmp_path)
    assert found == good
    assert len(passed) == 2
    assert "SHA-256" in passed[0]
    assert MANIFEST in passed[1]


def test_no_checkpoint_is_none_but_only_bad_ones_are_an_error(tmp_path):
    assert newest_valid(tmp_path) == (None, [])
    write(tmp_path, 3, complete=False)
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        newest_valid(tmp_path)


def names(folder: Path) -> list[int]:
    return [int(p.name.split("-")[-1]) for p in list_checkpoints(folder)]


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    places = [write(tmp_path, step) for step in (1, 2, 3, 4)]
    rotate(places[3], 2, best=str(places[0]))
    assert names(tmp_path) == [4, 3, 1]


def test_rotation_does_not_count_what_is_not_complete(tmp_path):
    places = [write(tmp_path, step) for step in (1, 2)]
    write(tmp_path, 3, complete=False)
    rotate(places[1], 1)
    assert names(tmp_path) == [3, 2]
    assert newest_valid(tmp_path)[0] == places[1]


def test_a_damaged_later_checkpoint_does_not_push_out_the_good_ones(tmp_path):
    write(tmp_path, 5)
    flip(write(tmp_path, 10) / "model.safetensors")
    written = write(tmp_path, 7)  # resumed from 5
    rotate(written, 1)
    assert newest_valid(tmp_path)[0] == written
    assert 5 not in names(tmp_path)


def test_old_ones_go_only_after_the_new_manifest(tmp_path, monkeypatch):
    """Whatever fails while the new one is written, the old one stays usable."""
    old = write(tmp_path, 1)
    new = write(tmp_path, 2, complete=False)
    args = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    state = TrainerState(global_step=2)
    callback = CheckpointCallback(lambda: {"cursor": 4}, keep=1, lineage={"run": "r"})
    with monkeypatch.context() as patch:
        full = OSError(errno.ENOSPC, "No space left on device")
        patch.setattr(checkpoint, "write_manifest", lambda *a, **k: (_ for _ in ()).throw(full))
        with pytest.raises(OSError, match="No space"):
            callback.on_save(args, state, TrainerControl())
    assert newest_valid(tmp_path)[0] == old
    callback.on_save(args, state, TrainerControl())
    assert newest_valid(tmp_path)[0] == new
    assert names(tmp_path) == [2]
    assert load_state(new) == {"cursor": 4}
    manifest = json.loads((new / MANIFEST).read_text())
    assert (manifest["step"], manifest["lineage"]) == (2, {"run": "r"})
    assert checkpoint.STATE in manifest["files"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_said_in_words(tmp_path, error):
    full = r"disk that holds .* is full"
    with pytest.raises(CheckpointError, match=full) as caught, disk_errors(tmp_path):
        raise error
    assert caught.value.__cause__ is error


def test_other_errors_pass_unchanged(tmp_path):
    with pytest.raises(ValueError, match="other"), disk_errors(tmp_path):
        raise ValueError("other")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_what_torch_really_raises_on_a_full_device(tmp_path):
    with pytest.raises(CheckpointError, match="full"), disk_errors(tmp_path):
        torch.save({"w": torch.zeros(1 << 16)}, "/dev/full")
    with pytest.raises(CheckpointError, match="full"), disk_errors(tmp_path):
        Path("/dev/full").write_text("x")


def test_a_checkpoint_that_cannot_fit_is_refused_before_training(tmp_path):
    check_space(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"GiB free.*save_only_model"):
        check_space(tmp_path, 1 << 60)
