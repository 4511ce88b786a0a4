"""`align active` through the command line on a tiny model: every source, posterior and desk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from feedback.store import FeedbackStore
from reward.laplace import LastLayerLaplace
from reward.model import RewardModel
from reward.posterior_reward import STATE

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture
def config(world, tmp_path):
    """`config(**sections)`: the arguments of a command on a configuration of its own."""

    def write(**sections: Any) -> list[str]:
        given: dict[str, Any] = {
            "run": {"dir": str(tmp_path / "run"), "seed": 3},
            "model": {"path": str(world.model)},
            "pool": {"source": "pairs", "path": str(world.prefs)},
            "acquisition": {"batch": 6, "holdout": 0.4, "holdout_share": 0.3, "similarity": None},
            "stopping": {"rounds": 2},
            "trainer": {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1},
            "normalisation": {"prompts": 4, "max_new_tokens": 4},
            "rollout": {"max_new_tokens": 6},
            "tracking": {"report_to": ["none"]},
        }
        for name, section in sections.items():
            given[name] = given.get(name, {}) | section
        file = tmp_path / "active.yaml"
        (tmp_path / "tiny_rewards.py").write_text(
            "def length(prompts, completions, **columns):\n"
            "    return [len(text) / 10 for text in completions]\n"
        )
        file.write_text(yaml.safe_dump(given))
        return ["active", str(file)]

    return write


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def test_two_rounds_a_report_and_a_model_for_ppo(config, cli, tmp_path):
    dry = cli(*config(), "--dry-run")
    assert dry.code == 0, dry.text
    assert "nothing asked" in dry.text
    assert not (tmp_path / "run").exists()
    arguments = config(curve={"random": 1})
    result = cli(*arguments)
    assert result.code == 0, result.text
    run = tmp_path / "run"
    found = record(run)
    assert found["status"] == "completed"
    assert found["results"]["stopped"] == ["rounds: all 2 rounds are done"]
    assert found["results"]["answered"] == 12
    model = RewardModel.load(run / "model")  # with its scale
    assert LastLayerLaplace.load(run / "model" / STATE).pairs > 0
    assert len(model.score(["Where?"], ["There."])) == 1
    story = json.loads((run / "active.json").read_text())
    assert story["rounds"][-1]["curve"]["random"]
    assert len(story["choices"]) == 12
    assert not (run / "rounds" / "001" / "fit").exists()  # nothing was labelled
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged] == [0, 6, 12]

    page = tmp_path / "report.html"
    result = cli("report", run, "-o", page)
    assert result.code == 0, result.text
    html = page.read_text()
    assert "rounds: all 2 rounds are done" in html
    assert "Why was each asked?" in html
    assert "Learning curve" in html
    assert "drawn at random for the holdout" in html

    again = cli(*arguments, "--resume")
    assert again.code == 0, again.text
    assert record(run)["results"]["answered"] == 12
    with FeedbackStore(f"sqlite:///{run / 'feedback.db'}") as store:
        assert store.counts().events == 12


def test_heads_on_a_policy_s_answers_with_fresh_ones(config, cli, tmp_path, world, monkeypatch):
    result = cli(
        *config(
            pool={
                "source": "prompts",
                "path": str(world.prompts),
                "samples": 3,
                "fresh_prompts": 2,
                "build": "double_thompson",
                "limit": 20,
            },
            posterior={"kind": "heads", "count": 2, "retrain": "warm"},
            annotators={"truth": "tiny_rewards:length", "temperature": 0.1},
        )
    )
    assert result.code == 0, result.text
    run = tmp_path / "run"
    fresh = (run / "rounds" / "002" / "fresh.jsonl").read_text().splitlines()
    assert 1 <= len(fresh) <= 2
    assert not (run / "rounds" / "001" / "fresh.jsonl").exists()
    first, second = (
        yaml.safe_load((run / "rounds" / name / "fit" / "reward" / "config.yaml").read_text())
        for name in ("002", "003")
    )
    assert first["model"]["path"] == str(world.model)
    assert second["model"]["path"] == str(run / "rounds" / "002" / "fit" / "reward" / "model")
    assert second["normalisation"]["policy"] == str(world.model)
    assert (run / "model" / "config.json").is_file()


def test_members_for_a_store_and_a_person_with_a_file(config, cli, tmp_path):
    url = f"sqlite:///{tmp_path / 'feedback.db'}"
    with FeedbackStore(url) as store:
        for i in range(24):
            store.add_pair(f"Where is {i}? ", f"There {i}.", f"No, {i}!", seed=i)
    arguments = config(
        pool={"source": "store", "path": url},
        posterior={"kind": "members", "count": 2},
        annotators={"kind": "file"},
        stopping={"rounds": 1},
    )
    result = cli(*arguments)
    assert result.code == 0, result.text
    assert "round 1: 0 of 6 questions have an answer" in result.text
    assert "--resume" in result.text
    run = tmp_path / "run"
    assert record(run)["status"] == "waiting"
    refused = cli(*arguments, "run.overwrite=true")
    assert refused.code == 2
    assert "1 rounds of questions that people were asked" in refused.text
    page = tmp_path / "report.html"
    assert cli("report", run, "-o", page).code == 0
    assert "Waiting for people" in page.read_text()

    file = run / "questions" / "round-001.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row["answer"] = "first" if row["first"].startswith("There") else "second"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = cli(*arguments, "--resume", "--wait")
    assert result.code == 0, result.text
    found = record(run)
    assert (found["status"], found["results"]["waiting"]) == ("completed", None)
    assert len(found["results"]["models"]) == 2
    with FeedbackStore(url) as store:
        assert all(
            (one.label == "a") == one.response_a.startswith("There") for one in store.comparisons()
        )
        assert store.counts().comparisons == 6
    assert "is not known" in json.loads((run / "active.json").read_text())["random"]


def test_every_mistake_at_once_before_weights_are_read(config, cli, hollow_model, tmp_path):
    result = cli(
        *config(
            model={"path": str(tmp_path / "nowhere")},
            pool={"path": str(tmp_path / "pairs.jsonl"), "fresh_prompts": 3},
            acquisition={
                "strategy": {"kind": "stratify", "of": "bold"},
                "first": "uncertainty",
                "rankings": True,
                "budget": 3.0,
            },
            annotators={"kind": "file", "overlap": 2, "emails": ["ann@x.org"]},
            curve={"random": 1},
        )
    )
    assert result.code == 2
    for words in (
        "model.path: ",
        "pool.path: ",
        "acquisition.strategy.of: 'bold' is no strategy",
        "acquisition.first: uncertainty needs a model",
        "acquisition.rankings: a budget buys pairs",
        "pool.stratum: stratify needs strata",
        "curve.random: what random choice brings is known only where annotators are simulated",
        "annotators.overlap: with emails everybody",
    ):
        assert words in result.text, words
    assert "8 configuration problems" in result.text


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (
            {"pool": {"source": "store", "path": "x.jsonl"}},
            "pool.path: 'x.jsonl' is no store's URL",
        ),
        ({"pool": {"path": "sqlite:///x.db"}}, "pool.path: is a store, and pool.source is pairs"),
        ({"pool": {"source": "prompts"}}, "annotators.truth: a pool of prompts has no labels"),
        ({"annotators": {"truth": "nothing:here"}}, "annotators.truth: "),
        ({"annotators": {"truth": "/no/model"}}, "annotators.truth: /no/model does not exist"),
        ({"pool": {"fresh_prompts": 1}}, "pool.fresh_prompts: the policy's new answers have no"),
        ({"acquisition": {"people": [{"name": "a", "price": 1}]}}, "acquisition.people: nobody's"),
        ({"stopping": {"rounds": None}}, "nothing ends the loop for sure"),
        (
            {"pool": {"source": "prompts", "samples": 2}, "acquisition": {"rankings": True}},
            "pool.samples: 2 answers make no ranking",
        ),
        ({"acquisition": {"holdout": 0.001}}, "acquisition.holdout: 0.001 of 28 prompts holds 0"),
        ({"trainer": {"learning_rte": 1}}, "trainer.learning_rte: RewardConfig has no such key"),
        (  # with the others, not by the first round's training
            {"model": {"freeze": ["lyers"]}, "annotators": {"truth": "/no/model"}},
            "model.freeze: 'lyers' matches no parameter",
        ),
    ],
)
def test_a_mistake_is_named(sections, words, config, cli):
    result = cli(*config(**sections))
    assert result.code == 2, result.text
    assert words in result.text


def test_a_reward_model_writes_no_answers(config, cli, reward_model):
    result = cli(*config(model={"path": str(reward_model)}))
    assert result.code == 2
    assert "normalisation.policy: " in result.text
    assert "is a reward model and cannot write answers" in result.text
