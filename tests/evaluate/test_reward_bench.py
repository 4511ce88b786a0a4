"""Rewards on labelled sets: figures by hand, known rewards, comparisons, pages."""

from __future__ import annotations

import gzip
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, ndcg_score, roc_auc_score

from align.errors import DataError
from align.evaluate.reward_bench import evaluate_sets, score_sets
from align.evaluate.reward_compare import compare_rewards
from align.evaluate.reward_model import evaluate_reward_model
from align.evaluate.reward_pairs import macro_interval
from align.evaluate.reward_rows import read_labelled
from align.evaluate.reward_sets import AnswerSet
from align.reward_cli.evaluate import measure
from reward.verify.math_answer import MathReward

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


def length(completions, **columns):
    return [
        len(text if isinstance(text, str) else text[0]["content"]) / 100 for text in completions
    ]


def made(n: int = 300, seed: int = 0) -> tuple[list[AnswerSet], list[np.ndarray]]:
    """Pairs in three categories of different size and difficulty, with scores."""
    generator = np.random.default_rng(seed)
    sets, scores = [], []
    for i in range(n):
        kind = "abc"[i % 7 % 3]
        right = generator.random() < {"a": 0.9, "b": 0.6, "c": 0.3}[kind]
        margin = abs(generator.normal()) * (1 if right else -1)
        weight = float(generator.integers(1, 4))
        sets.append(AnswerSet(f"p{i}", ("x" * (i % 5 + 1), "yy"), (1.0, 0.0), kind, weight))
        scores.append(np.array([margin, 0.0]))
    return sets, scores


def test_figures_by_hand():
    sets, scores = made()
    bench = evaluate_sets(sets, scores, "r")
    right = np.array([s[0] > s[1] for s in scores])
    weights = np.array([one.weight for one in sets])
    kinds = np.array([one.category for one in sets])
    everything = np.ones(300)
    assert bench.micro.value == pytest.approx(
        accuracy_score(everything, right, sample_weight=weights)
    )
    by_kind = {
        k: accuracy_score(everything[kinds == k], right[kinds == k],
                          sample_weight=weights[kinds == k]) for k in "abc"
    }  # fmt: skip
    assert {one.name: one.accuracy.value for one in bench.categories} == pytest.approx(by_kind)
    assert bench.macro.value == pytest.approx(np.mean(list(by_kind.values())))
    assert bench.macro.low < bench.macro.value < bench.macro.high
    longer = np.array([np.sign(len(one.answers[0]) - 2) / 2 + 0.5 for one in sets])
    assert bench.longer_wins == pytest.approx(np.average(longer, weights=weights))
    flat = np.concatenate(scores)
    assert bench.pair_report.auc == pytest.approx(roc_auc_score([1, 0] * 300, flat))
    assert bench.pair_report.log_loss == pytest.approx(
        np.mean([np.log1p(np.exp(-s[0] + s[1])) for s in scores])
    )
    assert (bench.sets, bench.pairs, bench.prompts, bench.rankings) == (300, 300, 300, None)
    json.dumps(bench.as_dict())


def test_the_macro_interval_covers():
    generator = np.random.default_rng(0)
    true, hits = [0.9, 0.6, 0.75], 0
    for run in range(200):
        parts = [((generator.random(60) < p).astype(float), np.ones(60)) for p in true]
        found = macro_interval(parts, resamples=400, seed=run)
        hits += found.low <= 0.75 <= found.high
    assert hits > 178  # 95% of 200 is 190, with a standard deviation of 3


