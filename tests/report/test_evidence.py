"""Figures over prompts and over seeds, and the verdict drawn from them."""

from __future__ import annotations

import statistics

import pytest

from align.report.collect import collect
from align.report.evidence import Estimate, estimate_of, evaluate_family, over_seeds
from align.report.families import make_families
from align.report.reward import gather, reward_evidence
from align.report.verdict import decide, key_figures, tone_of

T_TWO_DEGREES = 4.302652729911275  # 97.5% quantile of Student's t with 2 degrees of freedom


def evaluation_of(folder):
    families = make_families(collect([folder]))
    return evaluate_family(next(f for f in families if f.stage == "evaluate"))


def test_one_evaluation_keeps_its_own_intervals(pipeline, read, tmp_path):
    file = pipeline()["evaluate"] / "evaluation.json"
    found = evaluation_of(tmp_path / "runs")
    for row, shown in zip(read(file)["win_rates"], found.wins, strict=True):
        assert (shown.a, shown.b, shown.judge) == (row["a"], row["b"], row["judge"])
        expected = (row["rate"], row["low"], row["high"], row["n"])
        rate = shown.rate
        assert (rate.value, rate.low, rate.high, rate.n) == expected
        assert (rate.over, rate.dots) == ("prompts", ())
        assert shown.p_value == row["p_adjusted"]
        assert shown.score_difference.low == row["score_low"]


def test_several_seeds_give_the_mean_and_a_t_interval(pipeline, read, tmp_path):
    files = [pipeline(seed=seed)["evaluate"] / "evaluation.json" for seed in (1, 2, 3)]
    rates = [
        row["rate"]
        for file in files
        for row in read(file)["win_rates"]
        if (row["a"], row["judge"]) == ("ppo", "gold")
    ]
    found = evaluation_of(tmp_path / "runs")
    row = next(row for row in found.wins if (row.a, row.judge) == ("ppo", "gold"))
    half = T_TWO_DEGREES * statistics.stdev(rates) / 3**0.5
    assert row.rate.value == pytest.approx(statistics.mean(rates))
    assert row.rate.low == pytest.approx(statistics.mean(rates) - half)
    assert row.rate.high == pytest.approx(statistics.mean(rates) + half)
    assert row.rate.dots == tuple(zip(("seed 1", "seed 2", "seed 3"), rates, strict=True))
    assert row.rate.n == 200
    assert row.p_value is None
    assert len(row.per_seed) == 3


def test_model_and_reward_figures(pipeline, read, tmp_path):
    saved = read(pipeline()["evaluate"] / "evaluation.json")
    found = evaluation_of(tmp_path / "runs")
    assert found.metrics["length_mean"]["ppo"].value == saved["models"]["ppo"]["length_mean"]
    score = found.metrics["score_mean"]["ppo"]
    assert (score.low, score.high) == tuple(
        saved["models"]["ppo"][f"score_{e}"] for e in ("low", "high")
    )
    assert "score_low" not in found.metrics
    reward = saved["reward_model"]
    (shown,) = reward_evidence([], [found])
    assert shown.figures["accuracy"] == Estimate(
        reward["accuracy"], reward["low"], reward["high"], reward["n"]
    )
    assert shown.figures["length_baseline"].value == reward["length_baseline"]["accuracy"]
    assert shown.figures["length_baseline"].low == reward["length_baseline"]["low"]
    assert shown.figures["ece"].value == reward["ece"]
    assert [item["observed"] for item in shown.bins] == [
        b["accuracy"] for b in reward["reliability"]
    ]


def test_annotator_consistency_goes_by_several_names(pipeline, read, edit, tmp_path):
    file = pipeline()["evaluate"] / "evaluation.json"
    reward = read(file)["reward_model"] | {"annotator_consistency": {"value": 0.8, "low": 0.77}}
    edit(file, reward_model=reward)
    (shown,) = reward_evidence([], [evaluation_of(tmp_path / "runs")])
    assert shown.figures["annotators"].value == 0.8


