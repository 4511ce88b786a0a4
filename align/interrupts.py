"""What ends a command from outside, before and after training."""

from __future__ import annotations

import signal
from contextlib import suppress
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM, where Ctrl-C would raise `KeyboardInterrupt`: whatever handles one handles both.

    A class of its own, because CPython remembers a plain `KeyboardInterrupt` that passes through
    `exec` of a string, as dataclasses do on import, and then ends `python -m` by SIGINT although
    the exception was handled: the exit status would be -2 or 130 by chance.
    """


def end_on_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does; in a thread not the main one, do nothing."""
    with suppress(ValueError):
        signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