def test_many_rows_of_one_prompt_are_one_observation():
    sets, scores = made(60)
    whole = evaluate_sets(sets, scores)
    copies = evaluate_sets(sets * 4, scores * 4)
    assert copies.micro.value == pytest.approx(whole.micro.value)
    # each prompt four times: the intervals do not shrink as if there were 240 of them
    assert copies.micro.high - copies.micro.low > 0.8 * (whole.micro.high - whole.micro.low)
    assert copies.macro.high - copies.macro.low == pytest.approx(
        whole.macro.high - whole.macro.low, rel=0.2
    )
    naive = evaluate_sets(
        [AnswerSet(f"{i}", o.answers, o.grades, o.category, o.weight) for i, o in
         enumerate(sets * 4)], scores * 4
    )  # fmt: skip
    assert naive.micro.high - naive.micro.low < 0.7 * (whole.micro.high - whole.micro.low)


def test_a_ranking_counts_once():
    """Three pairs of a ranking weigh as much as the single pair of another row."""
    sets = [
        AnswerSet("p", ("a", "bb", "ccc"), (2.0, 1.0, 0.0)),
        AnswerSet("q", ("a", "bb"), (1.0, 0.0)),
    ]
    bench = evaluate_sets(sets, [np.array([3.0, 2.0, 1.0]), np.array([0.0, 1.0])])
    assert bench.pairs == 4
    assert bench.micro.value == pytest.approx(0.5)
    assert bench.longer_wins == 0.0
    assert bench.rankings.sets == 1
    assert bench.rankings.best_of.value == bench.rankings.ndcg.value == 1.0
    assert bench.rankings.shorter == {"best_of": 1.0, "ndcg": 1.0, "kendall_tau": 1.0}
    assert bench.rankings.longer["kendall_tau"] == -1.0
    assert bench.rankings.random["best_of"] == pytest.approx(1 / 3)


def test_ties_and_undecided_sets():
    sets = [AnswerSet(f"p{i}", ("a", "b"), (1.0, 0.0)) for i in range(4)]
    sets.append(AnswerSet("even", ("a", "b"), (0.5, 0.5), soft=0.5))
    scores = [np.array([1.0, 1.0])] * 4 + [np.array([2.0, 0.0])]
    bench = evaluate_sets(sets, scores)
    assert (bench.undecided, bench.ties, bench.micro.value) == (1, 1.0, 0.5)
    assert "equal scores" in bench.warnings[-1]
    loss = np.log1p(np.exp(-2)) + 0.5 * 2  # softplus(-d) + (1 - p) d
    assert bench.soft_log_loss == pytest.approx(loss)


def test_wrong_input():
    sets, scores = made(4)
    with pytest.raises(DataError, match="4 sets came with scores for 3"):
        evaluate_sets(sets, scores[:3])
    with pytest.raises(DataError, match="set 0 has 2 answers and 1 scores"):
        evaluate_sets(sets, [s[:1] for s in scores])
    with pytest.raises(DataError, match="of the category 'a' have the weight 0"):
        evaluate_sets([one.about(one.category, 0.0, {}) for one in sets], scores)


def test_columns_reach_the_reward_row_by_row():
    sets = [
        AnswerSet("p", ("a", "b", "c"), (1, 0, 0), columns={"answer": "b"}),
        AnswerSet("q", ("b", "c"), (1, 0), columns={"answer": "c", "level": 3}),
    ]

    def matches(prompts, completions, answer, level):
        return [
            float(c == a) + (v or 0) for c, a, v in zip(completions, answer, level, strict=True)
        ]

    for size in (1, 2, 100):
        found = score_sets(matches, sets, size)
        assert [s.tolist() for s in found] == [[0, 1, 0], [3, 4]]


