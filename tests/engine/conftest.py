"""What the tests of trainers on several processes share."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from align.engine.launch import launch_command

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def on_two_processes() -> Callable[[list[str], Path], None]:
    """`on_two_processes(arguments, folder)`: a command of Python's over gloo, to its end."""

    def run(arguments: list[str], folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = launch_command("cpu2", [], processes=2, main_port=port)
        start = command[: command.index("--module")]
        preset = start.index("--config_file") + 1
        start[preset] = str((ROOT / start[preset]).resolve())
        done = subprocess.run(
            [*start, *arguments],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=800,
            check=False,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]

    return run
