"""The numbers that alarms are held to. The defaults' false alarms are measured: docs/signals.md."""

from __future__ import annotations

from dataclasses import dataclass

# Trends are looked for on several time scales, in logged updates. The long ones find slow changes.
WINDOWS = (16, 32, 64, 128, 256, 512)
RECENT = 8  # updates that stand for "now", and the first so many for "the start"


@dataclass(frozen=True)
class Limits:
    """What an alarm needs; the fields are those of the `signals` section."""

    level: float = 0.9999  # confidence of each single test, for there are many in a run
    disagreement_rise: float = 1.5  # times the window's start
    length_rise: float = 1.5  # times the window's start, as a sign of reward hacking
    repetition_rise: float = 0.1  # share of repeated n-grams, in absolute terms
    kl_limit: float | None = None  # nats per answer; None: only runaway growth is looked for
    kl_floor: float = 5.0  # nats per answer below which growth is nobody's concern
    kl_acceleration: float = 2.0  # times the pace of the window's beginning
    entropy_fraction: float = 0.2  # of the start
    explained_variance: float = 0.05  # a critic below it explains nothing
    critic_warmup: int = 10  # logged updates in which a critic may be bad
    max_age: float = 2.0  # updates between sampling and training weights
    max_corrected: float = 0.3  # share of tokens or sequences that the correction clips or drops
    ratio_bound: float = 2.0  # mean correction ratio, and its inverse
    eos_fraction: float = 0.5  # of the start
    length_growth: float = 2.0  # times the start: an explosion
    length_shrink: float = 0.25  # of the start: a collapse
    degenerate_share: float = 0.01  # of the start's spread of scores
