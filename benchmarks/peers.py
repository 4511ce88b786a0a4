"""Peers that cannot live beside us: each in a virtual environment of its own, made once.

It is in the user's cache, beside the Label Studio server's, and reused by every later run.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from feedback import environments


def ensure_environment(name: str, requirements: Sequence[str]) -> Path:
    """The Python of an environment with these requirements, installed unless it is there.

    Args:
        name: of its folder; another name for other requirements.
        requirements: for one call of pip.

    Raises:
        InstallError: the installation failed; nothing half-made stays behind.
    """
    steps = [["-m", "pip", "install", "-q", *requirements]]
    return environments.ensure_environment(name, "\n".join(requirements), steps, print)


def run_script(python: Path, script: Path, job: Path, threads: int) -> dict[str, Any]:
    """Run a peer's script on a job; the JSON of the line it printed last.

    Raises:
        RuntimeError: it failed; the message holds the end of its output.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [str(python), str(script), str(job)],
        capture_output=True,
        text=True,
        check=False,
        env=kept | {"OMP_NUM_THREADS": str(threads)},
    )
    if done.returncode:
        raise RuntimeError(f"{script.name} failed: {done.stderr.strip()[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def peer_versions(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """What is installed in a peer's environment."""
    ask = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in "
    done = subprocess.run(
        [str(python), "-c", ask + "sys.argv[1:]}))", *packages],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found
