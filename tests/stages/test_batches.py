"""`data.batches: grouped`: what is refused, by name and together, and what the data card says."""

from __future__ import annotations

import importlib
import json

import pytest

from align.config.load import load_config
from align.config.stages import STAGES
from align.errors import ConfigError
from align.run import open_run
from align.selftrain.checks import check_selftrain
from align.stages.order_checks import check_order

GROUPED = "data.batches=grouped"
REWARD = ["reward=[{function: 'math:sqrt'}]"]
ON_POLICY = ("ppo", "online_dpo", "grpo", "rloo")


def config_of(stage: str, *overrides: str, path: str = "no/such"):
    given = [f"model.path={path}", "data.train=rows.jsonl", GROUPED, *overrides]
    return load_config(STAGES[stage], None, given + (REWARD if stage in ON_POLICY else []))


def problems(stage: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check_order(config_of(stage, *overrides))
    return [str(problem) for problem in caught.value.problems]


def test_every_problem_is_found_at_once():
    found = problems(
        "sft",
        "data.curriculum={pacing: linear, power: 3}",
        "data.sampler={by: class, column: kind}",
        "trainer.packing=true",
        "trainer.train_sampling_strategy=group_by_length",
        "trainer.shuffle_dataset=true",
        "trainer.dataloader_drop_last=true",
        "trainer.per_device_train_batch_size=1",
        "trainer.accelerator_config={split_batches: true}",
    )
    assert len(found) == 9
    text = "\n".join(found)
    for words in (
        "data.curriculum.power",
        "data.batches: grouped is an order of the rows, and data.curriculum is another",
        "data.batches: grouped is an order of the rows, and data.sampler is another",
        "trainer.packing: joins rows into blocks",
        "(data.curriculum, data.sampler, data.batches)",
        "trainer.train_sampling_strategy: group_by_length",
        "trainer.shuffle_dataset",
        "trainer.dataloader_drop_last: leaves rows of the smallest prompts out",
        "trainer.per_device_train_batch_size: is 1",
        "trainer.accelerator_config.split_batches",
    ):
        assert words in text


def test_alone_it_names_itself():
    (found,) = problems("dpo", "trainer.train_sampling_strategy=sequential")
    assert "an order of the rows (data.batches)" in found


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_stages_on_given_rows_take_it(stage):
    check_order(config_of(stage))
    check_order(config_of(stage, "trainer.per_device_train_batch_size=2"))


@pytest.mark.parametrize("stage", ON_POLICY)
def test_stages_on_own_samples_refuse_it(stage):
    (found,) = problems(stage)
    assert f"data.batches: grouped is of sft, reward, dpo, and the stage is {stage}" in found


def test_another_word_is_refused():
    with pytest.raises(ConfigError, match=r"data\.batches.*'random' or 'grouped'"):
        config_of("dpo", "data.batches=sorted")


def test_an_evaluation_and_a_loop_refuse_it(policy_dir):
    given = [f"evaluate.models={{a: {policy_dir}}}", "data.train=rows.jsonl", GROUPED]
    config = load_config(STAGES["evaluate"], None, [*given, "judge.function=math:sqrt"])
    with pytest.raises(ConfigError, match=r"data\.batches: evaluate trains nothing"):
        importlib.import_module("align.stages.evaluate").run(config, None)
    config = load_config(
        STAGES["selftrain"], None, [f"model.path={policy_dir}", *given[1:], *REWARD]
    )
    with pytest.raises(ConfigError, match=r"data\.batches: is grouped, but which rows train"):
        check_selftrain(config)


def start(tmp_path, policy_dir, lines, *overrides, dry_run=True):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = [f"run.dir={tmp_path / 'run'}", f"data.train={tmp_path / 'rows.jsonl'}", GROUPED]
    given += [f"model.path={policy_dir}", "data.validation_fraction=0", *overrides]
    config = load_config(STAGES["sft"], None, [*given, "tracking.report_to=[none]"])
    with open_run(config, dry_run=dry_run) as run:
        importlib.import_module("align.stages.sft").run(config, run, dry_run=dry_run)
    return tmp_path / "run"


def test_rows_without_a_prompt_stop_a_dry_run(tmp_path, policy_dir):
    with pytest.raises(ConfigError, match=r"data\.batches: grouped reads prompts, .*text alone"):
        start(tmp_path, policy_dir, [{"text": f"Row {i}."} for i in range(4)])


def test_the_card_counts_prompts_and_what_grouping_changes(tmp_path, policy_dir, capfd):
    lines = [{"prompt": f"{i % 4}?", "completion": f"Yes {i}."} for i in range(8)]
    lines.append({"prompt": "Alone?", "completion": "No."})
    size = "trainer.per_device_train_batch_size=2"
    run = start(tmp_path, policy_dir, lines, size, "trainer.max_steps=1", dry_run=False)
    found = json.loads((run / "data_card.json").read_text())["order"]["batches"]
    assert found == {
        "prompts": 5,
        "prompts_of_several_rows": 4,
        "batch_size": 2,
        # pairs of one prompt and the lone row; by chance 1 pair in 9 or so
        "prompts_per_batch": {"grouped": 1.0, "random": round((4 * (2 - 4 / 36) + 1) / 5, 2)},
    }
    said = " ".join(capfd.readouterr().err.split())
    assert "4 of 5 prompts have several rows; a batch of 2 has 1 prompts on average" in said
