"""Seconds of each phase add up to the time that passed."""

import threading

import pytest

from align.ppo.phases import PhaseClock


class Time:
    now = 0.0

    def __call__(self):
        return self.now


def test_what_is_neither_drawing_nor_scoring_is_training():
    time = Time()
    clock = PhaseClock(time)
    time.now = 5.0  # before anything is drawn: set-up
    with clock.phase("generation"):
        time.now += 3.0
    with clock.phase("scoring"):
        time.now += 2.0
    time.now += 7.0
    assert clock.read() == {
        "speed/generation_seconds": 3.0,
        "speed/scoring_seconds": 2.0,
        "speed/training_seconds": 7.0,
    }
    time.now += 1.5
    assert clock.read() == {"speed/training_seconds": 1.5}


def test_between_two_readings_nothing_is_lost_and_nothing_counts_twice():
    time = Time()
    clock = PhaseClock(time)
    total = 0.0
    for update in range(3):
        with clock.phase("generation"):
            time.now += 1.0 + update
        time.now += 0.25  # between the two
        with clock.phase("scoring"):
            time.now += 0.5
        for _ in range(2):
            time.now += 2.0
            total += sum(clock.read().values())
    assert total == pytest.approx(time.now)


def test_what_is_drawn_ahead_does_not_stop_the_clock_of_training():
    time = Time()
    clock = PhaseClock(time)
    with clock.phase("scoring"):
        time.now += 1.0
    with clock.phase("generation", beside=True):
        time.now += 4.0
    assert clock.read() == {
        "speed/scoring_seconds": 1.0,
        "speed/generation_seconds": 4.0,
        "speed/training_seconds": 4.0,
    }


def test_a_failure_is_counted_too():
    time = Time()
    clock = PhaseClock(time)

    def fail():
        with clock.phase("generation"):
            time.now += 2.0
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert clock.read()["speed/generation_seconds"] == 2.0


def test_a_reading_while_another_thread_draws_is_whole():
    clock = PhaseClock()
    started, end = threading.Event(), threading.Event()

    def draw():
        with clock.phase("generation", beside=True):
            started.set()
            end.wait(60)

    thread = threading.Thread(target=draw)
    thread.start()
    started.wait(60)
    assert "speed/generation_seconds" not in clock.read()
    end.set()
    thread.join()
    assert clock.read()["speed/generation_seconds"] > 0
