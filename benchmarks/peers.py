"""Peers that cannot live beside us: each in a virtual environment of its own, made once.

It is in the user's cache, beside the Label Studio server's, and reused by every later run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def ensure_environment(name: str, requirements: Sequence[str]) -> Path:
    """The Python of an environment with these requirements, installed unless it is there.

    Args:
        name: of its folder; another name for other requirements.
        requirements: for one call of pip.

    Raises:
        RuntimeError: the installation failed; nothing half-made stays behind.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(cache) / "align" / name
    python, done = folder / "bin" / "python", folder / "installed"
    wanted = "\n".join(requirements)
    if done.is_file() and done.read_text(encoding="utf-8") == wanted and python.is_file():
        return python
    print(f"installing {name} into {folder} (once; some minutes)", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for step in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "-q", *requirements],
    ):
        ended = subprocess.run(step, capture_output=True, text=True, check=False)
        if ended.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            raise RuntimeError(
                f"installing {name} failed: {ended.stderr.strip()[-400:]}. Fix: check the network "
                f"and that {', '.join(requirements)} can be had for this platform."
            )
    done.write_text(wanted, encoding="utf-8")
    return python


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
