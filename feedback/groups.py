"""Ends a command together with everything it started.

The command leads a process group (`start_new_session=True`). Waiting for the leader is not enough:
its children hold their port and their memory for a moment longer, and whoever starts anew at once
finds them taken.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time

import psutil

PATIENCE = 10.0  # seconds for each signal
PAUSE = 0.01  # seconds between two looks


def end_group(leader: subprocess.Popen[bytes], *, hard: bool = False) -> None:
    """Ask the group of `leader` to end, then kill it; returns when none of it runs.

    Args:
        leader: started with `start_new_session=True`. May have ended already.
        hard: kill -9 at once.
    """
    for sort in [signal.SIGKILL] if hard else [signal.SIGTERM, signal.SIGKILL]:
        # macOS refuses a signal to a group of which only zombies are left.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader.pid, sort)
        if _gone(leader, time.monotonic() + PATIENCE):
            return


def _gone(leader: subprocess.Popen[bytes], deadline: float) -> bool:
    while leader.poll() is None or living(leader.pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(PAUSE)
    return True


def living(group: int) -> list[int]:
    """The processes of a group that run; those that nobody has reaped hold nothing any more."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == group and _runs(process):
                found.append(process.pid)
    return found


def _runs(process: psutil.Process) -> bool:
    # A process whose first thread has ended looks like a zombie, but its others hold its files.
    return process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1
