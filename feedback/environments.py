"""Virtual environments in the user's cache, for programs that cannot live beside us, and packages.

Each is made once, whole or not at all; two processes that ask at once wait for one another. Leaves
out what is installed: the callers say (Label Studio, vLLM's CPU build, a benchmark's peer).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

STAMP = "installed"  # a file that says what is, once all of it is


class InstallError(Exception):
    """A step of an installation failed; its text holds the step and what it printed last."""


def cached_folder(name: str) -> Path:
    """Where the environment of that name is, or will be."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "align" / name


def cached_python(name: str, content: str) -> Path | None:
    """The Python of an environment whose installation was completed with that content."""
    folder = cached_folder(name)
    python, stamp = folder / "bin" / "python", folder / STAMP
    if not python.is_file() or not stamp.is_file():
        return None
    return python if stamp.read_text(encoding="utf-8") == content else None


def ensure_environment(
    name: str,
    content: str,
    steps: Sequence[Sequence[str]],
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Make an environment unless it is there; returns its Python.

    Args:
        name: of its folder in the cache.
        content: what is in it, as text; another content installs anew.
        steps: arguments of its Python, one after the other, such as `-m pip install ...`.
        say: is told before the installation begins.

    Raises:
        InstallError: a step failed; nothing half-made stays behind.
    """
    folder = cached_folder(name)
    python = folder / "bin" / "python"
    commands = [[sys.executable, "-m", "venv", str(folder)]]
    commands += [[str(python), *step] for step in steps]
    with _alone(folder):
        if cached_python(name, content) is None:
            say(f"installing {name} into {folder} (once; several minutes)")
            _make(folder, content, commands)
    return python


def ensure_packages(name: str, requirements: Sequence[str]) -> Path:
    """Put packages for this Python into a folder, for the PYTHONPATH of what needs them.

    So that they are not seen by everything else, as they would be once installed.

    Args:
        name: of the folder in the cache.
        requirements: for pip; what they need themselves has to be named, or be here already.

    Raises:
        InstallError: pip failed; nothing half-made stays behind.
    """
    folder = cached_folder(name)
    content = "\n".join([sys.version, *requirements])
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    with _alone(folder):
        stamp = folder / STAMP
        if not stamp.is_file() or stamp.read_text(encoding="utf-8") != content:
            _make(folder, content, [[*pip, "--no-deps", "--target", str(folder), *requirements]])
    return folder


def _make(folder: Path, content: str, commands: Sequence[Sequence[str]]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            said = done.stderr.strip()[-600:]
            raise InstallError(f"`{' '.join(command[1:])[:120]}` said: {said}")
    (folder / STAMP).write_text(content, encoding="utf-8")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a lock beside a folder; the system lets go of it when the process ends."""
    import fcntl  # not on Windows, where none of these programs runs

    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(folder.name + ".lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
