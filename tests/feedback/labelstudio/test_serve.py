"""`align feedback serve`: what it leaves behind when it ends, and what it keeps to itself."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from feedback.labelstudio.server import healthy
from feedback.ports import free_port

# The first test may have to install the server.
pytestmark = [pytest.mark.labelstudio, pytest.mark.timeout(1800)]


def command_lines() -> dict[int, list[str]]:
    """What every process of this machine was started with."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found[int(path.parent.name)] = path.read_text(errors="replace").split("\0")
        except OSError:  # it just ended
            continue
    return found


def servers(port: int) -> list[int]:
    """The processes of a Label Studio server at a port, not of `align`."""
    return [
        process
        for process, words in command_lines().items()
        if "--internal-host" in words and str(port) in words
    ]


def until(condition, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def next_lines(process: subprocess.Popen[str], last: str) -> str:
    """What a command prints up to the line that holds `last`; the test's time-out ends the wait."""
    said = ""
    for line in process.stdout:
        said += line
        if last in line:
            return said
    raise AssertionError(said)


@pytest.fixture
def serve(tmp_path):
    """`serve(port)`: a running `align feedback serve` on a folder of the test's own."""
    running = []

    def call(port: int, *arguments: str) -> subprocess.Popen[str]:
        given = ["feedback", "serve", "--data", str(tmp_path / "ls"), "--port", str(port)]
        code = f"from align.cli import main; main({[*given, *arguments]!r})"
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running.append(process)
        return process

    yield call
    for process in running:
        if process.poll() is None:
            process.terminate()
            process.wait(30)


def test_nobody_else_may_read_the_folder_or_the_token(server):
    assert stat.S_IMODE(server.folder.stat().st_mode) == 0o700
    secrets = (server.login.token, server.login.password)
    lines = command_lines()
    assert servers(server.port)
    assert not [words for words in lines.values() if any(s in w for s in secrets for w in words)]


def test_its_database_lets_people_write_at_the_same_time(server):
    """Proof that the server runs with our settings and not with Label Studio's own."""
    with sqlite3.connect(server.folder / "label_studio.sqlite3") as database:
        assert database.execute("pragma journal_mode").fetchone() == ("wal",)


def test_a_server_ends_with_its_command(serve, tmp_path):
    """Interrupted while it starts; on another port, dying by itself."""
    login, first, second = tmp_path / "ls" / "login.json", free_port(), free_port()
    starting = serve(first)
    until(lambda: servers(first))
    starting.send_signal(signal.SIGTERM)
    assert starting.wait(30) == 130
    assert not servers(first)
    kept = json.loads(login.read_text())

    (tmp_path / "ls").chmod(0o755)  # as an older version left it
    running = serve(second, "--host", "0.0.0.0")
    url = f"http://127.0.0.1:{second}"
    said = next_lines(running, "Ctrl-C stops the server")
    assert healthy(url)
    assert json.loads(login.read_text()) == kept | {"url": url}
    assert stat.S_IMODE((tmp_path / "ls").stat().st_mode) == 0o700
    assert stat.S_IMODE(login.stat().st_mode) == 0o600
    for process in servers(second):
        os.kill(process, signal.SIGKILL)
    said += running.communicate(timeout=300)[0]
    assert running.returncode == 10
    assert f"Label Studio: {url}" in said
    assert "from other machines: http://" in said
    assert re.search(r"ended by itself \((-9|137)\)\. Its log", said)


def test_a_killed_command_takes_its_server_along(serve):
    port = free_port()
    running = serve(port)
    next_lines(running, "Ctrl-C stops the server")
    running.kill()
    until(lambda: not servers(port), 30)
    assert not healthy(f"http://127.0.0.1:{port}")
