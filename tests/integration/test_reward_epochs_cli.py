"""A reward model trains for one epoch unless it is told otherwise, whoever starts its training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align.active.fit import RewardLearner
from align.selftrain.fit import RewardEnsemble

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SETTINGS = {"per_device_train_batch_size": 4, "logging_steps": 1}
DATA = {"validation_fraction": 0.0, "deduplicate": "none"}
EPOCH = 28 // 4  # of the world's 28 comparisons


def steps(run: Path) -> int:
    return json.loads((run / "run.json").read_text())["results"]["steps"]


@pytest.fixture
def train(stage, cli, world):
    def run(*more: str, **sections):
        data = DATA | {"train": str(world.prefs)}
        result = cli(*stage("reward", *more, **{"data": data, "trainer": SETTINGS} | sections))
        assert result.code == 0, result.text

    return run


@pytest.mark.parametrize("objective", [{}, {"contrastive": 0.1}], ids=["trl", "objective"])
def test_one_epoch(train, tmp_path, objective):
    train(objective=objective)
    assert steps(tmp_path / "run-reward") == EPOCH


def test_what_the_configuration_says_is_done(train, tmp_path):
    train(trainer=SETTINGS | {"num_train_epochs": 2})
    assert steps(tmp_path / "run-reward") == 2 * EPOCH


def test_members_and_folds(train, tmp_path):
    train("--members", "2")
    for member in range(2):
        assert steps(tmp_path / "run-reward" / f"member-{member}") == EPOCH
    train("--folds", "2", "run.dir=folds")
    trained = json.loads((tmp_path / "run-reward" / "ensemble.json").read_text())
    assert len(trained["ensemble"]) == 2
    for fold in range(2):  # of about half the prompts
        assert steps(tmp_path / "folds" / "repeat-0" / f"fold-{fold}") < EPOCH


def test_rounds_of_active_learning_and_of_self_training(world, tmp_path):
    given = {
        "model": {"path": str(world.model)},
        "trainer": SETTINGS,
        "normalisation": {"prompts": 4, "max_new_tokens": 4},
        "tracking": {"report_to": ["none"]},
    }
    rows = [json.loads(line) for line in world.prefs.read_text().splitlines()]
    RewardLearner(given).fit(rows, tmp_path / "active", seed=0, warm=None)
    assert steps(tmp_path / "active" / "reward") == EPOCH
    RewardEnsemble(given, count=1).fit(world.prefs, tmp_path / "selftrain")
    assert steps(tmp_path / "selftrain" / "member-0") == EPOCH


@pytest.mark.parametrize(
    ("trainer", "warned"),
    [
        ({}, True),
        ({"num_train_epochs": 2}, True),
        ({"num_train_epochs": 3}, False),
        ({"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps"}, False),
        ({"max_steps": 40}, False),
    ],
)
def test_patience_that_cannot_run_out_is_told(stage, cli, world, trainer, warned):
    data = {"train": str(world.prefs), "validation_fraction": 0.3}
    more = {"data": data, "trainer": SETTINGS | trainer, "objective": {"patience": 1}}
    result = cli(*stage("reward", "--dry-run", **more))
    assert result.code == 0, result.text
    assert ("objective.patience=1 cannot end this training early" in result.text) == warned
