"""Calibration: against scikit-learn, a grid and known noise; what is saved is what is loaded."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import special
from sklearn.isotonic import IsotonicRegression

from feedback.errors import DataError
from reward.calibrate import (
    FILE,
    Isotonic,
    Temperature,
    fit_calibration,
    fit_isotonic,
    fit_temperature,
    load_calibration,
    save_calibration,
)
from reward.calibration_check import check_calibration, chosen_for_fit
from reward.errors import ModelError
from reward.metrics import calibration_error, log_loss


def pairs(count: int, times: float = 3.0, seed: int = 0) -> np.ndarray:
    """Margins `times` too large: chosen less rejected, labels drawn from the true log-odds."""
    draw = np.random.default_rng(seed)
    true = draw.normal(0, 1.2, count)
    won = draw.random(count) < special.expit(true)
    return times * np.where(won, true, -true)


def test_the_temperature_is_what_margins_were_multiplied_by():
    margins = pairs(20_000)
    assert fit_temperature(margins).temperature == pytest.approx(3.0, rel=0.06)
    assert fit_temperature(pairs(20_000, 0.01)).temperature == pytest.approx(0.01, rel=0.06)


def test_the_temperature_has_the_least_log_loss():
    margins = pairs(400)
    found = fit_temperature(margins).temperature
    for factor in (0.98, 1.02):
        assert log_loss(margins / found) < log_loss(margins / (found * factor))


def test_soft_labels_are_copies():
    """A label of 3/4 is three pairs that say so and one that does not."""
    margins = np.array([2.0, -1.0, 0.5, 3.0])
    labels = np.array([0.75, 0.5, 0.25, 1.0])
    copies = [
        m if place < 4 * y else -m
        for m, y in zip(margins, labels, strict=True)
        for place in range(4)
    ]
    soft = fit_temperature(margins, labels).temperature
    assert soft == pytest.approx(fit_temperature(np.array(copies)).temperature, rel=1e-9)


@pytest.mark.parametrize("labels", [False, True])
def test_isotonic_is_scikit_learns_on_both_orders(labels):
    margins = np.round(pairs(300), 1)  # ties among margins
    wanted = np.random.default_rng(1).random(300) if labels else np.ones(300)
    ours = fit_isotonic(margins, wanted)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(
        np.concatenate([margins, -margins]), np.concatenate([wanted, 1 - wanted])
    )
    grid = np.linspace(-15, 15, 401)
    clipped = np.clip(theirs.predict(grid), 1 / 302, 301 / 302)
    # clipped knots and a clipped line differ only where a line crosses the limit
    inside = (theirs.predict(grid) > 0.02) & (theirs.predict(grid) < 0.98)
    assert inside.sum() > 50
    assert ours.apply(grid)[inside] == pytest.approx(clipped[inside], abs=0.01)
    assert ours.apply(margins) == pytest.approx(
        np.clip(theirs.predict(margins), 1 / 302, 301 / 302), abs=1e-9
    )


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_a_calibration_knows_no_order_of_answers(method):
    fit = fit_calibration(method, pairs(500))
    grid = np.linspace(-20, 20, 101)
    p = fit.apply(grid)
    assert p + fit.apply(-grid) == pytest.approx(np.ones(101), abs=1e-9)
    assert (np.diff(p) >= 0).all()
    assert ((p > 0) & (p < 1)).all()
    assert special.expit(fit.margins(grid)) == pytest.approx(p)


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_error_falls_to_less_than_half_on_pairs_not_seen(method):
    margins = pairs(4000)
    calibration, check = check_calibration(margins, method, resamples=100, seed=1)
    before, after = check.before, check.after
    assert (check.fitted, check.pairs, check.prompts) == (2000, 2000, 2000)
    assert after.ece.value < before.ece.value / 2
    assert before.ece.low <= before.ece.value
    assert before.ece.low > after.ece.high
    assert before.p_value < 0.01
    assert after.log_loss.value < before.log_loss.value
    fresh = pairs(4000, seed=5)
    assert calibration_error(calibration.margins(fresh)).ece < calibration_error(fresh).ece / 2
    assert sum(bin["n"] for bin in after.reliability) == 2000
    json.dumps(check.as_dict())


def test_intervals_cover_the_error_of_the_population():
    """The true ECE of margins three times too large, from many pairs."""
    truth = calibration_error(pairs(300_000, seed=99), simulations=1).ece
    inside = 0
    for seed in range(10):
        _, check = check_calibration(pairs(1000, seed=seed), resamples=100, seed=seed)
        inside += check.before.ece.low <= truth <= check.before.ece.high
    assert inside >= 7


def test_intervals_cover_where_the_error_is_0():
    """At the edge of what an ECE can be a bootstrap alone misses it, and its own estimate too."""
    inside = 0
    for seed in range(20):
        _, check = check_calibration(
            pairs(300, times=1.0, seed=seed), fraction=0.2, resamples=40, seed=seed
        )
        for figure in (check.before.ece, check.before.log_loss, check.after.ece):
            assert figure.low <= figure.value <= figure.high
        inside += check.before.ece.low == 0.0
    assert inside >= 17
    _, wrong = check_calibration(pairs(2000, times=3.0), resamples=40)
    assert wrong.before.ece.low > 0.05


def test_prompts_stay_together_whatever_the_order():
    labels = [f"prompt {number % 30}" for number in range(120)]
    fit = chosen_for_fit(labels, 0.5, seed=0)
    seen = {label for label, used in zip(labels, fit, strict=True) if used}
    assert len(seen) == 15
    assert all((label in seen) == used for label, used in zip(labels, fit, strict=True))
    assert np.array_equal(chosen_for_fit(labels[::-1], 0.5, seed=0), fit[::-1])
    assert not np.array_equal(chosen_for_fit(labels, 0.5, seed=1), fit)
    assert chosen_for_fit(labels, 0.2, seed=0).sum() == 24


def test_pairs_of_one_prompt_widen_the_interval():
    """Each pair ten times over tells no more than once."""
    once = pairs(300)
    _, alone = check_calibration(once, resamples=100)
    groups = [number // 10 for number in range(3000)]
    _, tenfold = check_calibration(np.repeat(once, 10), groups=groups, resamples=100)
    _, fooled = check_calibration(np.repeat(once, 10), resamples=100)
    width = [c.before.log_loss.high - c.before.log_loss.low for c in (alone, tenfold, fooled)]
    assert width[1] > 2 * width[2]
    assert width[1] == pytest.approx(width[0], rel=0.5)


@pytest.mark.parametrize(
    ("margins", "labels", "message"),
    [
        ([1.0, 2.0], None, "all 2 pairs are ranked right"),
        ([-1.0, -2.0, 0.5], None, r"do not point towards the better answers \(accuracy 0.333\)"),
        ([0.0, 0.0], None, "do not point"),
        ([], None, "no pairs"),
        ([1.0], [1.0, 0.0], "no pairs"),
        ([1.0, float("nan")], None, "finite"),
        ([1.0, 2.0], [0.0, 1.5], r"\[0, 1\]"),
    ],
)
def test_what_no_temperature_fits(margins, labels, message):
    with pytest.raises(DataError, match=message):
        fit_temperature(margins, labels)


def test_other_mistakes():
    with pytest.raises(DataError, match=r"0.1 of 2 prompts leaves nothing"):
        check_calibration([1.0, -1.0], fraction=0.1)
    with pytest.raises(DataError, match="2 margins came with 1 group"):
        check_calibration([1.0, -1.0], groups=["a"])
    with pytest.raises(ValueError, match="one of temperature, isotonic"):
        fit_calibration("platt", [1.0, -1.0])  # type: ignore[arg-type]


@pytest.mark.parametrize("fit", [Temperature(2.5), Isotonic((-1.0, 1.0), (0.25, 0.75))])
def test_saved_and_loaded(fit, tmp_path):
    file = save_calibration(tmp_path / "new", fit, {"n": 3})
    assert file.name == FILE
    assert load_calibration(tmp_path / "new") == fit
    assert json.loads(file.read_text())["measured"] == {"n": 3}
    with pytest.raises(ModelError, match=r"no calibration at .* Fix: align reward calibrate"):
        load_calibration(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"method": "platt", "state": {}}', '{"method": "temperature", "state": {}}'],
)
def test_damaged_states_are_told(text, tmp_path):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ModelError, match="is damaged"):
        load_calibration(tmp_path)


def test_even_pairs_are_even():
    """Rounding must not rank the pairs of a level stretch around 0."""
    fit = fit_isotonic([-0.3, 0.2, -0.1, 0.4, 0.1, -0.2, 5.0, 5.0])
    assert fit.margins([-0.3, -0.2, 0.0, 0.1, 0.25]).tolist() == [0.0] * 5
    assert fit.margins([5.0]) > 1.0