def test_a_reward_run_speaks_for_itself_where_no_evaluation_does(pipeline, read, edit):
    paths = pipeline()
    saved = read(paths["evaluate"] / "evaluation.json")["reward_model"]
    edit(paths["reward"] / "run.json", results={"steps": 3, "validation": saved})
    families = make_families(collect([paths["reward"]]))
    (shown,) = reward_evidence(families, [])
    assert shown.label == "Reward model, its own validation pairs"
    assert shown.figures["accuracy"].value == saved["accuracy"]
    edit(paths["reward"] / "run.json", results={"validation": {}, "test": {"accuracy": 0.5}})
    (shown,) = reward_evidence(make_families(collect([paths["reward"]])), [])
    assert (shown.label, shown.figures["accuracy"].value) == (
        "Reward model, its own test pairs",
        0.5,
    )


def test_a_summary_speaks_of_reward_models_too():
    runs = [
        {
            "seed": seed,
            "reward_model": {
                "accuracy": 0.7 + seed / 100,
                "low": 0.6,
                "high": 0.8,
                "n": 90,
                "annotator_consistency": {"rate": 0.75, "low": 0.7, "high": 0.8, "n": 300},
            },
        }
        for seed in (0, 1, 2)
    ]
    (shown,) = reward_evidence([], [], {"runs": runs})
    assert shown.figures["accuracy"].dots == (("seed 0", 0.7), ("seed 1", 0.71), ("seed 2", 0.72))
    assert shown.figures["accuracy"].value == pytest.approx(0.71)
    assert shown.figures["annotators"].value == pytest.approx(0.75)
    (single,) = reward_evidence([], [], runs[1])
    assert (single.figures["accuracy"].value, single.figures["accuracy"].low) == (0.71, 0.6)
    assert reward_evidence([], [], {"runs": [{"reward_model": None}], "reward_model": 3}) == []


@pytest.mark.parametrize("value", [None, "0.7", True, float("nan"), [0.7], {"value": "x"}, {}])
def test_what_is_no_figure_is_none(value):
    assert estimate_of(value) is None


def test_over_seeds_of_none_and_one():
    one = Estimate(0.7, 0.6, 0.8, 100)
    assert over_seeds([]) is None
    assert over_seeds([("seed 1", one)]) is one


def test_seeds_that_agree_wholly_are_as_sure_as_one():
    found = [("seed 1", Estimate(1.0, 0.84, 1.0, 20)), ("seed 2", Estimate(1.0, 0.8, 1.0, 20))]
    both = over_seeds(found)
    assert (both.value, both.low, both.high, both.over) == (1.0, 0.8, 1.0, "prompts")
    bare = over_seeds([("seed 1", Estimate(0.5)), ("seed 2", Estimate(0.5))])
    assert (bare.value, bare.has_interval) == (0.5, False)


def test_a_share_over_seeds_ends_at_one():
    found = [("seed 1", Estimate(1.0)), ("seed 2", Estimate(0.9))]
    assert over_seeds(found).high > 1
    assert over_seeds(found, share=True).high == 1


def test_one_reward_model_evaluated_twice_is_measured_once():
    section = {"accuracy": 0.9, "low": 0.7, "high": 0.97, "n": 20, "log_loss": 0.25}
    same = gather("x", [("seed 0", section | {"ece": 0.1}), ("seed 1", section | {"ece": 0.1})])
    accuracy = same.figures["accuracy"]
    assert (same.seeds, accuracy.low, accuracy.high, accuracy.n) == (1, 0.7, 0.97, 20)
    other = gather("x", [("seed 0", section), ("seed 1", section | {"log_loss": 0.26})])
    assert other.seeds == 2
    assert gather("x", [("a", {"accuracy": 0.9}), ("b", {"accuracy": 0.9})]).seeds == 2


