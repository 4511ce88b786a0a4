"""`align selftrain` on a tiny policy: every method, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytestmark = [pytest.mark.integration, pytest.mark.slow]
ENDS = {"max_new_tokens": 40}  # a model of random weights seldom ends sooner
ANY = {"rule": "not_worse", "tolerance": 1e6}  # what a model of two steps passes


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_two_rounds_of_raft_a_report_and_a_model(selftrain, cli, tmp_path):
    dry = cli(*selftrain(), "--dry-run")
    assert dry.code == 0, dry.text
    assert "nothing trained" in dry.text
    assert not (tmp_path / "run").exists()
    arguments = selftrain(rollout=ENDS, gate=ANY)
    result = cli(*arguments)
    assert result.code == 0, result.text
    run = tmp_path / "run"
    found = record(run)
    assert found["status"] == "completed"
    assert found["results"]["stopped"] == ["rounds: all 2 rounds are done"]
    assert found["results"]["in_use"] == 2
    first, second = (run / "rounds" / name for name in ("001", "002"))
    plans = [json.loads((one / "plan.json").read_text()) for one in (first, second)]
    assert plans[1]["start"] == plans[1]["policy"] == str(first / "fit" / "model")
    drawn, kept = rows(first / "samples.jsonl"), rows(first / "train.jsonl")
    questions = len({row["question"] for row in drawn})
    assert len(drawn) == 3 * questions
    assert 0 < len(kept) <= questions  # the best of each question that ended
    best = {row["completion"]: row["score"] for row in kept}
    for row in drawn:
        if row["finished"] and row["completion"] in best:
            mine = [o for o in drawn if o["question"] == row["question"] and o["finished"]]
            assert best[row["completion"]] <= max(one["score"] for one in mine)
    held = json.loads((second / "measure.json").read_text())
    asked = {row["prompt"] for one in (first, second) for row in rows(one / "train.jsonl")}
    assert len(held["scores"]) + questions == 28
    assert len(asked) <= questions  # held-out questions are never trained on
    same = load_file(run / "model" / "model.safetensors")
    last = load_file(second / "fit" / "model" / "model.safetensors")
    assert all(torch.equal(same[name], last[name]) for name in last)
    assert not (first / "fit" / "model").exists()  # out of use
    assert not (first / "cache").exists()
    logged = [one for one in rows(run / "metrics.jsonl") if "holdout/score" in one]
    assert [row["step"] for row in logged] == [0, 1, 2]

    page = tmp_path / "report.html"
    assert cli("report", run, "-o", page).code == 0
    html = page.read_text()
    assert "Self-training" in html
    assert "rounds: all 2 rounds are done" in html
    assert "it loses no more than 1e+06" in html
    again = cli(*arguments, "--resume")
    assert again.code == 0, again.text
    assert record(run)["results"]["in_use"] == 2


def test_star_with_a_hint_beside_demonstrations_from_the_base(selftrain, cli, tmp_path, world):
    result = cli(
        *selftrain(
            "star",
            loop={"rounds": 2, "base": str(world.model), "patience": 1},
            reward=[{"function": "tiny_rewards:even"}],
            harvest={
                "samples": 2,
                "hint": "{prompt} (It is {place}.) ",
                "beside": str(world.sft),
                "accumulate": True,
                "questions": 6,
            },
            rollout=ENDS,
        )
    )
    assert result.code == 0, result.text
    run = tmp_path / "run"
    found = record(run)["results"]
    assert found["stopped"] == ["gain: the last round was not promoted"]
    assert found["in_use"] == 0
    assert not (run / "model").exists()  # the start is in use
    kept = rows(run / "rounds" / "001" / "train.jsonl")
    assert kept
    assert all(len(row["completion"]) % 2 == 0 and row["score"] == 1.0 for row in kept)
    assert all("(It is" not in row["prompt"] for row in kept)
    harvest = json.loads((run / "rounds" / "001" / "harvest.json").read_text())
    assert harvest["questions"] == 6
    assert harvest["hinted"] == sum(row.get("hinted", False) for row in kept)
    drawn = rows(run / "rounds" / "001" / "samples.jsonl")
    assert any(row["hinted"] for row in drawn)
    card = json.loads((run / "rounds" / "001" / "fit" / "data_card.json").read_text())
    names = [Path(source["path"]).name for source in card["sources"]]
    assert names == ["train.jsonl", "beside.jsonl"]
    held = {row["prompt"].strip() for row in rows(world.prompts)}
    held -= {row["prompt"].strip() for row in rows(run / "beside.jsonl")}
    assert 8 <= len(held) < 20  # demonstrations of held-out questions are left out
    assert f"{len(held)} rows of harvest.beside are held out" in str(record(run)["warnings"])


def test_rest_keeps_stricter_from_the_same_answers(selftrain, cli, tmp_path):
    result = cli(
        *selftrain(
            "rest", harvest={"quantiles": [0.2, 0.8]}, rollout=ENDS, gate=ANY, loop={"rounds": 3}
        )
    )
    assert result.code == 0, result.text
    rounds = [tmp_path / "run" / "rounds" / name for name in ("001", "002", "003")]
    plans = [json.loads((one / "plan.json").read_text()) for one in rounds]
    assert [(p["draws"], p["samples"], p["quantile"]) for p in plans] == [
        (True, 1, 0.2),
        (False, 1, 0.8),
        (True, 3, 0.2),
    ]
    assert not (rounds[1] / "samples.jsonl").exists()
    kept = [json.loads((one / "harvest.json").read_text()) for one in rounds]
    assert kept[0]["threshold"] < kept[1]["threshold"]
    assert kept[0]["kept"] > kept[1]["kept"] > 0


def test_dpo_on_own_answers(selftrain, cli, tmp_path):
    result = cli(
        *selftrain("dpo", loop={"rounds": 1}, harvest={"samples": 4, "gap": 0.1}, rollout=ENDS)
    )
    assert result.code == 0, result.text
    run = tmp_path / "run"
    kept = rows(run / "rounds" / "001" / "train.jsonl")
    assert kept
    assert all(row["gap"] > 0.1 for row in kept)
    assert all(len(row["chosen"]) > len(row["rejected"]) for row in kept)  # the reward
    assert record(run / "rounds" / "001" / "fit")["stage"] == "dpo"


def test_every_mistake_at_once(selftrain, cli, tmp_path):
    result = cli(
        *selftrain(
            "star",
            model={"path": str(tmp_path / "nowhere")},
            loop={"start": "last", "base": "org/base"},
            data={"validation_fraction": 0.0, "balance": {"method": "over", "by": "source"}},
            reward=[],
            harvest={"gap": 0.5, "beside": str(tmp_path / "none.jsonl")},
            pseudo={"path": "x.jsonl"},
            rollout={"environment": "tiny:Env"},
        )
    )
    assert result.code == 2
    for words in (
        "model.path: ",
        "loop.base: is where `loop.start: base` begins",
        "data.balance: is set, but which rows train is what the loop decides",
        "data.validation_fraction: nothing is held out",
        "reward: star keeps answers by their reward",
        "harvest.gap: is of dpo, and loop.method is star",
        "harvest.beside.0.path: ",
        "pseudo: is of loop.method: preferences",
        "rollout.environment: rows are one answer",
    ):
        assert words in result.text, words


@pytest.mark.parametrize(
    ("method", "sections", "words"),
    [
        ("raft", {"harvest": {"samples": 1}}, "harvest.samples: raft chooses among several"),
        ("rest", {"harvest": {"quantiles": [0.5, 0.5]}}, "each must be above the one before"),
        (
            "raft",
            {"reward": [{"function": "tiny_rewards:even", "normalise": "group"}]},
            "reward.0: 'group' makes an answer's reward depend on what was drawn beside it",
        ),
        ("dpo", {"trainer": {"loss_type": ["sigmod"]}}, "did you mean sigmoid?"),
        ("dpo", {"trainer": {"packing": True}}, "trainer.packing: DPOConfig has no such key"),
        ("raft", {"loop": {"method": "rafd"}}, "loop.method: "),
        ("star", {"harvest": {"hint": "{answer}"}}, "harvest.hint: '{answer}' cannot be filled in"),
        ("raft", {"data": {"validation_fraction": 0.05}}, "held-out questions; at least 8"),
        ("raft", {"model": {"freeze": ["lyers"]}}, "model.freeze: 'lyers' matches no parameter"),
        ("preferences", {"pseudo": {"path": None}}, "pseudo.path: names no pairs"),
        ("preferences", {"pseudo": {"tau": 0.7, "tau_last": 0.8}}, "tau_last 0.8 is above tau"),
        ("preferences", {"reward": [{"function": "a:b"}]}, "reward: labels are given by"),
        ("preferences", {"gate": {"samples": 2}}, "gate.samples: is of answers"),
        ("preferences", {"loop": {"start": "last"}}, "loop.start: is `last`, but the teacher's"),
        ("preferences", {"audit": {"store": "feedback.db"}}, "audit.store: 'feedback.db' is no"),
        (
            "preferences",
            {"pseudo": {"balance": ["class"]}},
            "pseudo.balance: balances classes, but no column",
        ),
    ],
)
def test_a_mistake_is_named(method, sections, words, selftrain, cli):
    result = cli(*selftrain(method, **sections))
    assert result.code not in (0, 1), result.text
    assert words in result.text
