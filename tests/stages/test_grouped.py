"""`align grpo` and `align rloo`: what they leave behind, their reference, and what they refuse."""

from __future__ import annotations

import copy
import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config

from align.config.load import load_config
from align.config.sections import RewardSourceSection
from align.config.stages import STAGES
from align.engine.checkpoint import verify
from align.engine.head import policy_logprobs
from align.engine.models import load_causal_lm
from align.errors import ConfigError, DataError, ModelError, RewardError
from align.ppo.trl_reward import TRLReward
from align.report import build_report
from align.run import open_run, read_jsonl
from align.stages import grouped, grouped_checks
from align.stages.rewards import open_rewards

LORA = "peft={method: lora, kwargs: {r: 2, target_modules: [q_proj, v_proj]}}"
REWARDS = """
SEEN = []

def length(prompts, completions, **columns):
    return [float(len(c[-1]["content"])) for c in completions]

async def vowels(completions):
    return [float(sum(c[-1]["content"].count(x) for x in "aeiou")) for c in completions]

def broken(prompts, completions, **columns):
    return [1.0]

def columns_of(prompts, completions, completion_ids, trainer_state, **columns):
    SEEN.append((trainer_state.global_step, sorted(columns), columns.get("number")))
    return [float(len(ids)) for ids in completion_ids]
"""


@pytest.fixture
def records() -> list[dict[str, Any]]:
    """What run.json holds, also of dry runs, which leave nothing behind."""
    return []


