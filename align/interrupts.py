"""What ends a command from outside, before and after training."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from align.errors import Interrupted


class Terminated(KeyboardInterrupt):
    """SIGTERM, where Ctrl-C would raise `KeyboardInterrupt`: whatever handles one handles both.

    A class of its own, because CPython remembers a plain `KeyboardInterrupt` that passes through
    `exec` of a string, as dataclasses do on import, and then ends `python -m` by SIGINT although
    the exception was handled: the exit status would be -2 or 130 by chance.
    """


@contextmanager
def told_when_stopped(stage: str, run: Path | None, named: str | None) -> Iterator[None]:
    """Say what was stopped outside a trainer's steps, and how to go on.

    Args:
        stage: its name.
        run: its run directory; None: there is nothing to go on with.
        named: `run.dir` of its configuration; a directory that was not named must be, to resume.

    Raises:
        Interrupted: in the place of `KeyboardInterrupt`.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        what = f"{stage} was stopped by {'SIGTERM' if isinstance(error, Terminated) else 'Ctrl-C'}"
        if run is None:
            raise Interrupted(f"{what}; nothing was written.") from error
        given = "" if named else f" and run.dir={run}"
        raise Interrupted(
            f"{what}; what it had finished is in {run}. Continue with the same command, "
            f"--resume{given}."
        ) from error


def end_on_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does; in a thread not the main one, do nothing."""
    with suppress(ValueError):
        signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
