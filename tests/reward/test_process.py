"""Steps: where each ends in the tokens, and what their scores make of an answer."""

from __future__ import annotations

import json
import math

import pytest

from align.cli import main
from align.config.sections import DataSection, JudgeSection
from align.data import load_splits
from align.stages.evaluate import measure_reward_model, open_judge
from reward.errors import ModelError, RewardError
from reward.model import CONFIG_KEY, Normalisation, RewardModel
from reward.posterior_reward import load_posterior_reward, posterior_of
from reward.process import ProcessReward, encode_steps, load_reward, scorer_of
from reward.score import encode_answer
from reward.steps import join_steps, split_steps

STEPS = ["First add two.", "Then take one away.", "So it is seven."]
CHAT = [{"role": "user", "content": "What is it?"}]


@pytest.fixture
def reward(tiny_tokenizer, tiny_classifier) -> RewardModel:
    return RewardModel(tiny_classifier(seed=3).eval(), tiny_tokenizer)


@pytest.mark.parametrize("prompt", ["What is it? ", CHAT])
def test_a_step_ends_where_the_next_begins(prompt, tiny_tokenizer):
    ids, ends = encode_steps(prompt, STEPS, tiny_tokenizer)
    text = join_steps(STEPS)
    answer = text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
    assert ids == encode_answer(prompt, answer, tiny_tokenizer)
    assert ends[-1] == len(ids) - 1
    assert ends == sorted(set(ends))
    for end, step, later in zip(ends[:-1], STEPS[:-1], STEPS[1:], strict=True):
        so_far = tiny_tokenizer.decode(ids[: end + 1])
        assert so_far.rstrip().endswith(step)
        assert not so_far.endswith(later.split()[0])


def test_lines_are_steps():
    assert split_steps("one\n\ntwo\n") == ["one", "two"]
    assert split_steps("") == [""]
    assert split_steps(" \n") == [" \n"]


def test_a_step_is_read_with_what_comes_before_it_and_nothing_after(reward):
    """The score of step 2 is that of the tokens up to its end; later steps change nothing."""
    process = ProcessReward(reward)
    (all_three,) = process.step_scores(["What is it? "], [join_steps(STEPS)])
    other = [*STEPS[:2], "So it is nine hundred."]
    (changed,) = process.step_scores(["What is it? "], [join_steps(other)])
    assert all_three[:2] == pytest.approx(changed[:2], abs=1e-5)
    assert all_three[2] != pytest.approx(changed[2], abs=1e-3)
    whole = reward.score(["What is it? "], [join_steps(STEPS)])
    assert all_three[2] == pytest.approx(whole[0], abs=1e-5)


@pytest.mark.parametrize(
    ("how", "make"),
    [("min", min), ("prod", math.prod), ("last", lambda p: p[-1]), ("mean", lambda p: sum(p) / 3)],
)
def test_how_steps_make_a_score(how, make, reward):
    process = ProcessReward(reward, how)
    (steps,) = process.step_scores([CHAT], [join_steps(STEPS)])
    chances = [1 / (1 + math.exp(-score)) for score in steps]
    found = process([CHAT, CHAT], [join_steps(STEPS), "One step."])
    assert math.exp(found[0]) == pytest.approx(make(chances), rel=1e-4)
    assert found[1] < 0
    assert process([], []) == []


def test_an_unknown_way_is_refused(reward):
    with pytest.raises(RewardError, match="how is 'max'; expected one of min, prod, last, mean"):
        ProcessReward(reward, "max")  # type: ignore[arg-type]


@pytest.fixture
def folder(reward, tmp_path):
    notes = {"steps": "prod", **vars(Normalisation(-2.0, 0.5, 8))}
    setattr(reward.model.config, CONFIG_KEY, notes)
    reward.model.save_pretrained(tmp_path / "prm")
    reward.tokenizer.save_pretrained(tmp_path / "prm")
    return tmp_path / "prm"


def test_a_process_model_is_not_read_as_an_ordinary_one(folder, tmp_path, capsys):
    for refused in (
        lambda: RewardModel.load(folder),
        lambda: load_posterior_reward(folder, "dropout", rate=0.1),
        lambda: posterior_of(RewardModel.load(folder, steps=True), "dropout", rate=0.1),
    ):
        with pytest.raises(ModelError, match=r"prod of its steps.*reward\.process\.load_reward"):
            refused()
    assert ProcessReward.load(folder, "last").how == "last"
    pairs = [
        {"prompt": f"What {i}? ", "chosen": join_steps(STEPS), "rejected": "It is nine."}
        for i in range(4)
    ]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    for command in (
        ["score", str(folder), str(data), str(tmp_path / "out.parquet")],
        ["calibrate", str(folder), "--data", str(data)],
    ):
        with pytest.raises(SystemExit) as ended:
            main(["reward", *command])
        assert ended.value.code == 2
        assert "is a process reward model" in " ".join(capsys.readouterr().err.split())


def test_an_evaluation_reads_the_steps(folder, tmp_path):
    judge, name, _ = open_judge(JudgeSection(path=str(folder)))
    assert name == "prm"
    answers = [join_steps(STEPS), "One step."]
    assert judge(["What? "] * 2, answers) == load_reward(folder, normalise=False)(
        ["What? "] * 2, answers
    )
    rows = [
        {"prompt": f"What {i}? ", "chosen": join_steps(STEPS), "rejected": f"No {i}.\nNo."}
        for i in range(8)
    ]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = measure_reward_model(str(folder), str(data))
    process = load_reward(folder, normalise=False)
    section = DataSection.model_validate({"train": str(data), "validation_fraction": 0.5})
    held_out = load_splits(section, "preference").validation
    assert report is not None
    assert held_out is not None
    right = []
    for row in held_out:
        better, worse = process.score([row["prompt"]] * 2, [row["chosen"], row["rejected"]])
        right.append(better > worse)
    assert report.n == len(right)
    assert report.accuracy == pytest.approx(sum(right) / len(right))


def test_the_model_says_that_it_reads_steps(reward, tmp_path):
    notes = {"steps": "prod", **vars(Normalisation(-2.0, 0.5, 8))}
    setattr(reward.model.config, CONFIG_KEY, notes)
    reward.model.save_pretrained(tmp_path / "prm")
    reward.tokenizer.save_pretrained(tmp_path / "prm")
    loaded = load_reward(tmp_path / "prm")
    assert isinstance(loaded, ProcessReward)
    raw = loaded.score([CHAT], [join_steps(STEPS)])
    assert loaded([CHAT], [join_steps(STEPS)]) == pytest.approx([(raw[0] + 2) / 0.5])
    in_memory = scorer_of(reward.model, reward.tokenizer)
    assert in_memory.score([CHAT], [join_steps(STEPS)]) == pytest.approx(raw, abs=1e-5)
    delattr(reward.model.config, CONFIG_KEY)
    assert isinstance(scorer_of(reward.model, reward.tokenizer), RewardModel)
