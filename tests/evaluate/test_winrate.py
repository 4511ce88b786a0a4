"""Win rates: by hand, mirrored, covered, and with judges that look at the position."""

import numpy as np
import pytest
from scipy import stats

from align.errors import DataError, RewardError
from align.evaluate.generate import Completions
from align.evaluate.judge import ComparingJudge, ScoringJudge, as_judge, compare_completions
from align.evaluate.winrate import win_rate_from_scores, win_rate_from_verdicts, win_rates
from align.types import Text


def written(texts: list[str], samples: int = 1) -> Completions:
    count = len(texts)
    prompts: list[Text] = [f"prompt {row}" for row in range(count // samples)]
    ids = [[1]] * count
    return Completions(
        prompts, samples, list(texts), ids, ids, [[0.0]] * count, [True] * count, 1.0
    )


def rate_of(a: np.ndarray, b: np.ndarray, **options: float):
    return win_rate_from_scores(a, b, a="new", b="old", judge="gold", **options)


def column(values: list[float]) -> np.ndarray:
    return np.array(values)[:, None]


def test_win_rate_by_hand() -> None:
    a, b = column([3, 2, 1, 5, 5, 5, 5]), column([1, 1, 1, 6, 4, 4, 4])
    rate = rate_of(a, b)
    assert (rate.n, rate.wins, rate.losses, rate.ties) == (7, 5, 1, 1)
    assert rate.rate == pytest.approx(5.5 / 7)
    assert rate.p_value == pytest.approx(2 * 7 / 64)  # 5 of 6 or more, both sides
    assert rate.score_difference == pytest.approx(5 / 7)
    assert rate.low < rate.rate < rate.high
    assert rate.score_low < rate.score_difference < rate.score_high


def test_tie_margin() -> None:
    a, b = column([1.0, 1.0, 1.0]), column([0.5, 0.9, 1.4])
    assert (rate_of(a, b).wins, rate_of(a, b).losses) == (2, 1)
    wide = rate_of(a, b, tie_margin=0.45)
    assert (wide.wins, wide.losses, wide.ties) == (1, 0, 2)
    with pytest.raises(DataError, match="not negative"):
        rate_of(a, b, tie_margin=-0.1)


def test_swapping_mirrors_everything() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.3, 1, size=(80, 3)), rng.normal(size=(80, 3))
    one, two = rate_of(a, b, tie_margin=0.2), rate_of(b, a, tie_margin=0.2)
    assert (one.wins, one.losses, one.ties) == (two.losses, two.wins, two.ties)
    assert (one.rate, one.low, one.high) == pytest.approx((1 - two.rate, 1 - two.high, 1 - two.low))
    assert (one.p_value, one.score_p_value) == (two.p_value, two.score_p_value)
    assert one.score_difference == pytest.approx(-two.score_difference)


def test_a_model_against_itself_is_even() -> None:
    scores = np.random.default_rng(0).normal(size=(50, 2))
    rate = rate_of(scores, scores)
    assert rate.rate == 0.5
    assert rate.ties == 50
    assert rate.p_value == rate.score_p_value == 1.0


def test_several_samples_are_averaged_per_prompt() -> None:
    # Prompt 1: pairs (1,0) (1,3) (2,0) (2,3) -> 2 of 4; prompt 2: 4 of 4.
    rate = rate_of(np.array([[1.0, 2.0], [5, 6]]), np.array([[0.0, 3.0], [1, 2]]))
    assert rate.n == 2
    assert rate.samples == 2
    assert rate.rate == pytest.approx(0.75)
    assert (rate.wins, rate.ties) == (1, 1)


def test_copying_samples_does_not_add_certainty() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.3, 1, size=(60, 1)), rng.normal(size=(60, 1))
    once, copied = rate_of(a, b), rate_of(a.repeat(8, axis=1), b.repeat(8, axis=1))
    assert (once.low, once.high, once.p_value) == pytest.approx(
        (copied.low, copied.high, copied.p_value)
    )


@pytest.mark.parametrize("samples", [1, 4])
def test_interval_covers_the_true_rate(samples: int) -> None:
    """Prompts differ in how much better a is; the interval must cover the rate over all prompts."""
    rng = np.random.default_rng(samples)
    edge = rng.normal(0.5, 1, size=100_000)
    truth = stats.norm.cdf(edge / np.sqrt(2)).mean()
    hits = 0
    for _ in range(500):
        shift = rng.normal(0.5, 1, size=(80, 1))
        a = shift + rng.normal(size=(80, samples))
        b = rng.normal(size=(80, samples))
        gaps = a[:, :, None] - b[:, None, :]
        rate = win_rate_from_verdicts(
            (gaps > 0).mean(axis=2), (gaps > 0).mean(axis=2), a="a", b="b", judge="j"
        )
        hits += rate.low <= truth <= rate.high
    assert 0.92 <= hits / 500 <= 0.98


def longer(prompts, first, second, **columns):
    """A fair judge: the longer text wins."""
    return [
        "tie" if len(a) == len(b) else "first" if len(a) > len(b) else "second"
        for a, b in zip(first, second, strict=True)
    ]


def biased(prompts, first, second, **columns):
    """The longer text wins, but only by three characters; otherwise the first one does."""
    return [
        "second" if len(b) > len(a) + 3 else "first" for a, b in zip(first, second, strict=True)
    ]