def test_comparisons():
    sets, scores = made()
    same = compare_rewards(sets, scores, scores)
    assert (same.overall.difference.value, same.overall.p_value, same.mcnemar_p) == (0, 1, 1)
    assert same.overall.difference.low < 0 < same.overall.difference.high  # equal is not certain
    turned = [s if i % 3 else -s for i, s in enumerate(scores)]  # a third of the verdicts flipped
    found = compare_rewards(sets, scores, turned, ("one", "two"))
    one, two = evaluate_sets(sets, scores), evaluate_sets(sets, turned)
    assert found.overall.difference.value == pytest.approx(one.micro.value - two.micro.value)
    assert found.overall.difference.low < found.overall.difference.value
    pairs = [(s[0] > 0, t[0] > 0) for s, t in zip(scores, turned, strict=True)]
    only = (sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs))
    assert (found.only_first, found.only_second) == only
    assert found.mcnemar_p == pytest.approx(stats.binomtest(only[0], sum(only)).pvalue)
    gaps = {a.name: a.accuracy.value - b.accuracy.value
            for a, b in zip(one.categories, two.categories, strict=True)}  # fmt: skip
    assert {c.name: c.difference.value for c in found.categories} == pytest.approx(gaps)
    assert all(c.p_adjusted >= c.p_value for c in found.categories)
    back = compare_rewards(sets, turned, scores)
    assert back.overall.difference.value == pytest.approx(-found.overall.difference.value)


@pytest.fixture(scope="module")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("shared/data is not beside the project")
    return SHARED


@pytest.fixture(scope="module")
def solutions(shared, tmp_path_factory) -> list[AnswerSet]:
    """Four models' solutions of each problem, graded right or wrong."""
    with gzip.open(shared / "gsm8k_solutions.jsonl.gz", "rt", encoding="utf-8") as stream:
        raw = [json.loads(line) for line in stream]
    path = tmp_path_factory.mktemp("kwise") / "solutions.jsonl"
    with path.open("w") as stream:
        for row in raw:
            made_row = {
                "prompt": row["question"],
                "responses": [row[m]["solution"] for m in MODELS],
                "scores": [row[m]["is_correct"] for m in MODELS],
                "answer": row["ground_truth"].rsplit("A: ", 1)[-1],
                "steps": f"{min(row['ground_truth'].count('<<'), 5)} steps",
            }
            stream.write(json.dumps(made_row) + "\n")
    return read_labelled(str(path), category="steps").sets


@pytest.mark.data
def test_a_verifier_and_length_on_real_solutions(solutions):
    verified = score_sets(MathReward(parser="numeric"), solutions)
    gold = evaluate_sets(solutions, verified, "gold")
    assert (gold.micro.value, gold.macro.value) == pytest.approx((1.0, 1.0))
    assert gold.micro.n == pytest.approx(gold.sets)  # problems, not pairs of solutions
    assert gold.micro.low < 0.993
    assert gold.rankings.best_of.value == gold.rankings.ndcg.value == pytest.approx(1.0)
    assert gold.rankings.kendall_tau.value == pytest.approx(1.0)
    assert 0.99 < gold.rankings.best_of.low < 1.0  # certain of nothing, even so
    assert any("every row is judged alike" in warning for warning in gold.warnings)
    assert gold.undecided == sum(len(set(one.grades)) == 1 for one in solutions) > 100
    by_length = score_sets(length, solutions)
    bench = evaluate_sets(solutions, by_length, "length")
    kept = [
        (one, s) for one, s in zip(solutions, by_length, strict=True) if len(set(one.grades)) > 1
    ]
    expected = np.mean([ndcg_score([one.grades], [s]) for one, s in kept])
    assert bench.rankings.ndcg.value == pytest.approx(expected)
    taus = [stats.kendalltau(one.grades, s)[0] for one, s in kept]
    assert bench.rankings.kendall_tau.value == pytest.approx(np.nan_to_num(taus).mean())
    assert bench.rankings.ndcg.value == pytest.approx(bench.rankings.longer["ndcg"])
    assert bench.longer_wins == pytest.approx(bench.micro.value)
    assert bench.rankings.random["best_of"] == pytest.approx(
        np.mean([np.mean(one.grades) for one, _ in kept])
    )
    found = compare_rewards(solutions, verified, by_length, ("gold", "length"))
    assert found.overall.difference.low > 0.3
    assert found.overall.p_value < 1e-3
    assert found.only_second == 0


