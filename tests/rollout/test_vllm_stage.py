"""`align ppo` on a vLLM server of its own that is killed: reported in time, saved, resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The first test may have to install vLLM.
pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(1800)]
REWARD = """
import time


def vowels(prompts, completions, **columns):
    time.sleep(1.0)  # so that the kill finds the run before its end
    return [float(sum(c[-1]["content"].count(x) for x in "aeiou")) for c in completions]
"""


@pytest.fixture
def begin(tmp_path, vllm_python, vllm_llama, tiny_tokenizer, data_files):
    """`begin(resume)`: a running `align ppo` with a server of its own."""
    model = tmp_path / "policy"
    vllm_llama().save_pretrained(model)
    tiny_tokenizer.save_pretrained(model)
    (tmp_path / "slow_vowels.py").write_text(REWARD)
    (tmp_path / "ppo.yaml").write_text(
        f"run: {{dir: run}}\nmodel: {{path: {model}}}\ndata: {{train: {data_files['prompts']}}}\n"
        "reward: [{function: 'slow_vowels:vowels'}]\ntracking: {report_to: [none]}\n"
        f"rollout: {{engine: vllm-server, max_new_tokens: 8, vllm: {{python: {vllm_python}}}}}\n"
        "trainer: {total_episodes: 48, rollout_batch_size: 4, per_device_train_batch_size: 4,\n"
        "  ppo_epochs: 1, save_steps: 100}\n"
    )

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "align.cli", "ppo", "ppo.yaml", *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def logged(run: Path) -> list[int]:
    """The steps that a run has logged."""
    file = run / "metrics.jsonl"
    rows = map(json.loads, file.read_text().splitlines()) if file.is_file() else ()
    return [row["step"] for row in rows if "loss" in row]


def servers(folder: Path) -> list[int]:
    """The processes of a vLLM server that was started in a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_text(errors="replace")
            inside = (path / "cwd").resolve() == folder.resolve()
        except OSError:  # it just ended
            continue
        if inside and "vllm" in words.lower() and "align.cli" not in words:
            found.append(int(path.name))
    return found


def test_a_run_whose_server_is_killed_is_saved_and_resumes(begin, tmp_path):
    process = begin()
    while len(logged(tmp_path / "run")) < 3:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.2)
    running = servers(tmp_path)
    assert running
    for server in running:
        os.kill(server, signal.SIGKILL)
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 11, said
    assert "cannot be reached" in said or "not running" in said
    assert "Continue with the same command and --resume" in said
    done = logged(tmp_path / "run")
    assert len(done) < 12
    (saved,) = (tmp_path / "run" / "checkpoints").glob("checkpoint-*")
    assert saved.name == f"checkpoint-{done[-1]}"

    again = begin("--resume")
    said = again.communicate(timeout=900)[1]
    assert again.returncode == 0, said
    assert logged(tmp_path / "run") == list(range(1, 13))
    assert (tmp_path / "run" / "model" / "MANIFEST.json").is_file()
    assert not servers(tmp_path)
