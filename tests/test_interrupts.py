"""SIGTERM ends a command with the same status wherever it arrives."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from align.interrupts import end_on_sigterm

COMMAND = """
import os, signal, sys, time
from align.interrupts import end_on_sigterm

end_on_sigterm()
try:
    exec("os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)")  # as inside a dataclass decorator
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_sigterm_inside_exec_leaves_the_status_of_the_command(tmp_path):
    (tmp_path / "command.py").write_text(COMMAND)
    root = str(Path(__file__).resolve().parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "command"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": root},
        timeout=300,
        check=False,
    )
    assert done.returncode == 130


def test_a_thread_installs_nothing_and_does_not_fail():
    failures: list[BaseException] = []

    def install() -> None:
        try:
            end_on_sigterm()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=install)
    thread.start()
    thread.join()
    assert failures == []
