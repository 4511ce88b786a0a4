"""Raised once, raised again after it had gone, kept by a checkpoint; and when a run stops."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from align.config.sections import AlarmName, SignalsSection
from align.signals import DETECTORS, Alarm, History, Limits, StopRules, Watch, stop_reason

STALE = {"rollout/age": 9.0}
FRESH = {"rollout/age": 0.0}


def feed(watch, lines, start=0):
    return [alarm for at, line in enumerate(lines, start) for alarm in watch.observe(at, line)]


def test_an_alarm_is_raised_once():
    watch = Watch()
    raised = feed(watch, [STALE] * 40)
    assert [(alarm.name, alarm.step) for alarm in raised] == [("stale_rollouts", 2)]
    assert list(watch.active) == ["stale_rollouts"]


def test_it_is_over_after_a_while_and_may_be_raised_anew():
    watch = Watch()
    feed(watch, [STALE] * 5)
    feed(watch, [FRESH] * 12, start=5)
    assert list(watch.active) == ["stale_rollouts"]
    assert feed(watch, [STALE] * 5, start=17) == []  # it was not over
    feed(watch, [FRESH] * 16, start=22)
    assert watch.active == {}
    assert [alarm.step for alarm in feed(watch, [STALE] * 5, start=38)] == [40]
    assert [alarm.step for alarm in watch.alarms] == [2, 40]


def test_a_warning_that_becomes_critical_is_raised_again():
    watch = Watch()
    lines = [
        {"reward/mean": at / 10, "rollout/length_mean": 10.0 + at, "gold/a": 0.0}
        for at in range(64)
    ]
    first = feed(watch, lines)
    lines = [
        {"reward/mean": at / 10, "rollout/length_mean": 10.0 + at, "gold/a": -(at - 64) / 10}
        for at in range(64, 128)
    ]
    second = feed(watch, lines, start=64)
    hacking = [alarm.severity for alarm in [*first, *second] if alarm.name == "reward_hacking"]
    assert hacking == ["warning", "critical"]


def test_a_checkpoint_neither_loses_nor_repeats_an_alarm():
    lines = [STALE] * 20 + [FRESH] * 40 + [STALE] * 20
    whole = Watch()
    expected = feed(whole, lines)
    assert len(expected) == 2
    for cut in (1, 10, 35, 65):
        before = Watch()
        raised = feed(before, lines[:cut])
        after = Watch()
        after.load_state_dict(json.loads(json.dumps(before.state_dict())))
        raised += feed(after, lines[cut:], start=cut)
        assert raised == expected
        assert after.alarms == expected
        assert after.state_dict() == whole.state_dict()


def test_other_metrics_do_not_count_as_observations():
    watch = Watch()
    feed(watch, [STALE] * 5)
    feed(watch, [{"loss": 1.0, "learning_rate": 0.1}] * 50, start=5)
    assert list(watch.active) == ["stale_rollouts"]
    assert "loss" not in watch.history.series


def test_watched_says_who_could_have_seen_something():
    watch = Watch()
    assert watch.watched() == {}
    feed(watch, [{"reward/mean": 1.0, "kl/reference": 0.1}])
    assert set(watch.watched()) == {"kl_runaway"}  # no witness against the proxy
    feed(watch, [{"gold/a": 1.0}], start=1)
    assert watch.watched()["reward_hacking"] == ["reward/mean", "gold/a"]


def test_values_that_are_no_numbers_are_left_out_and_a_repeated_step_counts_once():
    history = History()
    history.add(1, {"a": 1.0, "b": float("nan"), "c": None, "d": True})
    history.add(2, {"a": 2.0})
    history.add(1, {"a": 5.0})
    assert history.state_dict() == {"a": {"steps": [1], "values": [5.0]}}


def test_an_alarm_survives_its_line():
    watch = Watch()
    (alarm,) = feed(watch, [STALE] * 5)
    assert Alarm.from_dict(json.loads(json.dumps(alarm.as_dict()))) == alarm


def test_the_configuration_knows_every_alarm_and_every_default():
    assert set(get_args(AlarmName)) == set(DETECTORS)
    given = SignalsSection().model_dump(exclude={"enabled", "stop"})
    defaults = vars(Limits())
    assert given == {name: defaults[name] for name in given}


def histories(key, values):
    found = History()
    for step, value in enumerate(values):
        found.add(step, {key: value})
    return found


def test_the_kl_budget_is_held_against_a_mean():
    rules = StopRules(kl_budget=5.0)
    assert stop_reason(histories("kl/reference", [1, 1, 1, 12]), rules) is None
    assert stop_reason(histories("kl/reference", [9, 9, 9]), rules) is None
    reason = stop_reason(histories("kl/reference", [1, 4, 5, 6, 7]), rules)
    assert "5.5 nats" in reason
    assert "kl_budget is 5" in reason


@pytest.mark.parametrize(
    ("late", "drop", "stops"),
    [(0.5, 0.4, True), (0.5, 0.6, False), (1.0, 0.1, False)],
)
def test_the_lower_bound_may_fall_so_far(late, drop, stops):
    wobble = [0.01 * (-1) ** step for step in range(40)]
    values = [(1.0 if step < 20 else late) + w for step, w in enumerate(wobble)]
    reason = stop_reason(histories("reward/lower_bound", values), StopRules(lower_bound_drop=drop))
    assert (reason is not None) == stops
    if reason:
        assert "fell from 1 (" in reason


def test_noise_is_no_fall():
    noisy = [3.0 * (-1) ** (step // 2) for step in range(40)]
    rules = StopRules(lower_bound_drop=0.1)
    assert (
        stop_reason(histories("reward/lower_bound", [*noisy[:-8], *([-3.0, 2.0] * 4)]), rules)
        is None
    )


def test_an_alarm_may_end_a_run():
    alarm = Alarm("kl_runaway", 7, "critical", "far away", ())
    assert stop_reason(History(), StopRules(on=("kl_runaway",)), [alarm]).startswith(
        "alarm kl_runaway at step 7"
    )
    assert stop_reason(History(), StopRules(on=("dead_critic",)), [alarm]) is None
    assert not StopRules().any
