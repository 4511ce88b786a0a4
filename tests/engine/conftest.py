"""What tests on several processes share: a launch over gloo, and DeepSpeed where it is wanted."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from align.engine.launch import launch_command
from feedback.environments import ensure_packages
from feedback.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
VERSION = "0.19.8"
NEEDS = ("einops", "hjson", "msgpack", "py-cpuinfo")  # ninja compiles operators: none is wanted


@pytest.fixture(scope="session")
def deepspeed_folder() -> Path:
    """Where DeepSpeed can be imported from.

    Where it is installed, accelerate imports it in every process, which takes seconds and prints.
    """
    here = importlib.util.find_spec("deepspeed")
    if here is not None and here.origin is not None:
        return Path(here.origin).parents[1]
    return ensure_packages(f"deepspeed-{VERSION}", [f"deepspeed=={VERSION}", *NEEDS])


@pytest.fixture
def on_two_processes() -> Callable[[list[str], Path], None]:
    """`on_two_processes(arguments, folder)`: a command of Python's over gloo, to its end."""

    def run(arguments: list[str], folder: Path) -> None:
        command = launch_command("cpu2", [], processes=2, main_port=free_port())
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
