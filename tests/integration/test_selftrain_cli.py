"""`align selftrain` through the command line on a tiny model: every method, kills, and mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from feedback.schema import Comparison
from feedback.store import FeedbackStore
from reward.model import RewardModel

pytestmark = [pytest.mark.integration, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
THINGS = ["a lamp", "a chair", "the door", "my order", "a parcel", "the bill", "an account"]
PLACES = ["in Oslo", "at home", "on the roof", "by the sea"]


@pytest.fixture
def config(world, tmp_path):
    """`config(method, **sections)`: the arguments of a command on a configuration of its own."""

    def write(method: str = "raft", **sections: Any) -> list[str]:
        given: dict[str, Any] = {
            "run": {"dir": str(tmp_path / "run"), "seed": 3},
            "model": {"path": str(world.model)},
            "loop": {"method": method, "rounds": 2},
            "data": {"train": str(world.prompts), "validation_fraction": 0.4},
            "trainer": {
                "max_steps": 2,
                "per_device_train_batch_size": 2,
                "logging_steps": 1,
                "learning_rate": 1e-3,
            },
            "tracking": {"report_to": ["none"]},
        }
        if method == "preferences":
            pairs = [pair(number) for number in range(90)]
            people = [label(row, wrong=number % 4 == 0) for number, row in enumerate(pairs[:60])]
            write_jsonl(tmp_path / "people.jsonl", people)
            write_jsonl(tmp_path / "pool.jsonl", pairs[60:])
            given["data"] = {"train": str(tmp_path / "people.jsonl"), "validation_fraction": 0.6}
            given["pseudo"] = {"path": str(tmp_path / "pool.jsonl"), "members": 2, "tau": 0.55}
            given["pseudo"] |= {"tau_last": 0.5, "similarity": None, "balance": ["position"]}
            given["normalisation"] = {"prompts": 4, "max_new_tokens": 4}
            given["trainer"] |= {"max_steps": 16, "per_device_train_batch_size": 8}
        else:
            given["reward"] = [{"function": "tiny_rewards:length"}]
            given["harvest"] = {"samples": 3}
            given["rollout"] = {"max_new_tokens": 6}
        for name, section in sections.items():
            both = isinstance(section, dict) and isinstance(given.get(name), dict)
            given[name] = given[name] | section if both else section
        (tmp_path / "tiny_rewards.py").write_text(REWARDS)
        file = tmp_path / "selftrain.yaml"
        file.write_text(yaml.safe_dump({k: v for k, v in given.items() if v is not None}))
        return ["selftrain", str(file)]

    return write


REWARDS = """
def length(prompts, completions, **columns):
    return [len(text) / 10 for text in completions]

def even(prompts, completions, **columns):
    return [1.0 if len(text) % 2 == 0 else 0.0 for text in completions]
