"""Every stage end to end through the command line on a tiny model: what it leaves behind."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

pytestmark = [pytest.mark.integration, pytest.mark.slow]
STAGES = ("sft", "reward", "dpo", "ppo")
METRIC = {"sft": "loss", "reward": "accuracy", "dpo": "rewards/margins", "ppo": "reward/mean"}


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", STAGES)
def test_a_run_directory_is_complete(name, stage, cli, world, tmp_path):
    result = cli(*stage(name))
    assert result.code == 0, result.text
    folder = tmp_path / f"run-{name}"
    found = record(folder)
    assert (found["status"], found["stage"], found["seed"]) == ("completed", name, 3)
    assert found["versions"]["trl"].startswith("1.16")
    assert "git" in found
    parents = {parent["role"]: parent for parent in found["parents"]}
    assert re.fullmatch("[0-9a-f]{16}", parents["model"]["fingerprint"])
    assert re.fullmatch("[0-9a-f]{16}", parents["data"]["fingerprint"])
    assert found["results"]["steps"] >= 2
    assert yaml.safe_load((folder / "config.yaml").read_text())["stage"] == name
    assert json.loads((folder / "data_card.json").read_text())
    assert any(METRIC[name] in row for row in metrics(folder))
    assert (folder / "model" / "MANIFEST.json").is_file()
    assert list((folder / "tensorboard").rglob("events.*"))
    if name == "ppo":
        rows = [json.loads(x) for x in (folder / "samples.jsonl").read_text().splitlines()]
        assert rows
        assert set(rows[0]["completions"]) == {"before", "after"} == set(rows[0]["scores"])
        assert (folder / "value" / "value.safetensors").is_file()
    if name == "reward":
        saved = json.loads((folder / "model" / "config.json").read_text())
        assert saved["align_reward"]["samples"] == 4
        assert found["results"]["validation"]["n"] == 7

    again = cli(*stage(name), "--resume")  # nothing left to do
    assert again.code == 0, again.text
    assert record(folder)["results"]["steps"] == found["results"]["steps"]
    page = tmp_path / "report.html"
    result = cli("report", folder, "-o", page)
    assert result.code == 0, result.text
    assert "<html" in page.read_text()


@pytest.mark.parametrize("name", STAGES)
def test_dry_run_checks_and_leaves_nothing(name, stage, cli, tmp_path):
    result = cli(*stage(name), "--dry-run")
    assert result.code == 0, result.text
    assert "nothing trained" in result.text
    assert "memory" in result.text
    assert not (tmp_path / f"run-{name}").exists()


def test_rewards_that_compare_the_answers_of_a_prompt(stage, cli, tmp_path):
    (tmp_path / "beside.py").write_text(
        "def beside(prompts, completions, **columns):\n"
        "    assert prompts[::2] == prompts[1::2], 'an answer stands alone'\n"
        "    sizes = [len(str(c)) for c in completions]\n"
        "    rivals = [sizes[row ^ 1] for row in range(len(sizes))]\n"
        "    return [float(a > b) for a, b in zip(sizes, rivals)]\n"
    )
    settings = ["trainer.advantage=rloo", "trainer.group_size=2"]
    result = cli(*stage("ppo", *settings, reward=[{"function": "beside:beside"}]))
    assert result.code == 0, result.text
    lines = (tmp_path / "run-ppo" / "samples.jsonl").read_text().splitlines()
    shown = [str(json.loads(line)["prompt"]) for line in lines]
    assert len(shown) == len(set(shown)) > 1


@pytest.mark.parametrize("name", STAGES)
def test_lora(name, stage, cli, tmp_path):
    result = cli(*stage(name, "peft.method=lora", "peft.kwargs={r: 4}"))
    assert result.code == 0, result.text
    model = tmp_path / f"run-{name}" / "model"
    if name == "reward":  # merged: a standard model that PPO can load
        assert (model / "config.json").is_file()
        return
    assert (model / "adapter_config.json").is_file()
    following = cli(*stage("dpo", f"model.path={model}", f"run.dir={tmp_path / 'next'}"))
    assert following.code == 0, following.text  # starts from the merged adapter


@pytest.mark.parametrize("name", STAGES)
def test_frozen_names_that_are_none_are_refused_before_weights(name, stage, cli, hollow_model):
    result = cli(*stage(name, f"model.path={hollow_model}", "model.freeze=['lyers']"))
    assert result.code == 2, result.text
    assert "model.freeze: 'lyers' matches no parameter" in result.text


@pytest.mark.parametrize("name", STAGES)
def test_frozen_weights_stay(name, stage, cli, world, tmp_path):
    result = cli(*stage(name, "model.freeze=['embed_tokens', 'layers.0.']"))
    assert result.code == 0, result.text
    before = load_file(world.model / "model.safetensors")
    after = load_file(tmp_path / f"run-{name}" / "model" / "model.safetensors")
    moved = {k for k in before.keys() & after.keys() if not torch.equal(before[k], after[k])}
    assert moved
    assert not {k for k in moved if "embed_tokens" in k or "layers.0." in k}


@pytest.mark.parametrize("name", STAGES)
def test_ewc_from_data(name, stage, cli, world, tmp_path):
    rows = world.prefs if name in ("reward", "dpo") else world.sft
    guards = [{"type": "ewc", "strength": 5.0, "data": str(rows), "samples": 4}]
    result = cli(*stage(name, guards=guards))
    assert result.code == 0, result.text
    folder = tmp_path / f"run-{name}"
    logged = [row["guard/ewc"] for row in metrics(folder) if "guard/ewc" in row]
    assert logged[0] == 0  # the anchor is where training starts
    assert logged[-1] > 0
    artefact = folder / "guards" / "ewc-0-start.safetensors"
    guards = [{"type": "ewc", "strength": 5.0, "artefact": str(artefact)}]
    result = cli(*stage(name, f"run.dir={tmp_path / 'second'}", guards=guards))
    assert result.code == 0, result.text
    second = [row["guard/ewc"] for row in metrics(tmp_path / "second") if "guard/ewc" in row]
    assert second == pytest.approx(logged)


OPTIONS = {
    "neftune": ["trainer.neftune_noise_alpha=5"],
    "packing": ["trainer.packing=true", "trainer.max_length=64"],
    "prefix": ["peft.method=prefix_tuning", "peft.kwargs={num_virtual_tokens: 4}"],
    "float32, not compiled": ["model.dtype=float32", "trainer.torch_compile=false"],
    "bfloat16": ["model.dtype=bfloat16"],
    "no validation": ["data.validation_fraction=0", "trainer.eval_strategy=epoch"],
    "test split": ["data.test_fraction=0.2"],
    "not tracked": ["tracking.report_to=none"],
}


@pytest.mark.parametrize("option", OPTIONS)
def test_sft_options(option, stage, cli, tmp_path):
    result = cli(*stage("sft", *OPTIONS[option]))
    assert result.code == 0, result.text
    folder = tmp_path / "run-sft"
    assert all(torch.isfinite(torch.tensor(r["loss"])) for r in metrics(folder) if "loss" in r)
    assert (folder / "tensorboard").exists() == (option != "not tracked")
    if option == "test split":
        assert "test_loss" in record(folder)["results"]["test"]


def test_passed_through_options_change_the_result(stage, cli, tmp_path):
    assert cli(*stage("sft")).code == 0
    assert cli(*stage("sft", *OPTIONS["neftune"], f"run.dir={tmp_path / 'noisy'}")).code == 0
    assert metrics(tmp_path / "run-sft")[0]["loss"] != metrics(tmp_path / "noisy")[0]["loss"]


def test_dpo_with_an_nll_term(stage, cli, tmp_path):
    result = cli(*stage("dpo", "trainer.loss_type=[sigmoid, sft]"))
    assert result.code == 0, result.text
    assert metrics(tmp_path / "run-dpo")[0]["loss"] > 1  # log 2 alone without the term


def test_ppo_with_two_rewards_and_a_warm_critic(stage, cli, reward_model, tmp_path):
    reward = [
        {"function": "tiny_rewards:place", "weight": 2.0},
        {"path": str(reward_model), "weight": 0.5},
    ]
    result = cli(*stage("ppo", f"value.init={reward_model}", reward=reward))
    assert result.code == 0, result.text
    first = next(row for row in metrics(tmp_path / "run-ppo") if "reward/mean" in row)
    name = reward_model.parent.name
    total = 2 * first["reward/place"] + 0.5 * first[f"reward/{name}"]
    assert first["reward/mean"] == pytest.approx(total, abs=1e-5)
    roles = [parent["role"] for parent in record(tmp_path / "run-ppo")["parents"]]
    assert "reward" in roles


@pytest.mark.parametrize("name", ["sft", "ppo"])
def test_conversations(name, stage, cli, world, reward_model):
    reward = {"reward": [{"path": str(reward_model)}]} if name == "ppo" else {}
    result = cli(*stage(name, f"data.train={world.chat}", **reward))
    assert result.code == 0, result.text


def test_from_sft_to_an_evaluation_report(stage, cli, world, tmp_path):
    assert cli(*stage("sft")).code == 0
    start = tmp_path / "run-sft" / "model"
    assert cli(*stage("reward", f"model.path={start}")).code == 0
    judge = tmp_path / "run-reward" / "model"
    assert cli(*stage("dpo", f"model.path={start}")).code == 0
    reward = [{"path": str(judge)}]
    assert cli(*stage("ppo", f"model.path={start}", reward=reward)).code == 0
    file = tmp_path / "evaluate.yaml"
    models = {"sft": str(start)} | {n: str(tmp_path / f"run-{n}" / "model") for n in ("dpo", "ppo")}
    config = {
        "run": {"dir": str(tmp_path / "evaluation")},
        "evaluate": {"models": models, "prompts": 6}
        | {"reward_model": str(judge), "preferences": str(world.prefs)},
        "data": {"train": str(world.prompts), "validation_fraction": 0.3},
        "judge": {"path": str(judge)},
        "rollout": {"max_new_tokens": 6},
    }
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    result = cli("evaluate", file)
    assert result.code == 0, result.text
    found = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert found["baseline"] == "sft"
    assert {rate["a"] for rate in found["win_rates"]} == {"dpo", "ppo"}
    assert found["reward_model"]["n"] > 0
    lineage = record(tmp_path / "evaluation")["parents"]
    assert {Path(parent["run"]).name for parent in lineage} == {"run-sft", "run-dpo", "run-ppo"}
    runs = [tmp_path / f"run-{name}" for name in STAGES] + [tmp_path / "evaluation"]
    assert cli("report", *runs, "-o", tmp_path / "all.html").code == 0
    text = (tmp_path / "all.html").read_text()
    assert all(name in text for name in ("dpo", "ppo", "reward"))
    result = cli(
        "generate", start, "Where is a lamp?", "--max-new-tokens", 4, "--output", "g.jsonl"
    )
    assert result.code == 0, result.text
    assert len((tmp_path / "g.jsonl").read_text().splitlines()) == 1
