"""`align reward` and `align dpo` on the votes of a feedback store, through the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from feedback.schema import Comparison
from feedback.store import FeedbackStore

pytestmark = [pytest.mark.integration, pytest.mark.slow]
VOTES = ("aaa", "aab", "abt", "bbb", "abb", "ttt", "at")  # the third and the sixth are ties


@pytest.fixture
def store(world, tmp_path) -> str:
    """28 pairs, each judged by two or three people; 8 of them are ties."""
    url = f"sqlite:///{tmp_path / 'feedback.db'}"
    words = {"a": "a", "b": "b", "t": "tie"}
    rows = [json.loads(line) for line in world.prefs.read_text().splitlines()]
    with FeedbackStore(url) as opened:
        for place, row in enumerate(rows):
            for person, vote in zip(("ann", "ben", "cem"), VOTES[place % len(VOTES)], strict=False):
                answers = row["chosen"], row["rejected"]
                opened.add_comparison(Comparison(row["prompt"], *answers, words[vote], person))  # type: ignore[arg-type]
    return url


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


@pytest.mark.parametrize("name", ["reward", "dpo"])
@pytest.mark.parametrize("labels", ["votes", "dawid-skene"])
def test_a_run_on_soft_labels(name, labels, stage, cli, store, tmp_path):
    data = {"train": store, "labels": labels, "validation_fraction": 0.4}
    result = cli(*stage(name, data=data))
    assert result.code == 0, result.text
    results = record(tmp_path / f"run-{name}")["results"]
    card = json.loads((tmp_path / f"run-{name}" / "data_card.json").read_text())
    found = results["validation"]
    assert found["n"] + found["undecided"] == card["splits"]["validation"]
    assert card["ties"] == (8 if labels == "votes" else 4)  # Dawid and Skene settle a, b, tie
    assert 0 < found["undecided"] < 8
    assert found["low"] <= found["accuracy"] <= found["high"]
    if name == "reward":
        assert math.isfinite(found["soft_log_loss"])
        assert found["soft_log_loss"] != found["log_loss"]
        assert f"n = {found['n']}, {found['undecided']} ties left out" in result.text
    rows = (tmp_path / f"run-{name}" / "metrics.jsonl").read_text().splitlines()
    assert all(math.isfinite(json.loads(row).get("loss", 0.0)) for row in rows)


def test_ties_alone_can_be_trained_on_and_have_no_accuracy(stage, cli, world, tmp_path):
    rows = [json.loads(line) | {"soft_label": 0.5} for line in world.prefs.read_text().splitlines()]
    path = tmp_path / "ties.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("reward", "dpo"):
        result = cli(*stage(name, data={"train": str(path), "validation_fraction": 0.2}))
        assert result.code == 0, result.text
        found = record(tmp_path / f"run-{name}")["results"]["validation"]
        assert "accuracy" not in found


@pytest.mark.parametrize(
    ("name", "trainer", "message"),
    [
        ("dpo", {"loss_type": ["ipo"]}, "trainer.loss_type: ipo: soft labels have a meaning in"),
        ("dpo", {"loss_type": ["sigmoid", "sft"]}, "trainer.loss_type: sigmoid, sft: soft"),
        ("dpo", {"label_smoothing": 0.1}, "trainer.label_smoothing: 0.1 does not go with"),
        ("dpo", {"f_divergence_type": "forward_kl"}, "trainer.f_divergence_type: 'forward_kl'"),
        ("dpo", {"ld_alpha": 0.5}, "trainer.ld_alpha: 0.5"),
        ("dpo", {"use_weighting": True}, "trainer.use_weighting: True"),
        ("reward", {"label_smoothing_factor": 0.1}, "trainer.label_smoothing_factor: 0.1"),
    ],
)
def test_what_does_not_go_with_soft_labels_is_refused_before_weights_are_read(
    name, trainer, message, stage, cli, store, world, tmp_path
):
    """From a store's votes and from a column."""
    path = tmp_path / "soft.jsonl"
    rows = [json.loads(line) | {"soft_label": 0.7} for line in world.prefs.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for data in ({"train": store, "labels": "votes"}, {"train": str(path)}):
        arguments = stage(name, data=data, trainer={"max_steps": 1} | trainer)
        result = cli(*arguments, "--dry-run")
        assert result.code == 2, result.text
        assert message in result.text
