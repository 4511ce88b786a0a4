"""`align reward` on every kind of judgement, through the command line, to a standard model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from align.config.sections import DataSection
from align.data import load_splits
from reward.losses import tie_start
from reward.process import ProcessReward, load_reward

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def rows_for(kind: str) -> list[dict[str, Any]]:
    """40 prompts each; what names the place is better."""
    rows: list[dict[str, Any]] = []
    for place in range(40):
        prompt = f"Where is thing {place}? "
        good, fair, bad = f"It is in Oslo, {place}.", "In Oslo perhaps.", "No idea."
        made: dict[str, dict[str, Any]] = {
            "rankings": {"prompt": prompt, "responses": [bad, good, fair], "order": [1, 2, 0]},
            "tied": {"prompt": prompt, "responses": [bad, good, fair], "ranks": [2, 1, 1]},
            "ratings": {
                "prompt": prompt,
                "completion": good if place % 2 else bad,
                "scores": {"helpful": 6 if place % 2 else 2, "honest": 7 - place % 3},
            },
            "steps": {
                "prompt": prompt,
                "completions": [fair, good if place % 2 else bad],
                "labels": [True, bool(place % 2)],
            },
            "hard": {"prompt": prompt, "chosen": good, "rejected": bad},
            "pairs": {
                "prompt": prompt,
                "chosen": good,
                "rejected": bad,
                "soft_label": 0.5 if place % 4 == 0 else 1.0,
            },
        }
        rows.append(made[kind])
    return rows


@pytest.fixture
def train(stage, cli, tmp_path) -> Callable[..., dict[str, Any]]:
    """Run `align reward` on rows with an objective; the record of the run."""

    def run(kind: str, objective: dict[str, Any], *more: str, steps: int = 4) -> dict[str, Any]:
        data = tmp_path / f"{kind}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows_for(kind)))
        arguments = stage(
            "reward",
            data={"train": str(data), "validation_fraction": 0.25},
            objective=objective,
            trainer={"max_steps": steps, "learning_rate": 1e-3, "logging_steps": 1},
        )
        result = cli(*arguments, *more)
        assert result.code == 0, result.text
        record: dict[str, Any] = json.loads((tmp_path / "run-reward" / "run.json").read_text())
        return record

    return run


def standard(folder: Path) -> Any:
    """The model as any other tool loads it."""
    model, info = AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model


@pytest.mark.parametrize("loss", ["plackett-luce", "pairs-of-answers", "pairs-of-rankings"])
def test_rankings(loss, train, tmp_path):
    record = train("rankings", {"kind": "rankings", "loss": loss}, steps=12)
    found = record["results"]["validation"]
    assert found["accuracy"] == 1.0  # three fixed texts are easily told apart
    assert found["n"] == 3 * found["rankings"]
    assert found["kendall_tau"] == pytest.approx(1.0)
    assert record["results"]["loss"] == loss
    assert standard(tmp_path / "run-reward" / "model").config.num_labels == 1


def test_ratings_become_one_head_and_keep_their_aspects(train, tmp_path):
    weights = {"helpful": 0.8, "honest": 0.2}
    record = train("ratings", {"kind": "ratings", "aspects": weights}, steps=30)
    folder = tmp_path / "run-reward" / "model"
    found = record["results"]["validation"]
    assert found["aspects"]["helpful"]["spearman"] > 0.8
    assert set(found["aspects"]) == set(weights)
    model = standard(folder)
    with safe_open(folder / "aspects.safetensors", "pt") as saved:
        assert json.loads(saved.metadata()["aspects"]) == list(weights)
        heads = saved.get_tensor("weight")
    mix = torch.tensor(list(weights.values())) @ heads
    assert torch.allclose(model.score.weight[0], mix, atol=1e-6)


def test_several_heads_are_an_ensemble_on_one_trunk(train, cli, tmp_path):
    record = train("pairs", {"heads": 3})
    folder = tmp_path / "run-reward" / "model"
    assert standard(folder).config.num_labels == 3
    reward = load_reward(folder)
    heads = reward.heads_scores(["Where is it? "], ["In Oslo."])
    assert heads.shape == (3, 1)
    assert float(heads.mean()) == pytest.approx(reward.score(["Where is it? "], ["In Oslo."])[0])
    assert record["normalisation"]["std"] > 0
    logged = (tmp_path / "run-reward" / "metrics.jsonl").read_text()
    assert "disagreement" in logged


def train_rows(folder: Path) -> list[dict[str, Any]]:
    """What the run of rows of `pairs` trained on."""
    section = DataSection.model_validate(
        {"train": str(folder / "pairs.jsonl"), "validation_fraction": 0.25}
    )
    found: list[dict[str, Any]] = load_splits(section, "preference").train.to_list()
    return found


@pytest.mark.parametrize("loss", ["rao-kupper", "davidson"])
def test_ties_are_an_outcome(loss, train, tmp_path):
    record = train("pairs", {"loss": loss, "balance": 1.0})
    start = tie_start(float(np.mean([row["soft_label"] == 0.5 for row in train_rows(tmp_path)])))
    moved = abs(record["results"]["tie_parameter"] - start)
    assert moved > 0.005  # four steps at a rate of its own; at the weights' it would be 0.004
    assert record["results"]["validation"]["undecided"] > 0
    config = standard(tmp_path / "run-reward" / "model").config
    assert config.align_reward["ties"]["loss"] == loss


def test_steps_make_a_process_reward_that_ppo_reads(train, stage, cli, tmp_path):
    record = train("steps", {"kind": "steps", "aggregate": "prod"}, steps=12)
    assert record["results"]["validation"]["accuracy"] > 0.7
    folder = tmp_path / "run-reward" / "model"
    reward = load_reward(folder)
    assert isinstance(reward, ProcessReward)
    assert reward.how == "prod"
    result = cli(*stage("ppo", reward=[{"path": str(folder)}]))
    assert result.code == 0, result.text


@pytest.mark.parametrize(
    ("kind", "objective"),
    [
        ("hard", {"focal": 2.0, "label_smoothing": 0.1}),
        ("pairs", {"focal": 2.0}),
        ("pairs", {"contrastive": 0.1}),
        ("pairs", {"generative": 0.1}),
        ("pairs", {"length": 0.5}),
    ],
)
def test_terms_beside_bradley_terry(kind, objective, train, tmp_path):
    record = train(kind, objective)
    assert record["status"] == "completed"
    standard(tmp_path / "run-reward" / "model")


def test_weights_count_without_an_objective_too(stage, cli, tmp_path):
    """TRL's loss knows no weights; a pair of weight 0 must teach nothing."""
    rows = rows_for("hard")
    models = []
    for name, wrong in (("none", []), ("weightless", rows[:30])):
        data = tmp_path / f"{name}.jsonl"
        turned = [
            {"prompt": r["prompt"] + "!", "chosen": r["rejected"], "rejected": r["chosen"]}
            | {"weight": 0.0}
            for r in wrong
        ]
        right = [row | {"weight": 2.0} for row in rows[:16]]
        data.write_text("".join(json.dumps(row) + "\n" for row in [*right, *turned]))
        arguments = stage(
            "reward",
            run={"dir": str(tmp_path / name), "seed": 3},
            data={"train": str(data), "validation_fraction": 0},
            trainer={"max_steps": 30, "learning_rate": 1e-3, "lr_scheduler_type": "constant"},
        )
        assert cli(*arguments).code == 0
        models.append(load_reward(tmp_path / name / "model", normalise=False))
    good, bad = rows[0]["chosen"], rows[0]["rejected"]
    for model in models:
        first, second = model.score(["Where is thing 3? "] * 2, [good, bad])
        assert first > second + 1  # the thirty turned pairs are the majority, and weigh nothing


