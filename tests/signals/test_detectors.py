"""Each alarm on what it is for, on its healthy counterpart, and at its edges."""

from __future__ import annotations

import math

import numpy as np
import pytest

from align.signals import DETECTORS, History, Limits
from align.signals.hacking import reward_hacking
from align.signals.policy import dead_critic, entropy_collapse, kl_runaway
from align.signals.rollouts import (
    degenerate_groups,
    eos_collapse,
    length_collapse,
    length_explosion,
    stale_rollouts,
)

LIMITS = Limits()


def history(**series):
    """Metrics by keyword (`__` for `/`), a value or a function of the update each; 64 updates."""
    found = History()
    generator = np.random.default_rng(0)
    for update in range(64):
        found.add(
            10 * update,
            {
                key.replace("__", "/"): (value(update) if callable(value) else value)
                + 0.01 * generator.normal()
                for key, value in series.items()
            },
        )
    return found


def up(update):
    return update / 64


def down(update):
    return -update / 64


def test_gold_that_falls_under_a_rising_proxy_is_critical():
    alarm = reward_hacking(history(reward__mean=up, gold__quality=down), LIMITS)
    assert (alarm.name, alarm.severity, alarm.step) == ("reward_hacking", "critical", 630)
    proxy, gold = alarm.evidence
    assert (proxy.metric, proxy.verb, gold.metric, gold.verb) == (
        "reward/mean",
        "rose",
        "gold/quality",
        "fell",
    )
    assert gold.high < 0 < proxy.low
    assert gold.since == proxy.since == alarm.since
    assert f"Since step {alarm.since} reward/mean rose" in alarm.message
    assert "gold/quality fell" in alarm.message
    assert "kl_coef" in alarm.message


@pytest.mark.parametrize(
    "series",
    [
        {"reward__mean": up, "gold__quality": up},
        {"reward__mean": up, "gold__quality": 0.0},
        {"reward__mean": 0.0, "gold__quality": down},  # no proxy is being gamed
        {"reward__mean": down, "gold__quality": down},
        {"reward__mean": up},  # no witness
    ],
)
def test_rewards_that_agree_raise_nothing(series):
    assert reward_hacking(history(**series), LIMITS) is None


@pytest.mark.parametrize(
    ("key", "rising", "harmless"),
    [
        ("reward__disagreement", lambda u: 0.2 + u / 64, lambda u: 0.4 + u / 640),
        ("rollout__length_mean", lambda u: 20 + u, lambda u: 40 + u / 16),
        ("rollout__repetition", lambda u: 0.05 + u / 200, lambda u: 0.05 + u / 2000),
    ],
)
def test_hints_are_warnings_that_gold_can_answer(key, rising, harmless):
    alarm = reward_hacking(history(reward__mean=up, **{key: rising}), LIMITS)
    assert alarm.severity == "warning"
    assert [sign.metric for sign in alarm.evidence] == ["reward/mean", key.replace("__", "/")]
    assert "does not prove it" in alarm.message
    assert reward_hacking(history(reward__mean=up, **{key: harmless}), LIMITS) is None
    assert (
        reward_hacking(history(reward__mean=up, gold__quality=up, **{key: rising}), LIMITS) is None
    )


def test_one_bad_update_is_no_trend():
    def spike(update):
        return -3.0 if update == 63 else up(update)

    assert reward_hacking(history(reward__mean=up, gold__quality=spike), LIMITS) is None


def test_a_proxy_that_normalisation_flattens_is_read_before_it():
    hacked = {"reward__mean": 0.0, "reward__unscaled": up, "gold__quality": down}
    alarm = reward_hacking(history(**hacked), LIMITS)
    assert alarm.evidence[0].metric == "reward/unscaled"
    flat = {"reward__mean": up, "reward__unscaled": 0.0, "gold__quality": down}
    assert reward_hacking(history(**flat), LIMITS) is None  # a schedule raised it


def test_a_young_run_is_left_in_peace():
    young = History()
    for update in range(30):
        young.add(update, {"reward/mean": up(update), "gold/quality": down(update)})
    assert reward_hacking(young, LIMITS) is None


def test_kl_past_its_limit_and_not_before():
    steady = history(**{"kl__reference": 12.0})
    alarm = kl_runaway(steady, Limits(kl_limit=10))
    assert alarm.severity == "critical"
    assert "12 nats per answer" in alarm.message
    assert "limit is 10" in alarm.message
    assert kl_runaway(steady, Limits(kl_limit=12.1)) is None
    assert kl_runaway(steady, LIMITS) is None


