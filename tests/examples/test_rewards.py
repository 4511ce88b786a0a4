"""The reward examples run, and come to what they say."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest
import uvicorn
from fastapi import Body, FastAPI

from align.config import load_config
from align.config.stages import PPOStage
from align.stages.rewards import check_rewards, open_rewards
from reward.serve import listen

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "rewards"
DATA = ROOT.parent / "shared" / "data"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "file", ["rewards/gsm8k_reward.py", "rewards/judge_reward.py", "custom_reward_loop.py"]
)
def test_what_needs_arguments_says_which(file):
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"python examples/{file} " in done.stderr
    assert "Traceback" not in done.stderr


def test_async_reward():
    assert example("async_reward").main() == [1.0, pytest.approx(1 / 3), None]


def test_code_reward():
    scores = example("code_reward").main()
    assert scores == {"right": 1.0, "half right": 0.5, "endless": 0.0, "cheating": 0.0}


@pytest.mark.data
def test_gsm8k_reward(capsys):
    file = DATA / "gsm8k_solutions.jsonl.gz"
    if not file.is_file():
        pytest.skip(f"{file} is missing")
    assert example("gsm8k_reward").main(str(file), most=100) == 1.0
    assert "agrees with people on 400 of 400 solutions" in capsys.readouterr().out


def test_gsm8k_configuration(make_rollout):
    config = load_config(PPOStage, FOLDER / "gsm8k_ppo.yaml")
    check_rewards(config.reward)
    score = open_rewards(config.reward)
    rollout = make_rollout(columns={"answer": ["1 + 1 = 2\n#### 2"] * 4})
    rollout.completions = ["so\n#### 2\n", "so it is 2", "so\n#### 3", "who knows"]
    assert score(rollout)[0] == pytest.approx([1.2, 1.0, 0.2, 0.0])
    score.update = 100
    assert score(rollout)[0] == pytest.approx([1.1, 1.0, 0.1, 0.0])


def test_judge_reward():
    """Against a service that speaks the API and likes long answers."""
    app = FastAPI()

    @app.post("/v1/chat/completions")
    def complete(body: dict = Body()) -> dict:  # noqa: B008 - FastAPI's way
        texts = re.findall(r"<answer\S*>\n(.*?)\n</answer", body["messages"][1]["content"], re.S)
        sizes = [len(text) for text in texts]
        verdict = f"Score: {min(10, 1 + sizes[0] // 6)}"
        if len(sizes) == 2:
            verdict = f"Verdict: {'A' if sizes[0] > sizes[1] else 'B'}"
        return {"choices": [{"message": {"role": "assistant", "content": verdict}}]}

    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        found = example("judge_reward").main(
            f"http://127.0.0.1:{listener.getsockname()[1]}/v1", "any"
        )
    finally:
        server.should_exit = True
        thread.join(10)
    assert found == {"score": [1.0, pytest.approx(2 / 9)], "pairwise": [1.0, 0.0]}