@pytest.fixture
def launch(tmp_path, policy_dir, data_files, monkeypatch, records) -> Callable[..., Path]:
    (tmp_path / "grouped_words.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(stage: str, *overrides: str, dry_run: bool = False) -> Path:
        place = tmp_path / f"run-{stage}"
        given = [
            f"run.dir={place}",
            "run.overwrite=true",
            f"model.path={policy_dir}",
            f"data.train={data_files['prompts']}",
            "data.validation_fraction=0.2",
            "reward=[{function: 'grouped_words:length'}]",
            "trainer.num_generations=4",
            "trainer.per_device_train_batch_size=8",
            "trainer.max_completion_length=6",
            "trainer.learning_rate=1e-2",
            "trainer.max_steps=2",
            "trainer.logging_steps=1",
            "trainer.beta=0.1",
            "trainer.save_strategy=no",
            "tracking.report_to=[none]",
            *overrides,
        ]
        config = load_config(STAGES[stage], None, given)
        with open_run(config, dry_run=dry_run) as opened:
            module = importlib.import_module(f"align.stages.{stage}")
            module.run(config, opened, dry_run=dry_run)
            records.append(dict(opened.record))
            return opened.path

    return run


@pytest.fixture
def unreadable(policy_dir, tmp_path) -> Path:
    """A model that ends the run with exit code 4 as soon as its weights are loaded."""
    folder = Path(shutil.copytree(policy_dir, tmp_path / "unreadable"))
    file = folder / "model.safetensors"
    weights = load_file(file) | {"model.norm.weight": torch.full((32,), float("nan"))}
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def metrics(run: Path) -> list[dict[str, Any]]:
    return [row for row in read_jsonl(run / "metrics.jsonl") if "reward/mean" in row]


@pytest.mark.parametrize("stage", ["grpo", "rloo"])
def test_a_run_leaves_a_model_metrics_samples_and_a_report(launch, stage, policy_dir, make_rollout):
    run = launch(
        stage,
        "reward=[{function: 'grouped_words:length', weight: 0.5}, "
        "{function: 'grouped_words:vowels', normalise: group, schedule: {to: 0, updates: 2}}, "
        "{function: 'grouped_words:length', name: held_out, gold: true}]",
    )
    verify(run / "model")
    rows = metrics(run)
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["kl/reference"] == pytest.approx(0.0, abs=1e-5)
    assert [row["reward_weight/vowels"] for row in rows] == [1.0, 0.5]
    for row in rows:
        assert row["gold/held_out"] == row["reward/length"]
        # Normalised in its group, vowels adds nothing to the mean.
        assert row["reward/mean"] == pytest.approx(0.5 * row["reward/length"], abs=1e-5)
        assert 0 <= row["rollout/repetition"] < 1
        assert not any(key.startswith("rewards/") for key in row)
    rollout = make_rollout()
    trained, start = load_causal_lm(run / "model"), load_causal_lm(policy_dir)
    difference = policy_logprobs(trained, rollout) - policy_logprobs(start, rollout)
    assert difference.abs().max() > 1e-3
    samples = read_jsonl(run / "samples.jsonl")
    assert all(set(row["completions"]) == {"before", "after"} for row in samples)
    record = json.loads((run / "run.json").read_text())
    assert [parent["role"] for parent in record["parents"]] == ["data", "model"]
    assert not (run / "reference").exists()  # the policy's own directory serves
    page = build_report([run], run / "report.html")
    assert "held_out" in Path(page).read_text()


@pytest.mark.parametrize("stage", ["grpo", "rloo"])
def test_an_adapter_on_an_adapter_has_the_start_for_reference(launch, stage, tmp_path):
    """The first stage's adapter moves the policy; the KL of the second starts at 0 all the same."""
    first = launch(stage, LORA, "trainer.learning_rate=0.3", f"run.dir={tmp_path / 'first'}")
    assert (first / "model" / "adapter_model.safetensors").is_file()
    assert metrics(first)[1]["kl/reference"] != pytest.approx(0.0, abs=1e-3)
    second = launch(stage, LORA, f"model.path={first / 'model'}")
    assert metrics(second)[0]["kl/reference"] == pytest.approx(0.0, abs=1e-4)


def test_a_merged_adapter_is_written_for_trl_to_read(launch, tmp_path, make_rollout):
    first = launch("grpo", LORA, "trainer.learning_rate=0.3", f"run.dir={tmp_path / 'first'}")
    run = launch("grpo", f"model.path={first / 'model'}")
    assert metrics(run)[0]["kl/reference"] == pytest.approx(0.0, abs=1e-4)
    rollout = make_rollout()
    wanted = policy_logprobs(load_causal_lm(first / "model"), rollout)
    found = policy_logprobs(load_causal_lm(run / "reference"), rollout)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_an_end_of_turn_of_the_templates_own_ends_answers_and_is_learnt(
    launch, policy_dir, tiny_tokenizer, tmp_path, monkeypatch
):
    """The token is new to the model as well: its vocabulary grows, and the reference's with it."""
    folder = Path(shutil.copytree(policy_dir, tmp_path / "own"))
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|eot|>"]})
    tokenizer.chat_template = tokenizer.chat_template.replace("eos_token", "'<|eot|>'")
    tokenizer.save_pretrained(folder)
    built, build = [], grouped.build_trainer
    monkeypatch.setattr(
        grouped, "build_trainer", lambda *a, **k: built.append(build(*a, **k)) or built[0]
    )
    run = launch("grpo", f"model.path={folder}")
    end = tokenizer.convert_tokens_to_ids("<|eot|>")
    assert {end, tokenizer.eos_token_id} <= set(built[0].eos_token_ids)
    assert built[0].ref_model.get_input_embeddings().num_embeddings == end + 1
    assert metrics(run)[0]["kl/reference"] == pytest.approx(0.0, abs=1e-4)
    saved = json.loads((run / "model" / "generation_config.json").read_text())
    assert end in saved["eos_token_id"]


def test_a_wrong_reference_is_found_before_the_first_step(launch, monkeypatch):
    build = grouped.build_trainer

    def spoil(*args: Any, **kwargs: Any) -> Any:
        trainer = build(*args, **kwargs)
        with torch.no_grad():
            trainer.ref_model.model.norm.weight += 0.5
        return trainer

    monkeypatch.setattr(grouped, "build_trainer", spoil)
    with pytest.raises(ModelError, match=r"step-0 check: policy and reference differ by up to"):
        launch("grpo")


def test_reward_functions_get_what_trl_gives_them(launch, tmp_path):
    rows = [
        {"prompt": [{"role": "user", "content": f"Question {n} is here"}], "number": n}
        for n in range(12)
    ]
    file = tmp_path / "numbered.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    launch("grpo", f"data.train={file}", "reward=[{function: 'grouped_words:columns_of'}]")
    import grouped_words

    trained = [seen for seen in grouped_words.SEEN if len(seen[2]) == 8]
    assert [step for step, *_ in trained] == [0, 1]
    for _, columns, numbers in trained:
        assert "number" in columns
        assert numbers[:4] == [numbers[0]] * 4  # a group's lie side by side


def test_only_completions_that_train_move_the_running_statistics(launch, monkeypatch):
    opened = []
    monkeypatch.setattr(
        grouped, "open_rewards", lambda sections: opened.append(open_rewards(sections)) or opened[0]
    )
    launch(
        "grpo",
        "reward=[{function: 'grouped_words:length', normalise: running}]",
        "trainer.eval_strategy=steps",
        "trainer.eval_steps=1",
        "trainer.per_device_eval_batch_size=4",
    )
    assert opened[0].statistics["length"].count == 2 * 8


def test_evaluation_is_logged_under_the_same_names(launch):
    run = launch(
        "rloo",
        "trainer.eval_strategy=steps",
        "trainer.eval_steps=2",
        "trainer.per_device_eval_batch_size=4",
    )
    (row,) = [r for r in read_jsonl(run / "metrics.jsonl") if "eval_reward/mean" in r]
    assert row["eval_reward/length"] == pytest.approx(row["eval_reward/mean"])
    assert "eval_kl/reference" in row


def test_a_dry_run_trains_nothing_and_counts_the_reference(launch, records):
    for beta in (0.1, 0.0):
        assert not launch("grpo", f"trainer.beta={beta}", dry_run=True).exists()
    held, free = (record["results"]["memory"] for record in records)
    assert held["reference"] == held["weights"] > 0
    assert free["reference"] == held["critic"] == 0


REFUSED = {
    "loss": (["trainer.loss_type=grop"], r"trainer\.loss_type: 'grop' is not known.*dr_grpo"),
    "top_p": (["trainer.top_p=0.9"], r"trainer\.top_p: 0\.9 changes the distribution"),
    "kwargs": (["trainer.generation_kwargs={top_k: 5}"], r"trainer\.top_k: 5 changes"),
    "room": (["trainer.max_completion_length=128"], r"128 leaves no room.*context of 128"),
    "groups": (["trainer.num_generations=3"], r"must be divisible by num_generations"),
    "one": (["trainer.num_generations=1"], r"requires at least 2 generations"),
    "weights": (["trainer.reward_weights=[2.0]"], r"trainer\.reward_weights: is set in the"),
    "sync": (["trainer.sync_ref_model=true", "trainer.beta=0"], r"no reference to move: beta"),
    "prefix": (
        ["peft={method: prefix_tuning, kwargs: {num_virtual_tokens: 4}}"],
        r"virtual tokens of prefix_tuning",
    ),
    "reward": (["reward=[{path: no/where}]"], r"reward\.0\.path: no reward model"),
    "gold": (["reward=[{function: 'a:b', gold: true}]"], r"nothing is left to train on"),
}


@pytest.mark.parametrize(("overrides", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_configurations_are_refused_before_the_weights(launch, unreadable, overrides, says):
    with pytest.raises(ConfigError, match=says):
        launch("grpo", f"model.path={unreadable}", *overrides)


def test_truncation_is_refused_in_rloo_even_with_vllm():
    """GRPO corrects for the sampler's distribution where vLLM reports it; RLOO has nothing."""
    common = {"generation_kwargs": None, "max_completion_length": 8, "sync_ref_model": False}
    common |= {"use_vllm": True, "top_p": 0.9, "top_k": 0, "min_p": None, "beta": 0.1}
    args = SimpleNamespace(**common, repetition_penalty=1.0)
    with pytest.raises(ConfigError, match="top_p"):
        grouped_checks.check_options(args, 64, peft=False)
    args.vllm_importance_sampling_correction = True
    grouped_checks.check_options(args, 64, peft=False)
    assert not hasattr(trl.RLOOConfig, "vllm_importance_sampling_correction")


def test_groups_that_processes_would_split_are_not_normalised_in():
    sections = [
        RewardSourceSection(function="a:b"),
        RewardSourceSection(function="a:c", normalise="group"),
    ]
    args = SimpleNamespace(per_device_train_batch_size=2, steps_per_generation=3)
    args.num_generations, args.world_size = 4, 2
    with pytest.raises(ConfigError, match=r"reward\.1\.normalise: group, but each of 2 processes"):
        grouped_checks.check_whole_groups(sections, args)
    for change in ({"world_size": 1}, {"steps_per_generation": 4}):
        grouped_checks.check_whole_groups(sections, SimpleNamespace(**vars(args) | change))
    grouped_checks.check_whole_groups(sections[:1], args)


def test_fewer_prompts_than_a_batch_takes(launch, unreadable, data_files):
    few = f"data.train=[{{path: {data_files['prompts']}, limit: 2}}]"
    with pytest.raises(DataError, match=r"2 prompts are fewer than.*need 4.*Fix"):
        launch(
            "grpo",
            f"model.path={unreadable}",
            few,
            "data.validation_fraction=0",
            "trainer.per_device_train_batch_size=16",
        )


def test_a_reward_that_is_wrong_is_named(launch):
    with pytest.raises(RewardError, match="'broken' returned 1 rewards, but 28 completions"):
        launch("grpo", "reward=[{function: 'grouped_words:broken'}]")


def test_absolute_positions_are_refused(launch, tiny_tokenizer, tmp_path):
    config = GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=128, vocab_size=len(tiny_tokenizer)
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gpt2")
    tiny_tokenizer.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel by up to.*absolute positions"):
        launch("grpo", f"model.path={tmp_path / 'gpt2'}")


def test_schedules_count_batches_of_completions():
    seen = []

    class Scorer:
        update, trainer_state = 0, None

        def __call__(self, rollout: Any, *, learn: bool) -> tuple[list[float], dict[str, float]]:
            seen.append((self.update, learn))
            return [0.0] * len(rollout), {}

    reward = TRLReward(Scorer(), steps_per_rollout=4.0, learning=lambda: len(seen) < 2)
    for step in (0, 4, 8):
        state = SimpleNamespace(global_step=step)
        reward(["p"], ["c"], [[1, 2]], state, lambda name, value: None, log_extra=print)
    assert seen == [(0, True), (1, True), (2, False)]
