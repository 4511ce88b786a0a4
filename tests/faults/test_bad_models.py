"""Models that cannot be trained: damaged, without a tokenizer or a base, or of another kind."""

from __future__ import annotations

import json
import shutil

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from align.stages.preflight import model_fault

pytestmark = pytest.mark.integration
STAGES = ("sft", "reward", "dpo", "ppo")


@pytest.mark.parametrize("name", STAGES)
def test_nan_weights(name, stage, cli, unreadable):
    result = cli(*stage(name, f"model.path={unreadable}"))
    assert result.code == 4, result.text
    assert "model.norm.weight holds NaN" in result.text


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("spoilt", ["config", "tokenizer", "weights", "half", "shape"])
def test_damaged_models(name, spoilt, stage, cli, copy_model, spoil):
    folder = copy_model()
    weights = folder / "model.safetensors"
    expected = str(folder)
    if spoilt == "config":
        (folder / "config.json").unlink()
        expected = "there is no config.json"
    elif spoilt == "tokenizer":
        for file in folder.glob("tokenizer*"):
            file.unlink()
        expected = "holds no tokenizer"
    elif spoilt == "weights":
        weights.unlink()
        expected = "holds no weights"
    elif spoilt == "half":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
        expected = "model.safetensors is cut short"
    else:
        spoil(folder, "model.norm.weight", torch.ones(16))
        expected = "do not fit its config.json"
    result = cli(*stage(name, f"model.path={folder}"))
    assert result.code == 4, result.text
    assert expected in result.text
    assert str(folder) in result.text
    assert "Fix:" in result.text


def test_an_adapter_whose_base_is_gone(stage, cli, copy_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base, lora = copy_model("models/base"), tmp_path / "lora"
    model = AutoModelForCausalLM.from_pretrained("models/base")
    peft.get_peft_model(model, peft.LoraConfig()).save_pretrained(lora)
    assert model_fault(str(lora)) is None
    assert model_fault("lora") is None
    for file in base.glob("tokenizer*"):
        file.rename(lora / file.name)
    assert model_fault("lora") is None  # it brings its own
    shutil.copytree(lora, tmp_path / "upper")
    settings = json.loads((lora / "adapter_config.json").read_text())
    on_lora = json.dumps(settings | {"base_model_name_or_path": "lora"})
    (tmp_path / "upper" / "adapter_config.json").write_text(on_lora)
    assert model_fault("upper") is None
    base.rename(tmp_path / "bare")
    result = cli(*stage("dpo", f"model.path={tmp_path / 'upper'}"))
    assert result.code == 4, result.text
    assert "upper is an adapter on lora, which is an adapter on models/base, which " in result.text
    assert "or change base_model_name_or_path in its adapter_config.json" in result.text
    (lora / "adapter_config.json").write_text(on_lora.replace('"lora"', '"upper"'))
    assert "which stands on it" in model_fault("upper")[0]


def test_a_reward_model_without_a_tokenizer(stage, cli, reward_model, tmp_path):
    folder = tmp_path / "reward"
    shutil.copytree(reward_model, folder)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    result = cli(*stage("ppo", f"reward=[{{path: {folder}}}]"))
    assert result.code == 2, result.text
    assert f"{folder} holds no tokenizer" in result.text
    assert "save_pretrained" in result.text


def test_missing_model_offers_the_nearest(stage, cli, world):
    result = cli(*stage("sft", f"model.path={world.folder / 'modle'}", "--dry-run"))
    assert result.code == 4
    assert f"did you mean {world.model}?" in result.text


def test_reward_model_is_no_policy(stage, cli, reward_model):
    for name in ("sft", "dpo", "ppo"):
        result = cli(*stage(name, f"model.path={reward_model}"))
        assert result.code == 4, result.text
        assert "language-model head is gone" in result.text


def test_tokenizers(stage, cli, copy_model, world):
    folder = copy_model("plain")
    (folder / "chat_template.jinja").unlink()
    result = cli(*stage("sft", f"model.path={folder}", f"data.train={world.chat}"))
    assert result.code == 4
    assert "no chat template, but the data are conversations" in result.text

    settings = json.loads((folder / "tokenizer_config.json").read_text())
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({k: v for k, v in settings.items() if k != "eos_token"}))
    result = cli(*stage("sft", f"model.path={folder}"))
    assert result.code == 4
    assert "has no EOS token" in result.text

    file.write_text(json.dumps(settings | {"pad_token": settings["eos_token"]}))
    result = cli(*stage("sft", f"model.path={folder}"))
    assert result.code == 0, result.text  # PAD becomes a token of its own