def random_texts(seed: int, low: int, high: int, count: int = 200) -> list[str]:
    lengths = np.random.default_rng(seed).integers(low, high, size=count)
    return ["x" * int(length) for length in lengths]


def test_fair_comparing_judge_equals_the_scoring_one() -> None:
    models = {"new": written(random_texts(0, 5, 20)), "old": written(random_texts(1, 1, 18))}
    (compared,) = win_rates(as_judge(longer), models, [("new", "old")])

    def length(prompts, completions, **columns):
        return [float(len(text)) for text in completions]

    (scored,) = win_rates(as_judge(length), models, [("new", "old")])
    assert (compared.rate, compared.low, compared.p_value) == (
        scored.rate,
        scored.low,
        scored.p_value,
    )
    assert compared.position.consistent == 1.0
    assert compared.position.first_rate == 0.5
    assert compared.position.p_value == 1.0
    assert compared.score_difference is None


def test_position_bias_is_detected_and_neutralised() -> None:
    same = random_texts(0, 1, 20)
    models = {"new": written(same), "old": written(random_texts(3, 1, 20))}
    judge = as_judge(biased)
    a_first, b_first = compare_completions(judge, ("new", "old"), models["new"], models["old"])
    assert a_first.mean() > 0.58  # asked in one order only, either model seems to win
    assert b_first.mean() < 0.42
    (rate,) = win_rates(judge, models, [("new", "old")])
    assert rate.low < 0.5 < rate.high
    assert rate.rate == pytest.approx((a_first.mean() + b_first.mean()) / 2)
    assert rate.position.first_rate > 0.58
    assert rate.position.p_value < 1e-6
    assert rate.position.consistent < 0.9
    (mirrored,) = win_rates(judge, models, [("old", "new")])
    assert mirrored.rate == pytest.approx(1 - rate.rate)
    assert mirrored.position == rate.position


def test_win_and_tie_make_three_quarters() -> None:
    rate = win_rate_from_verdicts(column([1, 1, 0.5]), column([1, 0.5, 0]), a="a", b="b", judge="j")
    assert rate.rate == pytest.approx((1 + 0.75 + 0.25) / 3)
    assert (rate.wins, rate.losses, rate.ties) == (2, 1, 0)
    assert rate.position.consistent == pytest.approx(1 / 3)


def test_holm_over_all_comparisons() -> None:
    rng = np.random.default_rng(2)
    models = {name: written(["x"] * 40) for name in ("base", "dpo", "ppo")}
    scores = {
        "base": rng.normal(size=(40, 1)),
        "dpo": rng.normal(0.6, 1, size=(40, 1)),
        "ppo": rng.normal(0.2, 1, size=(40, 1)),
    }
    judge = ScoringJudge(len, "gold")
    rates = win_rates(judge, models, [("dpo", "base"), ("ppo", "base")], scores=scores)
    low, high = sorted(rate.p_value for rate in rates)
    assert low < 0.05
    adjusted = sorted(rate.p_adjusted for rate in rates)
    assert adjusted == pytest.approx([min(1, 2 * low), max(2 * low, high)])


def test_columns_reach_the_judge_repeated_per_sample() -> None:
    seen = []

    def judge(prompts, completions, answer):
        seen.extend(zip(prompts, completions, answer, strict=True))
        return [float(text == key) for text, key in zip(completions, answer, strict=True)]

    models = {"a": written(["x", "y", "z", "w"], 2), "b": written(["q"] * 4, 2)}
    (rate,) = win_rates(as_judge(judge), models, [("a", "b")], {"answer": ["x", "w"]})
    assert seen[:4] == [
        ("prompt 0", "x", "x"),
        ("prompt 0", "y", "x"),
        ("prompt 1", "z", "w"),
        ("prompt 1", "w", "w"),
    ]
    assert rate.rate == pytest.approx(0.75)


def test_as_judge_tells_the_two_kinds_apart() -> None:
    assert isinstance(as_judge(longer), ComparingJudge)
    assert as_judge(longer).name == "longer"
    assert isinstance(as_judge(lambda prompts, completions, **columns: [], "gold"), ScoringJudge)


def test_errors_name_judge_row_and_model() -> None:
    models = {"new": written(["a", "b"]), "old": written(["c", "d"])}

    def wrong_word(prompts, first, second):
        return ["first", "left"]

    with pytest.raises(RewardError, match="judge 'wrong_word' returned 'left' for pair 1"):
        win_rates(as_judge(wrong_word), models, [("new", "old")])

    def too_few(prompts, first, second):
        return ["first"]

    with pytest.raises(RewardError, match="1 verdicts, but 2 pairs"):
        win_rates(as_judge(too_few), models, [("new", "old")])

    def breaks(prompts, first, second):
        raise KeyError("quota")

    with pytest.raises(RewardError, match=r"judge 'breaks' raised KeyError: 'quota'"):
        win_rates(as_judge(breaks), models, [("new", "old")])
    with pytest.raises(DataError, match="name two of new, old"):
        win_rates(as_judge(longer), models, [("new", "base")])
    with pytest.raises(DataError, match="same prompts"):
        win_rates(as_judge(longer), models | {"old": written(["c"])}, [("new", "old")])
    with pytest.raises(DataError, match="sample 0 of prompt 1"):
        rate_of(column([1, np.nan]), column([1, 2]))
