"""Pacing: how much of the data a curriculum shows at which step, as pure functions.

Competence c(t), in (0, 1], is the share of the training rows, the easiest first, that step t may
draw from (Platanios et al. 2019, "Competence-based Curriculum Learning for Neural Machine
Translation"). It starts at c0 and is 1 from step T on. Hacohen and Weinshall 2019, "On The Power of
Curriculum Learning in Training Deep Networks", call it the pacing function; Soviany et al. 2022,
"Curriculum Learning: A Survey", lists more. Adaptive pacing is in `adaptive`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

Competence = Callable[[float], float]  # step -> share of the rows

PACINGS = ("linear", "root", "exponential", "sigmoid", "step", "adaptive")


def linear(step: float, start: float, steps: int) -> float:
    """c(t) = min(1, c0 + (1 - c0) t / T), Platanios et al.'s c_linear.

    Args:
        step: t, from 0.
        start: c0, in (0, 1].
        steps: T, from which everything is shown.
    """
    return start + (1 - start) * _share(step, steps)


def root(step: float, start: float, steps: int, power: float = 2.0) -> float:
    """c(t) = min(1, (c0^p + (1 - c0^p) t / T)^(1/p)), Platanios et al.'s c_root-p.

    New rows come in the slower the more there are, so that each is drawn about as often; p = 2 is
    their c_sqrt, p = 1 is linear.
    """
    return (start**power + (1 - start**power) * _share(step, steps)) ** (1 / power)


def exponential(step: float, start: float, steps: int) -> float:
    """c(t) = min(1, c0^(1 - t / T)): the pool grows by one factor a step.

    Hacohen and Weinshall's exponential pacing raises the pool by a factor each so many steps; this
    is that function without its stairs.
    """
    return float(start ** (1 - _share(step, steps)))


def sigmoid(step: float, start: float, steps: int, steepness: float = 10.0) -> float:
    """A logistic curve through c0 at step 0 and 1 at step T, half way up at T / 2.

    c(t) = c0 + (1 - c0) (s(t/T) - s(0)) / (s(1) - s(0)) with s(x) = 1 / (1 + exp(-k (x - 1/2))).

    Args:
        step: t.
        start: c0.
        steps: T.
        steepness: k; near 0 it is linear.
    """
    low, high = _logistic(-steepness / 2), _logistic(steepness / 2)
    here = _logistic(steepness * (_share(step, steps) - 0.5))
    return start + (1 - start) * (here - low) / (high - low)


def stairs(step: float, start: float, steps: int, stages: int = 4) -> float:
    """c(t) = c0 + (1 - c0) floor(k t / T) / k: k equal jumps, the last one at T.

    k = 1 is Bengio et al. 2009's switch ("Curriculum learning", section 4): easy rows until T, then
    all; Hacohen and Weinshall call it single-step pacing.
    """
    return start + (1 - start) * math.floor(stages * _share(step, steps) + 1e-9) / stages


def competence(
    name: str,
    start: float,
    steps: int,
    *,
    power: float = 2.0,
    steepness: float = 10.0,
    stages: int = 4,
) -> Competence:
    """A pacing function by name, of the step alone.

    Args:
        name: one of `PACINGS` but adaptive.
        start: c0, in (0, 1].
        steps: T, at least 1.
        power: of root.
        steepness: of sigmoid.
        stages: of step.

    Raises:
        ValueError: an unknown name, or a number out of its range.
    """
    made: dict[str, Competence] = {
        "linear": partial(linear, start=start, steps=steps),
        "root": partial(root, start=start, steps=steps, power=power),
        "exponential": partial(exponential, start=start, steps=steps),
        "sigmoid": partial(sigmoid, start=start, steps=steps, steepness=steepness),
        "step": partial(stairs, start=start, steps=steps, stages=stages),
    }
    if name not in made:
        raise ValueError(f"pacing is {name!r}; expected one of {', '.join(made)}.")
    if not 0 < start <= 1:
        raise ValueError(f"start is {start}; expected a share above 0 and up to 1.")
    least = {"steps": steps, "stages": stages}
    for key, value in least.items():
        if value < 1:
            raise ValueError(f"{key} is {value}; expected at least 1.")
    for key, number in {"power": power, "steepness": steepness}.items():
        if number <= 0:
            raise ValueError(f"{key} is {number}; expected a number above 0.")
    return made[name]


def _share(step: float, steps: int) -> float:
    """T / T, between 0 and 1."""
    return min(1.0, max(0.0, step / steps))


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))