def test_a_model_forgets_what_it_was(train, stage, cli, tmp_path, world):
    """A whole-answer model that starts from one of steps is read as what it is now."""
    train("steps", {"kind": "steps"})
    start = tmp_path / "start"
    (tmp_path / "run-reward" / "model").rename(start)
    result = cli(
        *stage(
            "reward",
            model={"path": str(start)},
            normalisation={"policy": str(world.model), "prompts": 4, "max_new_tokens": 8},
        ),
        "run.overwrite=true",
    )
    assert result.code == 0, result.text
    assert not isinstance(load_reward(tmp_path / "run-reward" / "model"), ProcessReward)


def test_an_adapter_trains_and_is_merged(train, tmp_path):
    train("rankings", {"kind": "rankings"}, "peft.method=lora", "peft.kwargs={r: 2}")
    standard(tmp_path / "run-reward" / "model")


def test_guards_hold_an_objective_too(train, tmp_path):
    guard = "[{type: ewc, strength: 10.0, samples: 4, data: rankings.jsonl}]"
    record = train("rankings", {"kind": "rankings"}, f"guards={guard}")
    logged = (tmp_path / "run-reward" / "metrics.jsonl").read_text()
    assert record["status"] == "completed"
    assert "guard" in logged


RUIN = (
    "trainer.eval_strategy=steps",
    "trainer.eval_steps=1",
    "trainer.save_strategy=steps",
    "trainer.save_steps=1",
    "trainer.learning_rate=3.0",
)


