"""`align reward` on every kind of judgement, through the command line, to a standard model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification

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


@pytest.mark.parametrize("loss", ["rao-kupper", "davidson"])
def test_ties_are_an_outcome(loss, train, tmp_path):
    record = train("pairs", {"loss": loss, "balance": 1.0})
    assert isinstance(record["results"]["tie_parameter"], float)
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


def test_an_adapter_trains_and_is_merged(train, tmp_path):
    train("rankings", {"kind": "rankings"}, "peft.method=lora", "peft.kwargs={r: 2}")
    standard(tmp_path / "run-reward" / "model")


def test_guards_hold_an_objective_too(train, tmp_path):
    guard = "[{type: ewc, strength: 10.0, samples: 4, data: rankings.jsonl}]"
    record = train("rankings", {"kind": "rankings"}, f"guards={guard}")
    logged = (tmp_path / "run-reward" / "metrics.jsonl").read_text()
    assert record["status"] == "completed"
    assert "guard" in logged


def test_a_run_that_stops_improving_ends_early_with_its_best_weights(train, tmp_path):
    """A learning rate that ruins the model: the first evaluation stays the best."""
    record = train(
        "rankings",
        {"kind": "rankings", "patience": 2},
        "trainer.eval_strategy=steps",
        "trainer.eval_steps=1",
        "trainer.save_strategy=steps",
        "trainer.save_steps=1",
        "trainer.learning_rate=3.0",
        steps=40,
    )
    rows = [
        json.loads(r) for r in (tmp_path / "run-reward" / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [row["eval_loss"] for row in rows if "eval_loss" in row]
    assert record["results"]["steps"] < 40
    assert len(losses) == losses.index(min(losses)) + 1 + 2


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