@pytest.mark.parametrize(
    ("low", "high", "tone"),
    [
        (0.51, 0.8, "better"),
        (0.5, 0.8, "unclear"),
        (0.2, 0.49, "worse"),
        (0.2, 0.5, "unclear"),
        (None, None, "unclear"),
    ],
)
def test_a_side_is_taken_only_where_the_interval_excludes_a_half(low, high, tone):
    assert tone_of(Estimate(0.5, low, high)) == tone


def test_the_headline_is_the_best_policy_by_the_gold_judge(pipeline, read, edit, tmp_path):
    file = pipeline()["evaluate"] / "evaluation.json"
    rows = read(file)["win_rates"]
    for row in rows:
        gold = row["judge"] == "gold"
        row |= {"rate": 0.61 if gold else 0.95, "low": 0.54, "high": 0.68}
        if row["a"] == "dpo" and gold:
            row |= {"rate": 0.66, "low": 0.59, "high": 0.72}
    edit(file, win_rates=rows)
    runs = collect([tmp_path / "runs"])
    verdict = decide(runs, evaluation_of(tmp_path / "runs"))
    assert verdict.tone == "better"
    assert verdict.headline.striptags() == "DPO wins 66% [59, 72] against SFT"
    assert verdict.detail.startswith("By the gold judge, n = 200; 95% interval over prompts.")
    assert "Best of 2 policies" in verdict.detail
    found = evaluation_of(tmp_path / "runs")
    labels = [one.label for one in key_figures(runs, found, reward_evidence([], [found]))]
    assert labels == ["DPO against SFT", "PPO against SFT", "Reward-model accuracy", "Time spent"]


@pytest.mark.parametrize(
    ("rate", "low", "high", "words"),
    [
        (0.31, 0.25, 0.38, "PPO loses to SFT: it wins only 31% [25, 38]"),
        (0.54, 0.47, 0.61, "PPO is not shown to beat SFT: it wins 54% [47, 61]"),
        (0.54, None, None, "PPO is not shown to beat SFT: it wins 54% (no interval)"),
    ],
)
def test_defeat_and_doubt_are_said(pipeline, read, edit, tmp_path, rate, low, high, words):
    file = pipeline()["evaluate"] / "evaluation.json"
    row = read(file)["win_rates"][1] | {"rate": rate, "low": low, "high": high}
    edit(file, win_rates=[row])
    verdict = decide(collect([tmp_path / "runs"]), evaluation_of(tmp_path / "runs"))
    assert verdict.headline.striptags() == words


def test_the_starting_model_never_makes_the_headline(pipeline, read, edit, tmp_path):
    file = pipeline()["evaluate"] / "evaluation.json"
    rows = read(file)["win_rates"]
    edit(file, win_rates=[rows[0] | {"a": "base", "rate": 0.99, "high": 1.0}, rows[1]])
    runs = collect([tmp_path / "runs"])
    verdict = decide(runs, evaluation_of(tmp_path / "runs"))
    assert [row.a for row in verdict.rows] == ["ppo", "base"]
    assert verdict.headline.striptags().startswith("PPO wins")
    assert "Best of" not in verdict.detail


def test_without_an_evaluation_nothing_is_claimed(pipeline):
    runs = collect([pipeline()["sft"]])
    verdict = decide(runs, None)
    assert (verdict.tone, verdict.rows) == ("none", [])
    assert verdict.headline == "Not judged yet"
    assert key_figures(runs, None)[0].label == "SFT, held-out loss"


def test_unfinished_runs_temper_the_verdict(pipeline, edit, tmp_path):
    edit(pipeline()["ppo"] / "run.json", status="interrupted")
    verdict = decide(collect([tmp_path / "runs"]), evaluation_of(tmp_path / "runs"))
    assert "1 of the 5 runs behind this did not complete" in verdict.detail
