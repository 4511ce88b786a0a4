"""`align reward serve` beside `align reward CONFIG`: the command itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from align.cli import main
from reward.functions import call_reward
from reward.remote import RemoteReward
from reward.serve import listen


def test_the_command(tmp_path):
    (tmp_path / "served.py").write_text(
        "def words(completions, **columns):\n    return [len(c.split()) for c in completions]\n"
        "def ones(completions, **columns):\n    return [1.0 for _ in completions]\n"
    )
    command = [
        sys.executable,
        "-m",
        "align.cli",
        "reward",
        "serve",
        "served:words",
        "one=served:ones",
    ]
    root = str(Path(__file__).resolve().parents[1])
    process = subprocess.Popen(
        [*command, "--port", "0"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        url, _, names = line.partition(" serves ")
        assert names == "words, one\n", line + process.stderr.read()
        assert call_reward(RemoteReward(url, reward="words"), ["p"], ["two words"]) == [2.0]
        assert call_reward(RemoteReward(url, reward="one"), ["p"], ["two words"]) == [1.0]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) in (0, 130)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["serve", "nowhere/model"], 2, "no reward model"),
        (["serve", "gone:function"], 5, "importing module 'gone' failed"),
        (["serve"], 2, "Missing argument 'TARGETS...'"),
        (["serve", "math:sqrt", "math:sqrt"], 2, "two are named 'sqrt'"),
        (["nothing.yaml"], 2, "no such configuration file"),
        (["train", "nothing.yaml"], 2, "no such configuration file"),
        (["--dry-run"], 2, "Missing argument 'CONFIG'"),
        ([], 2, "Missing argument 'CONFIG'"),
    ],
)
def test_wrong_commands(capsys, monkeypatch, tmp_path, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    extra = ["--port", "0"] if arguments[:1] == ["serve"] else []
    with pytest.raises(SystemExit) as ended:
        main(["reward", *arguments, *extra])
    assert ended.value.code == code
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_taken_port_is_told(capsys):
    with listen("127.0.0.1", 0) as taken, pytest.raises(SystemExit) as ended:
        main(["reward", "serve", "math:sqrt", "--port", str(taken.getsockname()[1])])
    assert ended.value.code == 5
    assert "Address already in use" in capsys.readouterr().err


def test_a_port_that_is_none_is_told(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["reward", "serve", "math:sqrt", "--port", "70000"])
    assert ended.value.code == 2
    assert "less than or equal to 65535" in " ".join(capsys.readouterr().err.split())


def test_help_shows_both(capsys):
    with pytest.raises(SystemExit):
        main(["reward", "--help"])
    out = capsys.readouterr().out
    assert "CONFIG [OVERRIDES]" in out
    assert "serve" in out
    assert "Train a reward model" in out