@pytest.mark.data
def test_real_dialogues_agree_with_the_report_on_pairs(shared):
    sets = read_labelled(str(shared / "hh_harmless.jsonl.gz"), skip_bad=True).sets
    bench = evaluate_sets(sets, score_sets(length, sets), "length")
    rows = [{"prompt": o.prompt, "chosen": o.answers[0], "rejected": o.answers[1]} for o in sets]
    report = evaluate_reward_model(rows, length)
    assert bench.pair_report == report
    assert bench.micro.value == pytest.approx(report.accuracy)
    assert (bench.micro.low, bench.micro.high) == pytest.approx((report.low, report.high))
    assert (bench.categories, bench.macro) == ([], None)


@pytest.mark.data
def test_real_votes_by_category(shared):
    path = str(shared / "pandalm_votes.jsonl.gz")
    sets = read_labelled(path, category="motivation_app", skip_bad=True).sets
    scores = score_sets(length, sets)
    bench = evaluate_sets(sets, scores, "length")
    right: dict[str, list[float]] = {}
    for one, s in zip(sets, scores, strict=True):
        if one.grades[0] != one.grades[1]:
            sign = np.sign(s[0] - s[1]) * np.sign(one.grades[0] - one.grades[1])
            right.setdefault(one.category, []).append((1 + sign) / 2)
    assert {c.name: c.accuracy.value for c in bench.categories} == pytest.approx(
        {name: np.mean(found) for name, found in right.items()}
    )
    assert bench.macro.value == pytest.approx(np.mean([np.mean(v) for v in right.values()]))
    assert any("fewer than 20 prompts" in warning for warning in bench.warnings)
    losses = [
        np.logaddexp(0, -(s[0] - s[1])) + (1 - one.soft) * (s[0] - s[1])
        for one, s in zip(sets, scores, strict=True)
    ]
    assert bench.soft_log_loss == pytest.approx(np.mean(losses))


class Page(HTMLParser):
    """Tags that close, figures by name, and all text."""

    def __init__(self, source: str):
        super().__init__()
        self.open: list[str] = []
        self.figures: dict[str, float] = {}
        self.text = ""
        self.links: list[str] = []
        self.ids: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if values.get("data-figure"):
            self.figures[values["data-figure"]] = float(values["value"])
        self.links += [v for k, v in attrs if k in ("href", "src")]
        self.ids += [v for k, v in attrs if k == "id"]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.text += data


@pytest.mark.data
def test_the_page_and_the_json_say_the_same(solutions, tmp_path):
    evil = "<script>alert(1)</script> [/bold]"
    sets = [one.about(one.category.replace("2 steps", evil), 1.0, one.columns) for one in solutions]
    rewards = {"length": length, "gold": MathReward(parser="numeric")}
    report = measure(rewards, sets[:300], target="t", data="solutions", rows=300, bad={evil: 2},
                     probes=True, probe_rows=60)  # fmt: skip
    report.save_json(tmp_path / "out" / "report.json")
    report.save_html(tmp_path / "out" / "report.html")
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    source = (tmp_path / "out" / "report.html").read_text()
    page = Page(source)
    assert page.open == []
    assert "<script" not in source
    assert evil in page.text
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert page.figures["micro"] == pytest.approx(found["bench"]["micro"]["value"])
    assert page.figures["macro"] == pytest.approx(found["bench"]["macro"]["value"])
    assert page.figures["ranking.ndcg"] == pytest.approx(
        found["bench"]["rankings"]["ndcg"]["value"]
    )
    assert page.figures["probe.filler"] == 1.0
    assert page.figures["difference"] == pytest.approx(
        found["comparison"]["overall"]["difference"]["value"]
    )
    assert "filler" in found["probes"]["failed"]
    assert {one["name"] for one in found["consistency"]} == {"whitespace", "reworded", "typos"}
