"""A group is over when all of it is: ports and memory can be taken again at once."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest

from feedback import groups
from feedback.groups import end_group, living

# Its memory takes the kernel some milliseconds to give back, and the port comes after. Its first
# thread is a zombie before the others have ended.
SERVER = """
import os, signal, socket, sys, threading, time
for _ in range(8):
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
listening = socket.create_server(("127.0.0.1", 0))
ballast = bytearray(os.urandom(4096)) * 50_000
note = open(sys.argv[1] + ".part", "w")
note.write(str(listening.getsockname()[1]))
note.close()
os.replace(note.name, sys.argv[1])
time.sleep(600)
"""
LEADER = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"


def start(folder, kind):
    note = folder / "port"
    command = [sys.executable, "-c", LEADER, SERVER, str(note), kind]
    leader = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 60
    while not note.is_file() or not note.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return leader, int(note.read_text())


@pytest.mark.parametrize("hard", [False, True])
def test_a_port_is_free_when_its_group_has_ended(tmp_path, hard):
    leader, port = start(tmp_path, "polite")
    assert leader.pid in living(leader.pid)
    assert len(living(leader.pid)) == 2
    end_group(leader, hard=hard)
    with socket.create_server(("127.0.0.1", port)):
        assert not living(leader.pid)
    assert leader.returncode is not None


def test_who_does_not_listen_is_killed_though_its_leader_has_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(groups, "PATIENCE", 0.5)
    leader, _ = start(tmp_path, "deaf")
    began = time.monotonic()
    end_group(leader)
    assert time.monotonic() - began > 0.5
    assert not living(leader.pid)


def test_a_group_that_has_ended_already_is_no_error():
    leader = subprocess.Popen([sys.executable, "-c", ""], start_new_session=True)
    leader.wait()
    end_group(leader)
    end_group(leader, hard=True)


def test_the_dead_that_nobody_buries_are_not_waited_for(tmp_path):
    """In a container whose first process reaps nobody, orphans stay zombies."""
    code = f"import os; os.fork() or os._exit(0); open({str(tmp_path / 'on')!r}, 'w'); input()"
    leader = subprocess.Popen(
        [sys.executable, "-c", code], start_new_session=True, stdin=subprocess.PIPE
    )
    while not (tmp_path / "on").exists():
        time.sleep(0.01)
    while living(leader.pid) != [leader.pid]:
        time.sleep(0.01)
    assert len([p for p in os.listdir("/proc") if group_of(p) == leader.pid]) == 2
    end_group(leader, hard=True)


def group_of(process):
    try:
        return os.getpgid(int(process))
    except (ValueError, ProcessLookupError):
        return None
