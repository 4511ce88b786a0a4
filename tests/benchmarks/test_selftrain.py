"""The generated worlds of the self-training benchmark: what their figures rest on."""

from __future__ import annotations

import random

from benchmarks import selftrain_pairs, selftrain_world
from reward.verify.math_answer import MathReward


def test_solutions_are_right_and_no_problem_is_in_two_parts():
    level = selftrain_world.Level((1, 4), 30, 9)
    parts = selftrain_world.make_world(0, {"test": 60, "train": 200}, level)
    rows = [row for part in parts.values() for row in part]
    assert len({row["prompt"] for row in rows}) == 260
    reward = MathReward(parser="numeric", strict=True)
    prompts, worked = [r["prompt"] for r in rows], [r["completion"] for r in rows]
    answers = [row["answer"] for row in rows]
    assert reward(prompts, worked, answer=answers) == [1.0] * 260
    for row in rows:
        lines = row["completion"].splitlines()
        assert 1 <= len(lines) - 1 <= 4
        for line in lines[:-1]:
            left, right = line.split("=")
            assert eval(left) == int(right) <= 30
        assert lines[-1] == f"#### {lines[-2].split('=')[1]}"
    assert parts == selftrain_world.make_world(0, {"test": 60, "train": 200}, level)
    assert parts != selftrain_world.make_world(1, {"test": 60, "train": 200}, level)


def test_people_err_as_their_model_says():
    draw = random.Random(0)
    noisy = [selftrain_pairs.labelled(draw, n) for n in range(2000)]
    right = sum(selftrain_pairs.gold(row) > 0 for row in noisy) / 2000
    assert 0.8 < right < 0.97
    assert all(
        selftrain_pairs.gold(selftrain_pairs.labelled(draw, n, noise=False)) > 0 for n in range(200)
    )
