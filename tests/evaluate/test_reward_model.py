"""Reward-model reports: known qualities in, the same qualities out."""

import json
import math

import numpy as np
import pytest

from align.errors import DataError, RewardError
from align.evaluate.reward_model import evaluate_reward_model

SCORES: dict[str, float] = {}


def by_table(prompts, completions, **columns):
    """A reward function that knows every completion's score."""
    return [SCORES[text] for text in completions]


def by_length(prompts, completions, **columns):
    return [float(len(text)) for text in completions]


def pairs(n: int, seed: int = 0, per_prompt: int = 1) -> list[dict]:
    """Pairs of a calibrated reward model with accuracy around 0.75 and random lengths."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(n):
        log_odds = rng.normal(0, 2)
        right = rng.random() < 1 / (1 + math.exp(-log_odds))
        texts = [f"{index}{side}" + "x" * int(rng.integers(0, 50)) for side in "ab"]
        margin = log_odds if right else -log_odds
        SCORES[texts[0]], SCORES[texts[1]] = margin, 0.0
        prompt = f"prompt {seed} {index // per_prompt}"
        rows.append({"prompt": prompt, "chosen": texts[0], "rejected": texts[1]})
    return rows


def test_calibrated_model() -> None:
    report = evaluate_reward_model(pairs(1000), by_table)
    assert 0.70 < report.low < report.accuracy < report.high < 0.83
    assert report.n == report.prompts == 1000
    assert report.log_loss < 0.6
    assert report.ece == pytest.approx(report.ece_expected, abs=0.02)
    assert report.ece_p_value > 0.05
    assert report.length_baseline.high > 0.45
    assert report.length_baseline.p_value < 1e-6
    assert abs(report.length_correlation) < 0.1
    assert report.against_length["accuracy"] > 0.65
    json.dumps(report.as_dict())


def test_swapping_chosen_and_rejected_mirrors_the_accuracy() -> None:
    rows = pairs(300)
    swapped = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    one, two = evaluate_reward_model(rows, by_table), evaluate_reward_model(swapped, by_table)
    assert (one.accuracy, one.low) == pytest.approx((1 - two.accuracy, 1 - two.high))
    assert one.auc == pytest.approx(1 - two.auc)


def test_a_model_that_is_length_is_seen_through() -> None:
    rows = pairs(400)
    rows = [
        r
        if len(r["chosen"]) > len(r["rejected"]) or k % 4 == 0
        else r | {"chosen": r["rejected"], "rejected": r["chosen"]}
        for k, r in enumerate(rows)
    ]
    report = evaluate_reward_model(rows, by_length)
    assert report.accuracy == pytest.approx(report.length_baseline.accuracy)
    assert report.length_baseline.rule == "longer wins"
    assert report.length_baseline.p_value == 1.0
    assert report.length_correlation > 0.99
    assert report.against_length["accuracy"] == 0.0


def test_length_baseline_is_perfect_where_longer_always_wins() -> None:
    rows = [
        {"prompt": f"p{k}", "chosen": "x" * (k + 2), "rejected": "x" * (k + 1)} for k in range(40)
    ]
    report = evaluate_reward_model(rows, by_length)
    assert report.length_baseline.accuracy == 1.0
    assert report.length_baseline.rule == "longer wins"
    assert "cross-fitted" in report.length_baseline.fitted_on
    assert report.against_length is None
    backwards = [{**r, "chosen": r["rejected"], "rejected": r["chosen"]} for r in rows]
    other = evaluate_reward_model(backwards, by_length)
    assert other.length_baseline.rule == "shorter wins"
    assert other.length_baseline.accuracy == 1.0


def test_rule_comes_from_the_training_pairs_not_from_the_test() -> None:
    rows = [{"prompt": f"p{k}", "chosen": "xxx", "rejected": "x"} for k in range(20)]
    train = [{"prompt": f"q{k}", "chosen": "x", "rejected": "xxx"} for k in range(20)]
    report = evaluate_reward_model(rows, by_length, fit_rows=train)
    assert report.length_baseline.rule == "shorter wins"
    assert report.length_baseline.accuracy == 0.0
    assert report.length_baseline.fitted_on == "training pairs"


def test_cross_fitting_gives_the_length_rule_no_credit_for_luck() -> None:
    """Lengths that mean nothing: a rule judged on its own pairs would beat a coin every time."""
    cross, own = [], []
    for seed in range(40):
        rows = pairs(20, seed)
        cross.append(evaluate_reward_model(rows, by_length).length_baseline.accuracy)
        own.append(evaluate_reward_model(rows, by_length, fit_rows=rows).length_baseline.accuracy)
    assert np.mean(own) > 0.55
    assert np.mean(cross) < 0.52


def test_pairs_of_one_prompt_count_as_dependent() -> None:
    rows = pairs(200)
    copied = [row for row in rows for _ in range(5)]
    one, many = evaluate_reward_model(rows, by_table), evaluate_reward_model(copied, by_table)
    assert many.n == 1000
    assert many.prompts == 200
    assert (many.low, many.high) == pytest.approx((one.low, one.high), abs=0.005)


def test_columns_conversations_and_one_prompt() -> None:
    def wants_key(prompts, completions, key, **columns):
        assert "margin" not in columns
        return [float(text[-1]["content"] == k) for text, k in zip(completions, key, strict=True)]

    rows = [
        {
            "prompt": [{"role": "user", "content": "hi"}],
            "chosen": [{"role": "assistant", "content": "yes"}],
            "rejected": [{"role": "assistant", "content": f"no {k}"}],
            "margin": 1.0,
            "key": "yes",
        }
        for k in range(3)
    ]
    report = evaluate_reward_model(rows, wants_key)
    assert report.accuracy == 1.0
    assert report.length_baseline is None  # one prompt cannot be halved


def test_errors() -> None:
    with pytest.raises(DataError, match="no preferences"):
        evaluate_reward_model([], by_length)
    with pytest.raises(DataError, match="row 0 has no prompt; it has chosen, rejected"):
        evaluate_reward_model([{"chosen": "a", "rejected": "b"}], by_length)

    def nan(prompts, completions, **columns):
        return [float("nan")] * len(completions)

    with pytest.raises(RewardError, match="returned nan"):
        evaluate_reward_model(pairs(3), nan)


def test_ties_are_left_out_and_soft_labels_are_no_column_of_the_reward():
    def score(prompts, completions, **columns):
        assert not columns
        return [float(len(text)) for text in completions]

    row = {"prompt": "q", "chosen": "longer", "rejected": "no"}
    tie = row | {"rejected": "much longer", "soft_label": 0.5}
    report = evaluate_reward_model([row | {"soft_label": 0.9}, tie], score)
    assert (report.n, report.accuracy) == (1, 1.0)
    with pytest.raises(DataError, match="all 1 preferences are ties"):
        evaluate_reward_model([tie], score)
