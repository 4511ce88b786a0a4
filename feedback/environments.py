"""Virtual environments in the user's cache, for programs that cannot live beside us.

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


class InstallError(Exception):
    """A step of an installation failed; its text holds the step and what it printed last."""


def cached_folder(name: str) -> Path:
    """Where the environment of that name is, or will be."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "align" / name


def cached_python(name: str, content: str) -> Path | None:
    """The Python of an environment whose installation was completed with that content."""
    folder = cached_folder(name)
    python, stamp = folder / "bin" / "python", folder / "installed"
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
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(folder.name + ".lock")):
        python = cached_python(name, content)
        if python is not None:
            return python
        say(f"installing {name} into {folder} (once; several minutes)")
        shutil.rmtree(folder, ignore_errors=True)
        python = folder / "bin" / "python"
        commands = [[sys.executable, "-m", "venv", str(folder)]]
        commands += [[str(python), *step] for step in steps]
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                shutil.rmtree(folder, ignore_errors=True)
                said = done.stderr.strip()[-600:]
                raise InstallError(f"`{' '.join(command[1:])[:120]}` said: {said}")
        (folder / "installed").write_text(content, encoding="utf-8")
        return python


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold a lock file; the system lets go of it when the process ends."""
    import fcntl  # not on Windows, where none of these programs runs

    with file.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
