"""What a finished stage leaves behind, for plain runs and adapters alike."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from align.config.load import load_config
from align.config.stages import STAGES
from align.engine.checkpoint import verify
from align.engine.head import policy_logprobs
from align.engine.models import load_causal_lm
from align.errors import Interrupted
from align.run import open_run, read_jsonl
from reward.model import RewardModel

KIND = {"sft": "sft", "reward": "preference", "dpo": "preference", "ppo": "prompts"}
LORA = "peft={method: lora, kwargs: {r: 2, target_modules: [q_proj, v_proj]}}"
SETTINGS = {
    "sft": ["trainer.max_length=96"],
    "dpo": ["trainer.max_length=96"],
    "reward": [
        "trainer.max_length=96",
        "normalisation.prompts=4",
        "normalisation.max_new_tokens=8",
    ],
    "ppo": [
        "trainer.rollout_batch_size=8",
        "trainer.ppo_epochs=2",  # 4 steps an update
        "trainer.total_episodes=8",
        "reward=[{function: 'long_words:length'}]",
        "rollout.max_new_tokens=8",
    ],
}


@pytest.fixture
def launch(tmp_path, policy_dir, data_files, monkeypatch):
    (tmp_path / "long_words.py").write_text(
        "import os, signal\nCALLS = []\n\n\ndef length(prompts, completions, **columns):\n"
        "    return [float(len(c[-1]['content'])) for c in completions]\n\n\n"
        "def length_and_stop(prompts, completions, **columns):\n"
        "    CALLS.append(1)\n"
        "    if len(CALLS) == 2:\n        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return length(prompts, completions)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(stage: str, *overrides: str, name: str | None = None, resume: bool = False) -> Path:
        place = tmp_path / (name or stage)
        given = [
            f"run.dir={place}",
            f"model.path={policy_dir}",
            f"data.train={data_files[KIND[stage]]}",
            "data.validation_fraction=0.2",
            "trainer.per_device_train_batch_size=4",
            "trainer.max_steps=4",
            "trainer.learning_rate=1e-2",
            "trainer.logging_steps=1",
            "tracking.report_to=[none]",
            *SETTINGS[stage],
            *overrides,
        ]
        config = load_config(STAGES[stage], None, given)
        with open_run(config, resume=resume) as opened:
            importlib.import_module(f"align.stages.{stage}").run(config, opened, resume=resume)
        return place

    return run


@pytest.mark.parametrize("stage", ["sft", "dpo", "ppo"])
def test_an_adapter_trains_saves_and_loads_merged(launch, stage, policy_dir, make_rollout):
    run = launch(stage, LORA)
    verify(run / "model")
    assert (run / "model" / "adapter_model.safetensors").is_file()
    rollout = make_rollout()
    trained = policy_logprobs(load_causal_lm(run / "model"), rollout)
    start = policy_logprobs(load_causal_lm(policy_dir), rollout)
    assert (trained - start).abs().max() > 1e-4


def test_a_reward_adapter_ends_as_a_standard_reward_model(launch):
    run = launch("reward", LORA)
    model = RewardModel.load(run / "model")
    assert model.normalisation is not None
    assert model.normalisation.samples == 4
    prompt = [{"role": "user", "content": "Hi"}]
    scores = model([prompt] * 2, [[{"role": "assistant", "content": c}] for c in ("a", "bcd")])
    assert scores[0] != scores[1]
    results = json.loads((run / "run.json").read_text())["results"]
    assert 0.0 <= results["validation"]["accuracy"] <= 1.0


def test_ppo_on_an_sft_adapter_starts_there(launch, policy_dir, make_rollout):
    """LoRA on LoRA: with a learning rate of 0 the result is the first stage's."""
    sft = launch("sft", LORA)
    ppo = launch("ppo", LORA, f"model.path={sft / 'model'}", "trainer.learning_rate=0.0")
    rollout = make_rollout()
    wanted = policy_logprobs(load_causal_lm(sft / "model"), rollout)
    found = policy_logprobs(load_causal_lm(ppo / "model"), rollout)
    assert torch.allclose(found, wanted, atol=1e-5)
    start = policy_logprobs(load_causal_lm(policy_dir), rollout)
    assert (start - wanted).abs().max() > 1e-4


def test_ppo_with_adapters_resumes_bitwise(launch):
    straight = launch("ppo", LORA, name="straight")
    reward = "reward=[{function: 'long_words:length_and_stop'}]"  # stops in the first update
    with pytest.raises(Interrupted):
        launch("ppo", LORA, reward, name="stopped")
    state = load_file(next(Path("stopped/checkpoints").iterdir()) / "model.safetensors")
    assert not any("base_layer" in n for n in state if n.startswith("policy"))  # frozen: left out
    stopped = launch("ppo", LORA, reward, name="stopped", resume=True)
    first = load_file(straight / "model" / "adapter_model.safetensors")
    second = load_file(stopped / "model" / "adapter_model.safetensors")
    assert all(torch.equal(first[n], second[n]) for n in first)


def test_sft_measures_validation_and_test_rows_apart(launch):
    run = launch("sft", "data.test_fraction=0.2")
    results = json.loads((run / "run.json").read_text())["results"]
    assert results["validation"]["eval_loss"] > 0
    assert results["test"]["test_loss"] > 0
    assert results["validation"]["eval_loss"] != results["test"]["test_loss"]


def test_dpo_starts_with_margin_0_and_keeps_the_chosen_log_probability(launch):
    run = launch("dpo")
    rows = [r for r in read_jsonl(run / "metrics.jsonl") if "rewards/margins" in r]
    assert rows[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    assert rows[-1]["rewards/margins"] != pytest.approx(0.0, abs=1e-5)
    assert "chosen_logprob_change" in json.loads((run / "run.json").read_text())


def test_ppo_shows_samples_before_and_after(launch):
    run = launch("ppo")
    rows = read_jsonl(run / "samples.jsonl")
    assert rows
    assert all(set(row["completions"]) == {"before", "after"} for row in rows)
    assert any(row["completions"]["before"] != row["completions"]["after"] for row in rows)
