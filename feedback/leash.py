"""Runs a command that must not outlive its owner: `python leash.py COMMAND...`.

The owner holds the other end of standard input. When it closes, because the owner stopped or was
killed, the whole process group goes. A server that outlives a killed run would keep its port, and
vLLM's its GPU memory. Imports nothing but the standard library, so that it starts at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

GRACE = 10.0  # seconds between asking and killing


def main() -> int:
    """Run the command until it ends or the owner goes; its exit status."""
    # Who is asked to end asks the whole group: the command ends by itself, and this after it. A
    # handler, not SIG_IGN, which the command would inherit.
    signal.signal(signal.SIGTERM, lambda *_: None)
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=_wait_for_owner, args=(child,), daemon=True).start()
    code = child.wait()
    return code if code >= 0 else 128 - code


def _wait_for_owner(child: subprocess.Popen[bytes]) -> None:
    while os.read(0, 1024):  # the owner never writes: only the end of the file comes
        pass
    child.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(GRACE)
    # This process leads the group; its grandchildren (vLLM's engine, say) are in it.
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
