"""`align reward evaluate` and `align reward average`: the commands themselves."""

from __future__ import annotations

import copy
import importlib
import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaForSequenceClassification

from align.cli import main
from align.engine.checkpoint import verify
from align.reward_cli.average import choose_prompts
from reward.model import Normalisation, RewardModel, write_normalisation


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working directory with a reward function and labelled rows."""
    (tmp_path / "judged.py").write_text(
        "def words(completions, **columns):\n"
        "    return [float(len(c.split())) for c in completions]\n"
        "def short(completions, **columns):\n    return [-float(len(c)) for c in completions]\n"
    )
    rows = [
        {
            "question": f"What is thing {i}?",
            "chosen": "It is a thing of which much can be said. " * (1 + i % 3),
            "rejected": "No idea." if i % 4 else "I would not know, to be quite honest. " * 9,
            "kind": "even" if i % 2 == 0 else "odd",
        }
        for i in range(60)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["reward", *arguments])
    return ended.value.code


def test_evaluate_says_and_writes_everything(folder, capsys):
    code = run(
        "evaluate", "judged:words", "rows.jsonl", "--column", "prompt=question", "--category",
        "kind", "--against", "judged:short", "--probes", "--json", "out/r.json", "--html",
        "out/r.html",
    )  # fmt: skip
    assert code == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in ("words on rows.jsonl", "macro", "words less short", "Probes on 60", "whitespace"):
        assert part in said, part
    found = json.loads((folder / "out/r.json").read_text())
    assert {one["name"] for one in found["bench"]["categories"]} == {"even", "odd"}
    assert found["bench"]["micro"]["value"] == pytest.approx(0.75)
    assert found["against"]["reward"] == "short"
    assert found["comparison"]["overall"]["difference"]["value"] == pytest.approx(0.5)
    assert {"filler", "repetition"} <= set(found["probes"]["failed"])
    assert "judged:words" in found["target"]
    assert "<h2>Probes</h2>" in (folder / "out/r.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["judged:words", "gone.jsonl"], 3, "no such file"),
        (["judged:gone", "rows.jsonl", "--column", "prompt=question"], 5, "no callable 'gone'"),
        (["nowhere/model", "rows.jsonl", "--column", "prompt=question"], 2, "no reward model"),
        (["judged:words", "rows.jsonl", "--column", "prompt"], 2, "is not OURS=THEIRS"),
        (["judged:words", "rows.jsonl", "--column", "prompt=q"], 3, "has no column 'q'"),
        (["judged:words", "rows.jsonl", "--column", "prompt=question", "--category", "x"], 3,
         "no row has a category"),
    ],
)  # fmt: skip
def test_wrong_evaluations(folder, capsys, arguments, code, message):
    assert run("evaluate", *arguments) == code
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_reward_that_fails_on_an_edit_loses_nothing(folder, capsys):
    """Many functions divide by the length of an answer, and one probe empties it."""
    (folder / "mean.py").write_text(
        "def word(completions, **columns):\n"
        "    return [sum(map(len, c.split())) / len(c.split()) for c in completions]\n"
    )
    code = run("evaluate", "mean:word", "rows.jsonl", "--column", "prompt=question", "--probes",
               "--level", "0.9", "--json", "r.json", "--html", "r.html")  # fmt: skip
    assert code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "! the probes failed: reward function 'word' raised ZeroDivisionError" in said
    found = json.loads((folder / "r.json").read_text())
    assert found["probes"] is None
    assert found["bench"]["sets"] == 60
    assert len(found["consistency"]) == 3
    assert "ZeroDivisionError" in found["warnings"][0]
    page = (folder / "r.html").read_text()
    assert "ZeroDivisionError" in page
    assert "90% confidence intervals" in page


def test_probed_rows_are_drawn(folder):
    """Of a sorted file the first rows are of one kind."""
    rows = [{"prompt": f"Question {i}?", "chosen": "yes " * (1 + i), "rejected": "no"}
            for i in range(60)]  # fmt: skip
    (folder / "sorted.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "seen.py").write_text(
        "seen = []\n"
        "def note(prompts, completions, **columns):\n"
        "    seen.append(prompts)\n"
        "    return [float(len(c)) for c in completions]\n"
    )
    drawn = []
    for seed in ("0", "0", "1"):
        assert run("evaluate", "seen:note", "sorted.jsonl", "--probes", "--probe-rows", "10",
                   "--seed", seed) == 0  # fmt: skip
        seen = importlib.import_module("seen").seen
        drawn.append(seen[1])  # the first call scores the labelled answers
        seen.clear()
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 10
    assert drawn[0] != [row["prompt"] for row in rows[:10]]


@pytest.fixture
def members(tiny_llama, tiny_tokenizer, tmp_path) -> list[Path]:
    found = []
    for seed in (1, 2):
        config = copy.deepcopy(tiny_llama(seed=5).config)
        config.num_labels, config.max_position_embeddings = 1, 2048  # probes lengthen answers
        torch.manual_seed(5)
        model = LlamaForSequenceClassification(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.01 * torch.randn(weight.shape, generator=generator)
        write_normalisation(model, Normalisation(float(seed), 2.0, 8, "p"))
        found.append(tmp_path / f"run{seed}" / "model")
        model.save_pretrained(found[-1])
        tiny_tokenizer.save_pretrained(found[-1])
    return found


def test_average_without_a_policy_says_what_is_missing(members, capsys):
    out = members[0].parent.parent / "average"
    assert run("average", str(out), *map(str, members), "--weight", "3", "--weight", "1") == 0
    told = capsys.readouterr()
    assert "weights 0.75, 0.25" in told.out
    assert "normalisation of the members was left out" in " ".join(told.err.split())
    verify(out)
    assert RewardModel.load(out, normalise=False).normalisation is None
    assert run("average", str(out), *map(str, members)) == 4
    assert "exists already" in capsys.readouterr().err


def test_average_measures_its_normalisation(members, policy_dir, data_files, capsys):
    out = members[0].parent.parent / "average"
    code = run("average", str(out), *map(str, members), "--policy", str(policy_dir), "--prompts",
               str(data_files["prompts"]), "--samples", "16", "--max-new-tokens", "8")  # fmt: skip
    assert code == 0
    assert "normalisation: mean" in capsys.readouterr().err
    verify(out)
    found = RewardModel.load(out).normalisation
    assert (found.samples, found.policy) == (16, str(policy_dir))


def test_an_averaged_model_is_evaluated_beside_a_member(members, folder, capsys):
    out = folder / "average"
    assert run("average", str(out), *map(str, members)) == 0
    code = run("evaluate", f"warm={out}", "rows.jsonl", "--against", f"one={members[0]}",
               "--column", "prompt=question", "--limit", "6", "--json", "r.json")  # fmt: skip
    assert code == 0
    found = json.loads(Path("r.json").read_text())
    assert (found["bench"]["reward"], found["against"]["reward"]) == ("warm", "one")
    assert found["bench"]["sets"] == 6


def test_wrong_averages(members, policy_dir, capsys):
    assert run("average", "out", str(members[0])) == 4
    assert "at least two models" in capsys.readouterr().err
    assert run("average", "out", *map(str, members), "--policy", str(policy_dir)) == 2
    assert "--policy and --prompts go together" in capsys.readouterr().err


def test_prompts_are_drawn_by_seed_and_leave_room(members, policy_dir, tmp_path):
    asked = [f"Question {i}?" for i in range(40)]
    rows = [{"prompt": text} for text in ["long " * 9999, *asked]]
    path = tmp_path / "asked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    drawn = [choose_prompts(str(policy_dir), members[0], str(path), 10, 8, s) for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] != asked[:10]
    assert len(set(drawn[0])) == 10
    every = choose_prompts(str(policy_dir), members[0], str(path), 80, 8, 0)
    assert sorted(every) == sorted(asked * 2)  # without the one that leaves no room


def test_an_average_that_cannot_be_measured_is_not_left(members, policy_dir, data_files, capsys):
    for folder in members:  # a head of zeros scores everything alike
        model = LlamaForSequenceClassification.from_pretrained(folder)
        torch.nn.init.zeros_(model.score.weight)
        model.save_pretrained(folder)
    out = members[0].parent.parent / "average"
    code = run("average", str(out), *map(str, members), "--policy", str(policy_dir), "--prompts",
               str(data_files["prompts"]), "--samples", "4", "--max-new-tokens", "4")  # fmt: skip
    assert code == 4
    assert "cannot rank them" in " ".join(capsys.readouterr().err.split())
    assert not list(out.parent.glob("*average*"))


def test_heads_drawn_apart_are_warned_of(members, capsys):
    for seed, folder in enumerate(members):
        model = LlamaForSequenceClassification.from_pretrained(folder)
        torch.nn.init.normal_(
            model.score.weight, std=0.1, generator=torch.Generator().manual_seed(seed)
        )
        model.save_pretrained(folder)
    assert run("average", str(members[0].parent.parent / "average"), *map(str, members)) == 0
    assert "two members' heads have a cosine of" in " ".join(capsys.readouterr().err.split())