"""
ENDS = {"max_new_tokens": 40}  # a model of random weights seldom ends sooner
ANY = {"rule": "not_worse", "tolerance": 1e6}  # what a model of two steps passes


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def pair(number: int) -> dict[str, Any]:
    """A helpful answer and one that is none, in either order."""
    thing, place = THINGS[number % 7], PLACES[number % 4]
    texts = [f"It is {place}, please look there.", f"No {thing} here."]
    first, second = texts if number % 2 else reversed(texts)
    prompt = f"Where is {thing} of {number}?\n"
    return {"prompt": prompt, "response_a": first, "response_b": second}


def label(row: dict[str, Any], wrong: bool) -> dict[str, Any]:
    """What a person says of a pair: the helpful answer, unless they err."""
    texts = sorted([row["response_a"], row["response_b"]], key=lambda text: text[0] == "N")
    better, worse = reversed(texts) if wrong else texts
    return {"prompt": row["prompt"], "chosen": better, "rejected": worse}


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_two_rounds_of_raft_a_report_and_a_model(config, cli, tmp_path):
    dry = cli(*config(), "--dry-run")
    assert dry.code == 0, dry.text
    assert "nothing trained" in dry.text
    assert not (tmp_path / "run").exists()
    arguments = config(rollout=ENDS, gate=ANY)
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


def test_star_with_a_hint_beside_demonstrations_from_the_base(config, cli, tmp_path, world):
    result = cli(
        *config(
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


def test_rest_keeps_stricter_from_the_same_answers(config, cli, tmp_path):
    result = cli(
        *config(
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


def test_dpo_on_own_answers(config, cli, tmp_path):
    result = cli(
        *config("dpo", loop={"rounds": 1}, harvest={"samples": 4, "gap": 0.1}, rollout=ENDS)
    )
    assert result.code == 0, result.text
    run = tmp_path / "run"
    kept = rows(run / "rounds" / "001" / "train.jsonl")
    assert kept
    assert all(row["gap"] > 0.1 for row in kept)
    assert all(len(row["chosen"]) > len(row["rejected"]) for row in kept)  # the reward
    assert record(run / "rounds" / "001" / "fit")["stage"] == "dpo"


def test_preferences_wait_for_the_audit_and_keep_people_s_words_apart(config, cli, tmp_path):
    arguments = config("preferences", audit={"share": 0.3, "wait": True})
    dry = cli(*arguments, "--dry-run")
    assert dry.code == 0, dry.text
    result = cli(*arguments)
    assert result.code == 0, result.text
    run = tmp_path / "run"
    assert record(run)["status"] == "waiting"
    first = run / "rounds" / "001"
    harvest = json.loads((first / "harvest.json").read_text())
    labels = rows(first / "pseudo.jsonl")
    trained = rows(first / "train.jsonl")
    assert harvest["kept"] == len(labels) > 0
    assert {row["source"] for row in labels} == {"pseudo-label"}
    people = [row for row in trained if row.get("source") != "pseudo-label"]
    machine = [row for row in trained if row.get("source") == "pseudo-label"]
    assert len(machine) == len(labels)
    assert sum(row["weight"] for row in machine) <= 0.5 * len(people) + 1e-9
    assert all(row["p"] > 0.55 for row in machine)
    asked = json.loads((first / "audit.json").read_text())
    assert len(asked["labels"]) == -(-3 * len(labels) // 10)
    page = tmp_path / "report.html"
    assert cli("report", run, "-o", page).code == 0
    assert "Waiting for people" in page.read_text()
    with FeedbackStore(f"sqlite:///{run / 'feedback.db'}") as store:
        assert store.counts().events == 0  # questions, and no answer of a machine
        items = store.items("pair")
        assert {item.round for item in items} == {asked["round"]}
        for item in items:
            helpful = "a" if item.responses[0].startswith("It") else "b"
            said = Comparison(item.prompt, *item.responses, helpful, "ann", pair=item.id)
            store.add_comparison(said)
    result = cli(*arguments, "--resume")
    assert result.code == 0, result.text
    found = record(run)
    assert found["status"] == "completed", result.text
    second = run / "rounds" / "002"
    checked = json.loads((second / "checked.json").read_text())
    assert checked["audits"][0]["answered"] == len(items)
    assert len(checked["rows"]) == len(items)
    if not checked["fails"]:
        learnt = rows(second / "train.jsonl")
        audited = [row for row in learnt if row.get("source") == "audit"]
        assert len(audited) == len(items)
        assert all(row["chosen"].startswith("It") and row["weight"] == 1.0 for row in audited)
        again = {row["pair"] for row in learnt if row.get("source") == "pseudo-label"}
        assert not again & {row["pair"] for row in audited}
    in_use = found["results"]["in_use"]
    for member in range(2):
        folder = run / "rounds" / f"{in_use:03d}" / "fit" / f"member-{member}" / "model"
        assert len(RewardModel.load(folder).score(["Where?\n"], ["There."])) == 1
    assert (run / "model" / "config.json").is_file()


def test_a_promoted_teacher_is_averaged(config, cli, tmp_path):
    result = cli(
        *config("preferences", gate=ANY, audit={"share": 0.0}, pseudo={"ema": 0.25, "members": 1})
    )
    assert result.code == 0, result.text
    run = tmp_path / "run"
    found = [json.loads(f.read_text()) for f in sorted(run.glob("rounds/*/measure.json"))]
    promoted = [one for one in found[1:] if one["promoted"]]
    assert promoted, result.text
    assert promoted[0]["teacher"] == [0.25, 0.75]
    teacher = run / "rounds" / f"{promoted[-1]['round']:03d}" / "teacher" / "member-0"
    assert (teacher / "model.safetensors").is_file()


@pytest.mark.timeout(600)
def test_a_killed_run_ends_as_if_it_had_not_been(config, cli, tmp_path, monkeypatch):
    trainer = {"max_steps": 6, "save_steps": 1}
    given: dict[str, Any] = {"rollout": ENDS, "gate": ANY, "trainer": trainer}
    given["loop"] = {"rounds": 1, "keep": "all"}
    arguments = config("raft", **given)
    assert cli(*arguments, f"run.dir={tmp_path / 'straight'}").code == 0
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "align.cli", *arguments, f"run.dir={killed}"]
    log = (tmp_path / "killed.log").open("ab")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    checkpoints = killed / "rounds" / "001" / "fit" / "checkpoints"
    limit = time.monotonic() + 300
    while not any(checkpoints.glob("checkpoint-*/MANIFEST.json")):
        assert process.poll() is None, (tmp_path / "killed.log").read_text()[-2000:]
        assert time.monotonic() < limit
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert record(killed)["status"] == "running"
    result = cli(*arguments, f"run.dir={killed}", "--resume")
    assert result.code == 0, result.text
    assert "resuming from" in result.text
    straight, other = (
        load_file(folder / "rounds" / "001" / "fit" / "model" / "model.safetensors")
        for folder in (tmp_path / "straight", killed)
    )
    assert all(torch.equal(straight[name], other[name]) for name in straight)
    for name in ("samples.jsonl", "train.jsonl"):
        both = [tmp_path / run / "rounds" / "001" / name for run in ("straight", "killed")]
        assert both[0].read_text() == both[1].read_text()


class Killed(BaseException):
    """What kill -9 is to a process: nothing handles it."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("at", [4, 9, 14, 22])
def test_a_kill_between_any_two_files_loses_nothing(at, config, cli, tmp_path, monkeypatch):
    """The `at`-th file that comes into place is the last thing that the process does."""
    arguments = config("raft", rollout=ENDS, gate=ANY, loop={"rounds": 1, "keep": "all"})
    real, count = Path.replace, iter(range(1, 10_000))

    def dying(self, target):
        result = real(self, target)
        if next(count) == at:
            raise Killed
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        with pytest.raises(Killed):
            cli(*arguments)
    result = cli(*arguments, "--resume")
    assert result.code == 0, result.text
    measured = [
        json.loads(f.read_text()) for f in sorted((tmp_path / "run").glob("rounds/*/m*.json"))
    ]
    assert [one["round"] for one in measured] == [0, 1]
    assert (tmp_path / "run" / "model" / "config.json").is_file()


def test_every_mistake_at_once(config, cli, tmp_path):
    result = cli(
        *config(
            "star",
            model={"path": str(tmp_path / "nowhere")},
            loop={"start": "last", "base": "org/base"},
            data={"validation_fraction": 0.0, "balance": {"by": "source"}},
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
def test_a_mistake_is_named(method, sections, words, config, cli):
    result = cli(*config(method, **sections))
    assert result.code not in (0, 1), result.text
    assert words in result.text
