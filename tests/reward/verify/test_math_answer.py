"""Final answers: found, compared exactly, and held against people's judgement of real solutions."""

from __future__ import annotations

import gzip
import json
import threading
import time
from pathlib import Path

import pytest

from reward.errors import MissingDependencyError, RewardError
from reward.functions import call_reward
from reward.verify import math_answer as module
from reward.verify.math_answer import MathReward, final_answer, math_answer, same_answer
from reward.verify.worker import Worker

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{\frac{1}{2}} and 7", r"\frac{1}{2}"),
        (r"\boxed{3} no: \boxed{4}", "4"),
        (r"\boxed{3", "3"),  # never closed: the last number
        ("2 + 2 = 5\n#### 1,234\n", "1,234"),
        ("It costs $12.50, not 13.", "13"),
        ("He has 1,200 of 3/4.", "3/4"),
        ("Left: -7", "-7"),
        ("It takes 1 1/2 cups.", "1 1/2"),
        ("In 2020 1/2 of them left", "1/2"),
        ("none", None),
    ],
)
def test_where_an_answer_is_found(text, expected):
    assert final_answer(text) == expected


def test_strict_takes_no_last_number():
    assert final_answer("so it is 4", strict=True) is None
    assert final_answer("#### 4", strict=True) == "4"


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        ("1,234.50", "1234.5", True),
        ("$5", "5", True),
        (r"\frac{3}{4}", "0.75", True),
        (r"-\frac{1}{2}", "-0.5", True),
        ("3/4", "6/8", True),
        (r"5\text{ cm}", "5", True),
        ("20%", "20", True),
        ("18.", "18", True),
        ("0.1", "0.10000000000000001", False),  # exact, not nearly
        ("12", "13", False),
        (r"\text{(A)}", "(A)", True),
        (r"\text{a}", r"\text{b}", None),
        ("1/0", "1", None),
        ("x+1", "1+x", None),
        ("1 1/2", "3/2", True),
        ("1 1/2", "11/2", False),
        (r"-2\frac{1}{2}", "-2.5", True),
        (r"2 \tfrac13", "7/3", True),
        ("1 100/200", "1.5", True),
        ("1 3/2", "5/2", None),  # or is it a product?
        ("3 4", "34", None),
        ("3 4 x", "34 x", None),
        (r"12\,345", "12345", True),
        (r"1,\!234", "1 234", True),
        ("1 234.5", "1234.5", True),
        ("1234 567", "1234567", None),
        (r"-\$ 5", "- 5 %", True),
        ("( 1 , x )", "(1,x)", True),
    ],
)
def test_answers_are_compared_exactly(found, expected, same):
    assert same_answer(found, expected) is same


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        (r"\frac{x+1}{2}", "(x+1)/2", True),
        (r"2\sqrt{2}", r"\sqrt{8}", True),
        (r"\{1,2\}", r"\{2,1\}", True),
        ("(1,2)", "(2,1)", False),
        ("x", "y", False),
        (r"\frac{", "x", False),
    ],
)
def test_algebra_by_math_verify(found, expected, same):
    reward = MathReward(parser="math-verify", seconds=60)
    assert reward(["p"], [rf"\boxed{{{found}}}"], answer=[expected]) == [float(same)]
    assert MathReward(parser="numeric").same(found, expected) is False


def test_algebra_that_never_ends_is_ended_and_the_next_question_answered():
    with Worker("algebra", seconds=2) as algebra:
        started = time.monotonic()
        assert algebra.ask("3", "9^{9^{9^{9}}}") is None
        assert algebra.process is None  # ended
        algebra.seconds = 60
        assert algebra.ask("1+x", "x+1") is True
        assert time.monotonic() - started < 120


def test_it_works_in_a_thread():
    """math-verify's own time-out works in the main thread only, and rewards run in others."""
    found = []
    reward = MathReward(seconds=60)
    arguments = (["p"], [r"\boxed{1+x}"])
    thread = threading.Thread(target=lambda: found.extend(reward(*arguments, answer=["x+1"])))
    thread.start()
    thread.join(120)
    assert found == [1.0]


def test_the_plain_function_and_what_it_logs():
    completions = ["#### 4", [{"role": "assistant", "content": r"\boxed{5}"}], "no idea"]
    truth = ["2 + 2 = <<2+2=4>>4\n#### 4", "4", "4"]
    assert call_reward(math_answer, ["p"] * 3, completions, answer=truth) == [1.0, 0.0, 0.0]
    noted = {}
    MathReward()(["p"] * 3, completions, log_metric=noted.__setitem__, answer=truth)
    assert noted == {"math/no_answer": pytest.approx(1 / 3)}


def test_what_is_refused(monkeypatch):
    with pytest.raises(RewardError, match="needs the column 'answer'; the data have other"):
        MathReward()(["p"], ["4"], other=["4"])
    with pytest.raises(RewardError, match="row 0: the column 'answer' holds no answer"):
        MathReward()(["p"], ["4"], answer=[" "])
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert MathReward().parser == "numeric"
    with pytest.raises(MissingDependencyError, match=r"math-verify is not installed.*pip install"):
        MathReward(parser="math-verify")


@pytest.mark.data
def test_it_agrees_with_people_on_real_solutions():
    file = DATA / "gsm8k_solutions.jsonl.gz"
    if not file.is_file():
        pytest.skip(f"{file} is missing")
    reward, texts, truths, judged = MathReward(parser="numeric"), [], [], []
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            for name, solution in row.items():
                if name.startswith(("6b", "175b")):
                    texts.append(solution["solution"])
                    truths.append(row["ground_truth"].rsplit("A:", 1)[1])
                    judged.append(float(solution["is_correct"]))
    assert len(judged) == 3600
    assert 0.1 < sum(judged) / 3600 < 0.9
    assert reward([""] * 3600, texts, answer=truths) == judged
