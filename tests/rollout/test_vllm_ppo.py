"""PPO through our trainer with either vLLM sampler: weights arrive, and the reward rises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from align.rollout.vllm_environment import environment_variables

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(1800)]

SCRIPT = Path(__file__).with_name("ppo_script.py")


@pytest.fixture
def run(tmp_path, vllm_llama, tiny_tokenizer):
    def script(python, engine: str, *more: str) -> list[dict[str, list[float]]]:
        vllm_llama().save_pretrained(tmp_path / "policy")
        tiny_tokenizer.save_pretrained(tmp_path / "policy")
        done = subprocess.run(
            [str(python), str(SCRIPT), str(tmp_path), engine, *more],
            env=environment_variables(),
            capture_output=True,
            text=True,
            timeout=1200,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads((tmp_path / f"{engine}.json").read_text())

    return script


def assert_learns(found: dict[str, list[float]]) -> None:
    rewards = found["reward/mean"]
    assert len(rewards) == 12
    assert sum(rewards[-3:]) / 3 > 1.5 * sum(rewards[:3]) / 3
    assert max(found["rollout/probe_gap"]) < 1e-4


def test_colocated_ppo_learns(run, vllm_python):
    runs = run(vllm_python, "vllm")
    for found in runs:
        assert_learns(found)
        assert max(found["rollout/sampler_gap"]) < 1e-3  # the sampler has the policy's weights
        assert set(found["rollout/age"]) == {0.0}


def test_ppo_on_a_server_learns(run, vllm_server):
    *runs, ahead = run(sys.executable, "vllm-server", vllm_server.url)
    for found in runs:
        assert_learns(found)
        assert max(found["rollout/sampler_gap"]) < 1e-3
    assert_learns(ahead)
    assert ahead["rollout/age"] == [0.0] + [1.0] * 11
    assert max(ahead["rollout/sampler_gap"][1:]) > 1e-3  # drawn before the last update
