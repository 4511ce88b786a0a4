"""The command line itself: help, versions, exit statuses, and no traceback for users."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from align import __version__
from align.cli import main

TRAINING = ["sft", "reward", "dpo", "ppo", "evaluate"]
OTHERS = ["report", "quickstart", "generate", "chat", "init", "doctor", "version"]


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = 0
    try:
        main(list(arguments))
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, " ".join(captured.err.split())


def test_version(capsys):
    assert run(capsys, "version")[:2] == (0, __version__ + "\n")


@pytest.mark.parametrize("command", TRAINING + OTHERS)
def test_every_command_has_help(capsys, command):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert "Usage" in out


def test_help_imports_no_torch():
    script = (
        "import sys; from align.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules, 'torch'\n"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=root, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["stf", "x"], 2, "No such command"),
        (["sft", "x.yaml", "--resum"], 2, "No such option"),
        (["sft", "nothing.yaml"], 2, "no such configuration file"),
        (["report"], 2, "Missing argument"),
        (["report", "nothing"], 8, "does not exist"),
        (["generate", "foo/bar/model", "hello"], 4, "foo/bar/model does not exist"),
        (["quickstart", "--seeds", "a"], 2, "not a list of whole numbers"),
        (["init", "nope.json", "--data", "x", "--out", "y"], 2, "nope.json"),
    ],
)
def test_wrong_commands(capsys, monkeypatch, tmp_path, arguments, code, expected):
    monkeypatch.chdir(tmp_path)
    found, out, err = run(capsys, *arguments)
    assert found == code, err
    assert expected in err
    assert "Traceback" not in out + err
    if arguments[0] != "init":  # which makes its empty folder first
        assert not list(tmp_path.iterdir())