@pytest.mark.parametrize(
    ("growth", "runs_away"),
    [
        (lambda u: 0.05 * math.exp(u / 10), True),
        (lambda u: 0.01 * u**2, False),  # a steady pace: the root is a line
        (lambda u: 0.4 * u, False),
        (lambda u: 0.004 * math.exp(u / 10), False),  # below 5 nats: too small to matter
    ],
)
def test_kl_runs_away_when_its_root_bends_upwards(growth, runs_away):
    alarm = kl_runaway(history(**{"kl__reference": growth}), LIMITS)
    assert (alarm is not None) == runs_away
    if alarm is not None:
        assert "faster and faster" in alarm.message


def test_a_bend_within_its_noise_is_none():
    """The fitted parabola turns steeply upwards; its interval says that it may not."""
    generator = np.random.default_rng(5)
    noisy = np.clip(np.linspace(4, 14, 64) + 4 * generator.normal(size=64), 0.1, None)
    made = History()
    for update, value in enumerate(noisy.tolist()):
        made.add(update, {"kl/reference": value})
    assert kl_runaway(made, LIMITS) is None
    assert kl_runaway(made, Limits(level=0.1)) is not None


@pytest.mark.parametrize(("end", "collapsed"), [(0.05, True), (0.5, False)])
def test_entropy_is_held_to_its_start(end, collapsed):
    alarm = entropy_collapse(
        history(**{"policy__entropy": lambda u: 2.0 if u < 32 else 2.0 * end}), LIMITS
    )
    assert (alarm is not None) == collapsed
    if alarm is not None:
        assert alarm.evidence[0].before == pytest.approx(2.0, abs=0.02)
        assert "5% of the start" in alarm.message


@pytest.mark.parametrize(("level", "dead"), [(0.0, True), (-0.5, True), (0.3, False)])
def test_a_critic_that_explains_nothing_is_dead(level, dead):
    assert (dead_critic(history(value__explained_variance=level), LIMITS) is not None) == dead


def test_a_critic_that_swings_below_zero_is_dead_too():
    swings = history(value__explained_variance=lambda u: -0.2 - 5.0 * (u % 3 == 0))
    assert dead_critic(swings, LIMITS) is not None


def test_a_critic_may_warm_up():
    young = History()
    for update in range(25):
        young.add(update, {"value/explained_variance": 0.0})
    assert dead_critic(young, LIMITS) is None
    young.add(25, {"value/explained_variance": 0.0})
    assert dead_critic(young, LIMITS) is not None


@pytest.mark.parametrize(
    ("key", "bad", "good"),
    [
        ("rollout__age", 4.0, 1.0),
        ("correction__clipped", 0.5, 0.1),
        ("correction__dropped", 0.5, 0.1),
        ("correction__ratio_mean", 3.0, 1.1),
        ("correction__ratio_mean", 0.2, 0.9),
    ],
)
def test_stale_rollouts(key, bad, good):
    alarm = stale_rollouts(history(**{key: bad}), LIMITS)
    assert [sign.metric for sign in alarm.evidence] == [key.replace("__", "/")]
    assert stale_rollouts(history(**{key: good}), LIMITS) is None


def test_one_stale_update_is_let_pass():
    late = history(rollout__age=lambda u: 9.0 if u == 63 else 0.0)
    assert stale_rollouts(late, LIMITS) is None


@pytest.mark.parametrize(
    ("detector", "key", "start", "bad", "good"),
    [
        (eos_collapse, "rollout__eos_rate", 0.9, 0.2, 0.7),
        (length_explosion, "rollout__length_mean", 20.0, 60.0, 30.0),
        (length_collapse, "rollout__length_mean", 20.0, 2.0, 10.0),
        (degenerate_groups, "reward__std", 1.0, 0.0, 0.2),
    ],
)
def test_answers_are_held_to_the_start(detector, key, start, bad, good):
    limits = Limits(degenerate_share=0.05)  # the history's noise is 0.01
    for late, raises in ((bad, True), (good, False)):
        made = history(**{key: lambda u, late=late: start if u < 32 else late})
        alarm = detector(made, limits)
        assert (alarm is not None) == raises
        if alarm is not None:
            assert alarm.evidence[0].verb == ("rose" if bad > start else "fell")


def test_scores_that_never_differ():
    flat = History()
    for update in range(8):
        flat.add(update, {"reward/std": 0.0})
    assert degenerate_groups(flat, LIMITS) is not None


@pytest.mark.parametrize("name", DETECTORS)
def test_nothing_logged_raises_nothing(name):
    assert DETECTORS[name].find(History(), LIMITS) is None
