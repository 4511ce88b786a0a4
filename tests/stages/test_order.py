"""What of a curriculum or a sampler is refused, by name, before anything loads."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from align.config.load import load_config
from align.config.stages import STAGES
from align.errors import AlignError, ConfigError, DataError
from align.run import open_run
from align.stages.order_checks import check_order

REWARD = ["reward=[{function: 'math:sqrt'}]"]
ON_POLICY = ("ppo", "online_dpo", "grpo", "rloo")


def config_of(stage: str, *overrides: str, path: str = "no/such"):
    given = [f"model.path={path}", "data.train=rows.jsonl", *overrides]
    return load_config(STAGES[stage], None, given + (REWARD if stage in ON_POLICY else []))


def problems(stage: str, *overrides: str, path: str = "no/such") -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        check_order(config_of(stage, *overrides, path=path))
    return {problem.where: str(problem) for problem in caught.value.problems}


def test_every_problem_is_found_at_once():
    found = problems(
        "sft",
        "data.curriculum={difficulty: lenght, pacing: linear, power: 3, stages: 2, column: x}",
        "data.sampler=[{by: class, half_life: 3}, {by: recency, column: day}, {by: source}]",
        "trainer.packing=true",
        "trainer.train_sampling_strategy=group_by_length",
        "trainer.shuffle_dataset=true",
        "trainer.ignore_data_skip=true",
        "trainer.accelerator_config={split_batches: true}",
    )
    assert list(found) == [
        "data.curriculum.power",
        "data.curriculum.stages",
        "data.curriculum.difficulty",
        "data.curriculum.column",
        "data.sampler.0.half_life",
        "data.sampler.0.column",
        "data.sampler.1.half_life",
        "data.sampler.2.by",
        "trainer.packing",
        "trainer.train_sampling_strategy",
        "trainer.shuffle_dataset",
        "trainer.accelerator_config.split_batches",
        "trainer.ignore_data_skip",
    ]
    assert "length, perplexity, loss, reward_margin, column" in found["data.curriculum.difficulty"]


@pytest.mark.parametrize("stage", ON_POLICY)
def test_adaptive_pacing_needs_a_validation_loss(stage):
    found = problems(stage, "data.curriculum={pacing: adaptive}")
    assert f"{stage} has none" in found["data.curriculum.pacing"]


@pytest.mark.parametrize(
    ("setting", "words"),
    [("data.validation_fraction=0", "nothing is held out"), ("trainer.eval_strategy=no", "is no")],
)
def test_adaptive_pacing_needs_validations(setting, words):
    assert (
        words
        in problems("sft", "data.curriculum={pacing: adaptive}", setting)["data.curriculum.pacing"]
    )


def test_margins_are_of_pairs(policy_dir):
    curriculum = "data.curriculum={difficulty: reward_margin}"
    for stage in ("sft", *ON_POLICY):
        assert "compares two answers" in problems(stage, curriculum)["data.curriculum.difficulty"]
    assert "compares" in str(problems("reward", curriculum, "objective.kind=ratings"))
    check_order(config_of("dpo", curriculum))
    asked = f"data.curriculum={{difficulty: reward_margin, model: {policy_dir}}}"
    assert "asks a reward model" in problems("dpo", asked)["data.curriculum.model"]


def test_models_are_looked_for(tmp_path):
    missing = "data.curriculum={difficulty: perplexity, model: ./nowhere}"
    assert "does not exist" in problems("sft", missing)["data.curriculum.model"]
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForSequenceClassification"]}')
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    judge = f"data.curriculum={{difficulty: perplexity, model: {tmp_path}}}"
    assert "is a reward model" in problems("sft", judge)["data.curriculum.model"]
    loss = f"data.curriculum={{difficulty: loss, model: {tmp_path}}}"
    assert "of two answers" in problems("sft", loss)["data.curriculum.model"]
    check_order(config_of("dpo", loss))


@pytest.mark.parametrize(
    ("section", "where"),
    [
        ("data.curriculum={model: x}", "data.curriculum.model"),
        ("data.curriculum={difficulty: column}", "data.curriculum.column"),
        ("data.curriculum={difficulty: 'no_such_module:f'}", "data.curriculum.difficulty"),
        ("data.sampler={by: uncertainty}", "data.sampler.0.column"),
        ("data.sampler={by: class, column: c, beta: 0.9, power: 2}", "data.sampler.0.power"),
        ("data.sampler={by: recency, column: c, half_life: 1, alpha: 0}", "data.sampler.0.alpha"),
        ("data.sampler={by: difficulty, difficulty: column}", "data.sampler.0.difficulty"),
    ],
)
def test_options_that_do_not_go_together(section, where):
    assert list(problems("sft", section)) == [where]


def test_what_goes_together_passes():
    check_order(
        config_of(
            "sft",
            "data.curriculum={difficulty: column, column: c, pacing: root, power: 3, steps: 9}",
            "data.sampler=[{by: class, column: k, beta: 0.99}, {by: difficulty, power: 2}, "
            "{by: uncertainty, column: u, uniform: 0.2}]",
        )
    )
    check_order(config_of("grpo", "data.train=[a.jsonl, b.jsonl]", "data.sampler={by: source}"))


@pytest.mark.parametrize("section", ["data.curriculum={}", "data.sampler={by: class, column: c}"])
def test_nothing_is_ordered_where_nothing_is_trained(section, policy_dir):
    given = [f"evaluate.models={{a: {policy_dir}}}", "data.train=rows.jsonl", section]
    given.append("judge.function=math:sqrt")
    config = load_config(STAGES["evaluate"], None, given)
    with pytest.raises(ConfigError, match="evaluate trains nothing"):
        importlib.import_module("align.stages.evaluate").run(config, None)


def start(tmp_path: Path, policy_dir: Path, *overrides: str, dry_run: bool = True) -> None:
    given = [f"run.dir={tmp_path / 'run'}", "tracking.report_to=[none]"]
    given += [f"data.train={tmp_path / 'rows.jsonl'}", f"model.path={policy_dir}", *overrides]
    config = load_config(STAGES["sft"], None, given)
    with open_run(config, dry_run=dry_run) as run:
        importlib.import_module("align.stages.sft").run(config, run, dry_run=dry_run)


@pytest.fixture
def rows(tmp_path) -> None:
    lines = [{"prompt": f"{i}?", "completion": "Yes.", "k": "ab"[i % 2]} for i in range(24)]
    lines[7] |= {"k": None, "when": "soon"}
    text = "".join(json.dumps(line | {"u": -1.0}) + "\n" for line in lines)
    (tmp_path / "rows.jsonl").write_text(text)


def test_a_column_that_rows_lack_stops_a_dry_run(rows, tmp_path, policy_dir):
    for column, count in {"k": "1 of 24", "kind": "24 of 24"}.items():
        sampler = f"data.sampler={{by: class, column: {column}}}"
        with pytest.raises(DataError, match=f"{count} training rows have no '{column}'"):
            start(tmp_path, policy_dir, sampler, "data.validation_fraction=0")
    start(tmp_path, policy_dir, "data.curriculum={}")


def test_a_column_of_something_else_is_refused(rows, tmp_path, policy_dir):
    wrong: dict[str, tuple[str, type[AlignError]]] = {
        "data.sampler={by: uncertainty, column: u}": ("data.sampler: u: .* 0 or more", DataError),
        "data.curriculum={difficulty: column, column: prompt}": ("difficulty prompt", DataError),
    }
    for section, (words, kind) in wrong.items():
        with pytest.raises(kind, match=words):
            start(tmp_path, policy_dir, section, "run.overwrite=true", dry_run=False)