def test_a_run_that_stops_improving_ends_early_with_its_best_weights(train, tmp_path):
    """A learning rate that ruins the model: the first evaluation stays the best."""
    record = train("rankings", {"kind": "rankings", "patience": 2}, *RUIN, steps=40)
    rows = [
        json.loads(r) for r in (tmp_path / "run-reward" / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [row["eval_loss"] for row in rows if "eval_loss" in row]
    assert record["results"]["steps"] < 40
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + 2
    folder = tmp_path / "run-reward"
    kept = load_file(folder / "model" / "model.safetensors")
    saved = load_file(folder / "checkpoints" / f"checkpoint-{best + 1}" / "model.safetensors")
    assert all(torch.equal(kept[name], saved[f"model.{name}"]) for name in kept)
    # what had ended is not trained on: not the last weights are the result, but the best again
    edited = json.loads((folder / "run.json").read_text()) | {"status": "failed"}
    (folder / "run.json").write_text(json.dumps(edited))
    train("rankings", {"kind": "rankings", "patience": 2}, *RUIN, "--resume", steps=40)
    again = load_file(folder / "model" / "model.safetensors")
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_folds(stage, cli, tmp_path):
    data = tmp_path / "rankings.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows_for("rankings")))
    arguments = stage(
        "reward",
        data={"train": str(data)},
        objective={"kind": "rankings"},
        trainer={"max_steps": 2, "learning_rate": 1e-3},
    )
    result = cli(*arguments, "--folds", 3)
    assert result.code == 0, result.text
    found = json.loads((tmp_path / "run-reward" / "folds.json").read_text())
    assert found["summary"]["n"] == 3 * 40  # three pairs of each ranking, each held out once
    assert len(found["summary"]["accuracy"]["values"]) == 3
    assert "3 folds" in result.text
    before = (tmp_path / "run-reward" / "repeat-0" / "fold-1" / "run.json").stat().st_mtime_ns
    again = cli(*arguments, "--folds", 3)  # finished folds are read
    assert again.code == 0
    after = (tmp_path / "run-reward" / "repeat-0" / "fold-1" / "run.json").stat().st_mtime_ns
    assert before == after
    for other in (["--folds", 4], ["--folds", 3, "trainer.learning_rate=1e-4"]):
        refused = cli(*arguments, *other)  # what was made otherwise is not believed
        assert refused.code == 8, refused.text
        assert "finished run of another configuration" in refused.text
    assert cli(*arguments, "--folds", 3, "run.overwrite=true").code == 0
    last = (tmp_path / "run-reward" / "repeat-0" / "fold-1" / "run.json").stat().st_mtime_ns
    assert last != before


def test_members_of_an_ensemble(stage, cli, world, tmp_path):
    arguments = stage("reward")
    result = cli(*arguments, "--members", 2)
    assert result.code == 0, result.text
    found = json.loads((tmp_path / "run-reward" / "ensemble.json").read_text())
    weights = [load_reward(path).model.score.weight for path in found["ensemble"]]
    assert not torch.equal(*weights)
    line = next(line for line in result.err.splitlines() if line.startswith("reward: [{ensemble"))
    result = cli(*stage("ppo"), line.replace(": ", "=", 1))
    assert result.code == 0, result.text
    assert cli(*arguments, "--members", 1).code == 2
    assert cli(*arguments, "--members", 2, "--folds", 2).code == 2


@pytest.mark.parametrize(
    ("kind", "objective", "message"),
    [
        (
            "rankings",
            {"kind": "rankings", "loss": "davidson"},
            "of rankings there are plackett-luce",
        ),
        ("tied", {"kind": "rankings"}, "objective.loss=pairs-of-answers, which leaves ties out"),
        ("rankings", {"kind": "ratings"}, "ranking data cannot serve 'rating'"),
        ("ratings", {"kind": "ratings", "aspects": {"kind": 1}}, "they have helpful, honest"),
        ("ratings", {"kind": "ratings", "heads": 2}, "one head for each aspect"),
        ("rankings", {"kind": "rankings", "focal": 1}, "objective.focal is for kind: pairs"),
        ("pairs", {"label_smoothing": 0.1}, "soft labels say how sure each label is already"),
        ("pairs", {"focal": 0.5}, "no gradient where a model meets a soft label"),
        ("hard", {"loss": "davidson"}, "no training pair is a tie"),
        ("pairs", {"balance": 0.9}, "set loss: rao-kupper"),
        ("rankings", {"kind": "pairs", "loss": "davidson"}, "ranking data cannot serve"),
        ("pairs", {"patience": 1}, "requires the save and eval strategy to match"),
    ],
)
def test_what_does_not_fit_is_refused_before_weights_are_read(
    kind, objective, message, stage, cli, tmp_path
):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows_for(kind)))
    arguments = stage(
        "reward",
        data={"train": str(data)},
        objective=objective,
        trainer={"max_steps": 1, "save_strategy": "no"},
    )
    result = cli(*arguments, "--dry-run")
    assert result.code in (2, 3, 4), result.text
    assert message in result.text
