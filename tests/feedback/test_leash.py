"""A command on a leash ends with whoever started it, kill -9 included."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from feedback import leash


def alive(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as stream:
            return stream.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_owner_takes_its_command_along(tmp_path):
    note = str(tmp_path / "pid")
    child = f"import os, time; open({note!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    owner = (
        "import subprocess, sys, time; subprocess.Popen([sys.executable, "
        f"{leash.__file__!r}, sys.executable, '-c', {child!r}], stdin=subprocess.PIPE, "
        "start_new_session=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", owner])
    deadline = time.monotonic() + 300
    while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    server = int((tmp_path / "pid").read_text())
    assert alive(server)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while alive(server):
        assert time.monotonic() < deadline
        time.sleep(0.1)
