"""Reward margins: hand-computed values, synthetic calibration, length alone on real data."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from feedback.errors import DataError
from reward import metrics

DATA = Path(__file__).parents[3] / "shared" / "data"


def synthetic(n: int, sharpness: float = 1.0, seed: int = 0) -> np.ndarray:
    """Margins of a model whose log-odds are the true ones times `sharpness`."""
    rng = np.random.default_rng(seed)
    log_odds = rng.normal(0, 1.5, size=n)
    right = rng.random(n) < 1 / (1 + np.exp(-log_odds))
    return sharpness * np.where(right, log_odds, -log_odds)


def test_accuracy_by_hand() -> None:
    share = metrics.accuracy([2.0, 0.1, -1.0, 0.0])
    assert share.value == pytest.approx(2.5 / 4)
    assert share.low < share.value < share.high


def test_accuracy_mirrors_when_chosen_and_rejected_swap() -> None:
    margins = synthetic(200)
    one, two = metrics.accuracy(margins), metrics.accuracy(-margins)
    assert (one.value, one.low) == pytest.approx((1 - two.value, 1 - two.high))


def test_log_loss_by_hand() -> None:
    assert metrics.log_loss([0.0]) == pytest.approx(math.log(2))
    # -log sigmoid(log 3) = log(4/3); -log sigmoid(-log 3) = log 4
    assert metrics.log_loss([math.log(3), -math.log(3)]) == pytest.approx(
        (math.log(4 / 3) + math.log(4)) / 2
    )
    assert metrics.log_loss([-1000.0]) == pytest.approx(1000.0)  # no overflow


def test_reliability_bins_by_hand() -> None:
    sure, unsure = math.log(9), math.log(1.5)  # confidences 0.9 and 0.6
    bins = metrics.reliability_bins([sure, sure, sure, -sure, unsure, -unsure], bins=2)
    assert [(b.n, round(b.confidence, 6), b.accuracy) for b in bins] == [
        (2, 0.6, 0.5),
        (4, 0.9, 0.75),
    ]
    error = metrics.calibration_error([sure, sure, sure, -sure, unsure, -unsure], bins=2)
    assert error.ece == pytest.approx((2 * 0.1 + 4 * 0.15) / 6)


def test_equal_confidences_share_a_bin_whatever_the_row_order() -> None:
    sure = math.log(4)  # confidence 0.8, right 80 times of 100: calibrated
    for margins in ([sure] * 80 + [-sure] * 20, ([sure] * 4 + [-sure]) * 20):
        error = metrics.calibration_error(margins)
        assert len(error.bins) == 1
        assert error.ece == pytest.approx(0.0, abs=1e-12)


def test_ece_is_the_symmetrised_one() -> None:
    """Both orders of every pair in 2K equal-mass bins give the same figure as confidences in K."""
    margins = synthetic(500)
    p = 1 / (1 + np.exp(-np.concatenate([margins, -margins])))
    outcome = np.concatenate([np.ones(500), np.zeros(500)])
    groups = np.array_split(np.argsort(p), 20)
    expected = sum(abs((outcome[g] - p[g]).sum()) for g in groups) / 1000
    assert metrics.calibration_error(margins, bins=10).ece == pytest.approx(expected)
    assert metrics.calibration_error(-margins).ece != pytest.approx(expected)


def test_calibrated_model_has_ece_near_zero_and_near_its_expectation() -> None:
    error = metrics.calibration_error(synthetic(20_000), simulations=200)
    assert error.ece < 0.015
    assert error.ece == pytest.approx(error.expected, abs=0.006)
    assert error.p_value > 0.05


def test_over_confident_model_is_found_even_on_few_pairs() -> None:
    large = metrics.calibration_error(synthetic(20_000, sharpness=4), simulations=200)
    assert large.ece > 0.1
    assert all(b.confidence > b.accuracy_high for b in large.bins[1:])
    small = metrics.calibration_error(synthetic(200, sharpness=4))
    assert small.ece > 2 * small.expected
    assert small.p_value < 0.01


def test_ece_p_value_is_uniform_enough_for_calibrated_models() -> None:
    """On few pairs ECE is far from 0 though nothing is wrong: the p-value must know."""
    errors = [metrics.calibration_error(synthetic(100, seed=s), simulations=99) for s in range(200)]
    assert np.mean([error.ece for error in errors]) > 0.05
    assert np.mean([error.p_value < 0.1 for error in errors]) == pytest.approx(0.1, abs=0.06)


def test_auc_equals_sklearn_and_sees_offsets_between_prompts() -> None:
    rng = np.random.default_rng(1)
    rejected = rng.normal(size=300)
    chosen = rejected + rng.normal(0.5, 1, size=300)
    labels = [1] * 300 + [0] * 300
    expected = roc_auc_score(labels, np.concatenate([chosen, rejected]))
    assert metrics.auc(chosen, rejected) == pytest.approx(expected)
    offsets = rng.normal(0, 100, size=300)  # accuracy 1 within prompts, no use across them
    assert metrics.accuracy(offsets + 1 - offsets).value == 1.0
    assert metrics.auc(offsets + 1, offsets) == pytest.approx(0.5, abs=0.05)


def test_length_rule_on_data_where_longer_or_shorter_always_wins() -> None:
    short, long = np.arange(1.0, 50.0), np.arange(1.0, 50.0) + 3
    assert metrics.fit_length_rule(long, short) == "longer wins"
    assert metrics.accuracy(metrics.length_margins(long, short, "longer wins")).value == 1.0
    assert metrics.fit_length_rule(short, long) == "shorter wins"
    assert metrics.accuracy(metrics.length_margins(short, long, "shorter wins")).value == 1.0
    assert metrics.accuracy(metrics.length_margins(short, short, "longer wins")).value == 0.5


def test_length_correlation() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.integers(1, 100, size=(2, 400)).astype(float)
    assert metrics.length_correlation(a - b, a, b) == pytest.approx(1.0)
    assert metrics.length_correlation(b - a, a, b) == pytest.approx(-1.0)
    assert abs(metrics.length_correlation(rng.normal(size=400), a, b)) < 0.12
    # Chosen answers are all longer, margins unrelated to by how much: still a relation to length.
    assert metrics.length_correlation(np.ones(400), a + 100, a) > 0.5
    assert math.isnan(metrics.length_correlation([0.0, 0.0], [1, 2], [3, 4]))


def test_bad_margins_are_named() -> None:
    with pytest.raises(DataError, match="pair 1 is nan"):
        metrics.log_loss([0.0, float("nan")])
    with pytest.raises(DataError, match=r"shape \(0,\)"):
        metrics.accuracy([])
    with pytest.raises(DataError, match="at least one bin"):
        metrics.reliability_bins([1.0], bins=0)


def rows_of(name: str) -> list[dict]:
    path = DATA / f"{name}.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{name}.jsonl.gz is not beside the project (looked for ../shared/data)")
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


@pytest.mark.data
def test_length_alone_on_hh_harmless() -> None:
    """Harmless answers are the shorter ones: refusals beat explanations, by a little."""
    lengths = []
    for row in rows_of("hh_harmless"):
        pair = [row[side].rsplit("\n\nAssistant:", 1)[1] for side in ("chosen", "rejected")]
        lengths.append([float(len(text)) for text in pair])
    chosen, rejected = np.array(lengths).T
    rule = metrics.fit_length_rule(chosen[:750], rejected[:750])
    share = metrics.accuracy(metrics.length_margins(chosen[750:], rejected[750:], rule))
    print(f"HH harmless, {rule}: {share.value:.3f} [{share.low:.3f}, {share.high:.3f}]")
    assert rule == "shorter wins"
    assert share.low > 0.5
    assert share.value == pytest.approx(0.585, abs=0.01)


@pytest.mark.data
def test_length_alone_on_pandalm() -> None:
    """People who compare instruction answers prefer the longer one clearly more often."""
    chosen, rejected = [], []
    for row in rows_of("pandalm_votes"):
        votes = [row[f"annotator{k}"] for k in (1, 2, 3)]
        if votes.count(1) == votes.count(2):
            continue
        sides = (1, 2) if votes.count(1) > votes.count(2) else (2, 1)
        # One answer of the file is the JSON value false where the text "False" was meant.
        chosen.append(float(len(str(row[f"response{sides[0]}"]))))
        rejected.append(float(len(str(row[f"response{sides[1]}"]))))
    half = len(chosen) // 2
    rule = metrics.fit_length_rule(chosen[:half], rejected[:half])
    share = metrics.accuracy(metrics.length_margins(chosen[half:], rejected[half:], rule))
    print(f"PandaLM, {rule}: {share.value:.3f} [{share.low:.3f}, {share.high:.3f}] of {share.n}")
    assert rule == "longer wins"
    assert share.low > 0.5
