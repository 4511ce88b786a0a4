"""Real processes: signals, a directory in use, and a disk that fills up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from align.engine.checkpoint import list_checkpoints, verify

pytestmark = [pytest.mark.integration, pytest.mark.slow]
LONG = ["trainer.max_steps=120", "trainer.save_strategy=no"]


def start(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        [sys.executable, "-m", "align.cli", *arguments],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 480
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end, "the process did not get there in eight minutes"
        time.sleep(0.02)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signal_checkpoints_and_resume_finishes(name, stage, cli, tmp_path):
    arguments = stage("sft", *LONG)
    run = tmp_path / "run-sft"
    process = start(arguments, tmp_path)
    try:
        wait_for(lambda: (run / "metrics.jsonl").is_file(), process)
        if name == "SIGTERM":  # the directory belongs to one process at a time
            second = cli(*arguments)
            assert second.code == 8
            assert f"in use by process {process.pid}" in second.text
            assert json.loads((run / "run.json").read_text())["status"] == "running"
        process.send_signal(getattr(signal, name))
        output = process.communicate(timeout=300)[0]
    finally:
        process.kill()
    assert process.returncode == 130, output
    assert f"stopped by {name}" in output
    assert "--resume" in output
    assert "Traceback" not in output
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "interrupted"
    (checkpoint,) = list_checkpoints(run / "checkpoints")
    verify(checkpoint)
    step = int(checkpoint.name.split("-")[1])
    assert 1 <= step < 120

    assert cli(*arguments).code == 8  # not without --resume
    finished = cli(*arguments, "--resume")
    assert finished.code == 0, finished.text
    assert f"checkpoint-{step}" in finished.text
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "completed"
    assert record["results"]["steps"] == 120
    assert len(record["resumed"]) == 1
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged if "loss" in row] == list(range(1, 121))


def test_sigterm_before_training_leaves_a_record(stage, tmp_path):
    arguments = stage("sft")
    process = start(arguments, tmp_path)
    file = tmp_path / "run-sft" / "run.json"
    try:
        wait_for(file.is_file, process)
        process.send_signal(signal.SIGTERM)
        output = process.communicate(timeout=300)[0]
    finally:
        process.kill()
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert json.loads(file.read_text())["status"] == "interrupted"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A mounted file system of a given size; skips where mounting is not allowed."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        folder = tmp_path / f"disk-{size}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            pytest.skip(f"cannot mount a small disk: {error}")
        if done.returncode:
            pytest.skip(f"cannot mount a small disk: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def test_no_room_for_one_checkpoint_is_refused_before_training(stage, cli, small_disk):
    folder = small_disk("256k")
    result = cli(*stage("sft", f"run.dir={folder / 'run'}"))
    assert result.code == 7, result.text
    assert "a checkpoint needs about" in result.text
    assert "free space, set run.dir elsewhere" in result.text
    assert not list_checkpoints(folder / "run" / "checkpoints")


def test_disk_fills_up_while_training(stage, cli, small_disk):
    folder = small_disk("2m")
    keep_all = ["trainer.save_steps=1", "trainer.save_total_limit=50", "trainer.max_steps=20"]
    result = cli(*stage("sft", f"run.dir={folder / 'run'}", *keep_all))
    assert result.code == 7, result.text
    assert "is full" in result.text
    assert "free space or move run.dir, then --resume" in result.text
    verify(folder / "run" / "checkpoints" / "checkpoint-1")  # what was complete stays so


def test_disk_full_of_other_things(stage, cli, small_disk):
    folder = small_disk("64k")
    with pytest.raises(OSError, match="No space left"):
        (folder / "other").write_bytes(b"0" * (1 << 20))
    result = cli(*stage("sft", f"run.dir={folder / 'run'}"))
    assert result.code == 7, result.text
    assert "is full" in result.text
