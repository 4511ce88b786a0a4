"""The whole quickstart, small: what it writes, and that the report says what summary.json says."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from align.errors import ConfigError
from align.quickstart import recipe
from align.quickstart.pretrain import make_base_model
from feedback.store import FeedbackStore

SMALL = {
    "sft": ["trainer.max_steps=3"],
    "reward": ["trainer.max_steps=3", "normalisation.prompts=8"],
    "dpo": ["trainer.max_steps=3"],
    "ppo": [
        "trainer.total_episodes=16",
        "trainer.rollout_batch_size=8",
        "trainer.per_device_train_batch_size=8",
        "rollout.batch_size=8",
    ],
    "evaluate": [],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The recipe with little of everything, on two seeds; every stage is the real one."""
    real = recipe.stage
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "PAIRS", 64)
        patch.setattr(recipe, "DEMONSTRATIONS", 64)
        patch.setattr(recipe, "TEST_PROMPTS", 12)
        patch.setattr(
            recipe,
            "make_base_model",
            lambda folder, world, seed: make_base_model(folder, world, seed, steps=20, texts=200),
        )
        patch.setattr(
            recipe,
            "stage",
            lambda name, f, s, given, *more: real(name, f, s, [*given, *SMALL[name]], *more),
        )
        folder = tmp_path_factory.mktemp("quickstart")
        page = recipe.run_quickstart(folder, seeds=(0, 1), guard="replay")
    return page, json.loads((page.parent / "summary.json").read_text(encoding="utf-8"))


def figures(page, name):
    """Every number the page shows under a `data-figure` that ends in `name`."""
    text = page.read_text(encoding="utf-8")
    pattern = rf'<data value="([^"]+)"[^>]*data-figure="([^"]*{re.escape(name)})"'
    return {key: float(value) for value, key in re.findall(pattern, text)}


def test_every_seed_runs_every_stage(finished):
    page, summary = finished
    assert summary["seeds"] == [0, 1]
    for seed in (0, 1):
        for stage in ("sft", "reward", "dpo", "ppo", "evaluate"):
            status = json.loads((page.parent / f"seed-{seed}" / stage / "run.json").read_text())
            assert status["status"] == "completed", stage
    for run in summary["runs"]:
        assert set(run["seconds"]) == {
            *("pretrain", "sft", "feedback", "reward", "dpo", "ppo", "replay", "evaluate")
        }


def test_each_annotator_judges_every_pair_once(finished):
    page, summary = finished
    with FeedbackStore(f"sqlite:///{page.parent / 'seed-0' / 'data' / 'feedback.db'}") as store:
        pairs, comparisons = store.pairs(), store.comparisons()
    assert 0 < len(pairs) <= 64
    assert len({(c.pair, c.annotator) for c in comparisons}) == len(comparisons) == 4 * len(pairs)
    assert summary["runs"][0]["annotators"]["comparisons"] == len(comparisons)


def test_no_training_stage_reads_the_gold_scorer(finished):
    page, _ = finished
    for stage in ("sft", "reward", "dpo", "ppo"):
        text = (page.parent / "seed-0" / stage / "config.yaml").read_text(encoding="utf-8")
        # A reward of `align ppo` may be logged and not trained on, `gold: true`: this one is not.
        assert "gold" not in text.replace("gold: false", "")
    assert "gold" in (page.parent / "seed-0" / "evaluate" / "config.yaml").read_text()


def test_the_report_shows_the_summary_s_win_rates(finished):
    page, summary = finished
    shown = figures(page, ".rate")
    means = {name: rate["mean"] for name, rate in summary["win_rates"].items()}
    single = [entry["rate"] for run in summary["runs"] for entry in run["win_rates"]]
    assert len(means) == 6  # base, dpo, ppo, and three that a guard held, each against sft
    assert sorted(shown.values()) == pytest.approx(sorted([*means.values(), *single]))
    embedded = json.loads(
        re.search(
            r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', page.read_text(), re.DOTALL
        )[1]
    )
    assert embedded["summary"] == summary
    for row in embedded["win_rates"]:
        expected = summary["win_rates"][f"{row['a']} vs {row['b']}"]
        assert (row["rate"], row["low"], row["high"]) == pytest.approx(
            (expected["mean"], expected["low"], expected["high"])
        )


def test_the_report_says_what_was_forgotten_with_the_guard_and_without(finished):
    page, summary = finished
    held = {f"{stage}-replay" for stage in ("sft", "dpo", "ppo")}
    assert summary["forgotten_nats"].keys() == {"sft", "dpo", "ppo"} | held
    shown = figures(page, ".forgotten_nats")
    for name, figure in summary["forgotten_nats"].items():
        assert shown[f"models.{name}.forgotten_nats"] == pytest.approx(figure["mean"])
        assert shown[f"retention.{name}.forgotten_nats"] == pytest.approx(figure["mean"])
    for seed in (0, 1):
        texts = {
            name: [json.loads(line)["completion"] for line in file.read_text().splitlines()]
            for name in ("earlier", "retention")
            if (file := page.parent / f"seed-{seed}" / "data" / f"{name}.jsonl")
        }
        assert len(texts["earlier"]) > 400
        assert len(texts["retention"]) > 200
        for stage in ("sft", "dpo", "ppo"):
            run = page.parent / f"seed-{seed}" / f"{stage}-replay"
            (guard,) = yaml.safe_load((run / "config.yaml").read_text())["guards"]
            assert guard["type"] == "replay"
            assert guard["data"].endswith("earlier.jsonl")
            parents = json.loads((run / "run.json").read_text())["parents"]
            (start,) = [one["path"] for one in parents if one["role"] == "model"][:1]
            assert start.endswith("base" if stage == "sft" else "sft-replay/model")
        models = summary["runs"][seed]["models"]
        assert models["base"]["retention_nats"] + models["dpo"]["forgotten_nats"] == pytest.approx(
            models["dpo"]["retention_nats"]
        )


def test_the_summary_is_computed_from_the_evaluations(finished):
    page, summary = finished
    for run in summary["runs"]:
        path = page.parent / f"seed-{run['seed']}" / "evaluate" / "evaluation.json"
        assert json.loads(path.read_text(encoding="utf-8"))["win_rates"] == run["win_rates"]
        assert 0 <= run["reward_model"]["accuracy"] <= 1
        assert run["reward_model"]["annotator_consistency"]["n"] > 0


def test_an_unknown_judge_and_no_seed_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="oracle"):
        recipe.run_quickstart(tmp_path, judge="oracle")
    with pytest.raises(ConfigError, match="seeds"):
        recipe.run_quickstart(tmp_path, seeds=())
    with pytest.raises(ConfigError, match="seeds: names a seed twice"):
        recipe.run_quickstart(tmp_path, seeds=(0, 0))
    with pytest.raises(ConfigError, match="--guard: 'hope' is not available"):
        recipe.run_quickstart(tmp_path, guard="hope")
    assert not list(tmp_path.iterdir())


def test_shares_over_seeds_end_at_0_and_1():
    assert recipe.over_seeds([0.9, 1.0, 0.7], share=True)["high"] == 1.0
    assert recipe.over_seeds([0.9, 1.0, 0.7])["high"] > 1.0
