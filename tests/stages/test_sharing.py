"""`model.prefix_sharing` in the stages: the same training, what it logs, and its switch."""

from __future__ import annotations

import importlib
import json

import pytest
import torch
from safetensors.torch import load_file

from align.config.load import load_config
from align.config.stages import STAGES
from align.errors import ModelError
from align.run import open_run, read_jsonl
from align.stages.sharing import FILE

COMMON = [
    "trainer.learning_rate=1e-3",
    "trainer.logging_steps=1",
    "trainer.per_device_train_batch_size=4",
    "trainer.max_steps=4",
    "trainer.max_length=96",
    "data.validation_fraction=0.1",
    "tracking.report_to=[none]",
]
KIND = {"sft": "sft", "dpo": "preference", "kto": "preference", "reward": "preference"}
EXTRA = {"reward": ["normalisation.prompts=4", "normalisation.max_new_tokens=8"]}


@pytest.fixture
def launch(tmp_path, policy_dir, data_files):
    """`launch(stage, name, *overrides)`: the run's directory."""

    def run(stage, name, *overrides):
        given = [f"run.dir={tmp_path / name}", f"model.path={policy_dir}", *COMMON]
        given += [f"data.train={data_files[KIND[stage]]}", *EXTRA.get(stage, []), *overrides]
        config = load_config(STAGES[stage], None, given)
        with open_run(config) as opened:
            importlib.import_module(f"align.stages.{stage}").run(config, opened)
        return tmp_path / name

    return run


@pytest.mark.parametrize("stage", KIND)
def test_on_and_off_train_alike(launch, stage):
    runs = {mode: launch(stage, mode, f"model.prefix_sharing={mode}") for mode in ("on", "off")}
    weights = {mode: load_file(run / "model" / "model.safetensors") for mode, run in runs.items()}
    for name, value in weights["off"].items():
        assert torch.allclose(weights["on"][name], value, atol=2e-5), name
    config = json.loads((runs["on"] / "model" / "config.json").read_text())
    assert "align" not in json.dumps(config.get("_attn_implementation", ""))
    rows = {mode: read_jsonl(run / "metrics.jsonl") for mode, run in runs.items()}
    steps = {mode: [row for row in found if "loss" in row] for mode, found in rows.items()}
    for first, second in zip(*steps.values(), strict=True):
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-4, abs=1e-5)
        assert first["speed/tokens_per_second"] > 0
        assert 0 < first["speed/mfu"] < 1
        assert first["speed/computed_share"] <= first["speed/real_share"] < 1
        assert "speed/computed_share" not in second
    assert json.loads((runs["on"] / FILE).read_text()) == {"mode": "on", "plain": {}, "costs": None}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "dpo", "reward"])
def test_a_compiled_model_trains_alike(launch, stage):
    compiled = ["trainer.torch_compile=true", "trainer.torch_compile_backend=aot_eager"]
    runs = {
        "on": launch(stage, "on", "model.prefix_sharing=on", *compiled),
        "off": launch(stage, "off", "model.prefix_sharing=off"),
    }
    weights = {mode: load_file(run / "model" / "model.safetensors") for mode, run in runs.items()}
    assert weights["on"].keys() == weights["off"].keys()
    for name, value in weights["off"].items():
        assert torch.allclose(weights["on"][name], value, atol=2e-5), name
    steps = [row for row in read_jsonl(runs["on"] / "metrics.jsonl") if "loss" in row]
    assert all(row["speed/computed_share"] < 1 for row in steps)


def test_auto_keeps_its_costs_and_a_profile_is_written(launch, capfd):
    run = launch("dpo", "auto", "tracking.profile=true", "trainer.max_steps=3")
    kept = json.loads((run / FILE).read_text())
    assert kept["mode"] == "auto"
    assert kept["costs"]["token"] > 0
    assert "1 steps" in (run / "profile" / "table.txt").read_text()  # the first two are not
    trace = json.loads((run / "profile" / "trace.json").read_text())
    assert any("mm" in str(event.get("name")) for event in trace["traceEvents"])


def test_what_cannot_share_says_so_or_is_refused(launch, capfd):
    eager = "model.attn_implementation=eager"
    run = launch("dpo", "plain", eager, "trainer.max_steps=1")
    said = " ".join(capfd.readouterr().err.split())
    assert "prefix sharing is off (policy: its attention is eager, not sdpa;" in said
    assert list(json.loads((run / FILE).read_text())["plain"]) == ["policy", "reference"]
    virtual = "peft={method: prompt_tuning, kwargs: {num_virtual_tokens: 2}}"
    with pytest.raises(ModelError, match=r"on: the policy cannot.*learnt tokens.*prefix_sharing"):
        launch("sft", "virtual", virtual, "model.prefix_sharing=on")
    with pytest.raises(ModelError, match=r"prefix_sharing=on: LlamaModel cannot.*prefix_sharing"):
        launch("dpo", "refused", eager, "model.prefix_sharing=on")
