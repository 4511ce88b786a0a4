"""The made-up histories: healthy ones raise nothing, planted ones are found."""

from __future__ import annotations

import pytest

from align.signals import DETECTORS
from benchmarks.signals import PLANTED, detection, false_alarms, healthy, steady


@pytest.mark.parametrize("make", [steady, healthy])
@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_healthy_runs_raise_nothing(make, correlation):
    assert false_alarms(make, 8, 150, correlation)["value"] == 0


@pytest.mark.parametrize("planted", PLANTED)
def test_what_is_planted_is_found(planted):
    found = detection(planted, 2, 200, 0.0)
    assert found["value"] == 1.0


def test_every_alarm_is_planted():
    assert {alarm for alarm, _ in PLANTED.values()} == set(DETECTORS)
