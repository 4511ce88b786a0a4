"""Reward hacking: the reward that is trained on rises while what it should stand for does not.

After Gao et al. (2023), "Scaling Laws for Reward Model Overoptimization": the proxy keeps rising
while gold turns. A rule over windows of several lengths: the proxy's line rises, and the line of at
least one witness goes the wrong way, each by more than its interval. A held-out gold reward is the
only witness that measures the harm; the others are hints, so without gold the alarm is a warning.
"""

from __future__ import annotations

from collections.abc import Iterator

from align.signals.history import Alarm, History, Series, Sign
from align.signals.limits import WINDOWS, Limits
from align.signals.trend import Trend, trend

PROXY, UNSCALED = "reward/mean", "reward/unscaled"
GOLD = "gold/"
PROXY_LEVEL = 0.95  # the witness's interval guards against false alarms, not the proxy's
STRIDE = 8  # a window is tested again once an eighth of it is new
LEAST = 32  # logged updates before anything is said
MEMORY = 96  # updates before a window that help to tell how correlated they are


def reward_hacking(history: History, limits: Limits) -> Alarm | None:
    """Proxy up while gold falls, or while disagreement, length or repetition rise.

    The proxy is the reward before normalisation, which would flatten its line, where that is known.
    """
    name = UNSCALED if history[UNSCALED] else PROXY
    proxy = history[name]
    found: Alarm | None = None
    if len(proxy) < LEAST:
        return None
    for window in WINDOWS:
        if window > len(proxy) or len(proxy) % (window // STRIDE):
            continue
        recent = proxy.last(window)
        line = trend(recent.steps, recent.values, PROXY_LEVEL)
        if line.low <= 0:
            continue
        since, step = recent.steps[0], recent.steps[-1]
        falling, gold_rises = _gold(history, since, window, limits)
        hints = [] if gold_rises else list(_hints(history, since, window, limits))
        if falling or hints:
            proxy_sign = Sign(name, since, line.start, line.end, line.low, line.high)
            alarm = _alarm(step, proxy_sign, falling, hints)
            if found is None or (alarm.severity == "critical" and found.severity == "warning"):
                found = alarm
    return found


def _gold(history: History, since: int, window: int, limits: Limits) -> tuple[list[Sign], bool]:
    """Gold rewards that fall in the window, and whether one of them rises instead."""
    falling, rises = [], False
    for key in history.named(GOLD):
        line = _line(history[key], since, window, limits)
        if line is None:
            continue
        if line.high < 0:
            falling.append(_sign(key, line))
        rises = rises or line.low > 0
    return falling, rises and not falling


def _hints(history: History, since: int, window: int, limits: Limits) -> Iterator[Sign]:
    """Witnesses that point to hacking without measuring harm."""
    for key, rise in (
        ("reward/disagreement", limits.disagreement_rise),
        ("rollout/length_mean", limits.length_rise),
    ):
        line = _line(history[key], since, window, limits)
        if line and line.low > 0 and line.end >= rise * max(line.start, 1e-12):
            yield _sign(key, line)
    line = _line(history["rollout/repetition"], since, window, limits)
    if line and line.low > 0 and line.change >= limits.repetition_rise:
        yield _sign("rollout/repetition", line)


def _line(series: Series, since: int, window: int, limits: Limits) -> Trend | None:
    """The series' line since a step, if it has nearly all of the window's points."""
    first = next((i for i, step in enumerate(series.steps) if step >= since), len(series))
    count = len(series) - first
    if count < max(8, 0.75 * window):
        return None
    recent, before = series.last(count), series.values[max(0, first - MEMORY) : first]
    return trend(recent.steps, recent.values, limits.level, before)


def _sign(key: str, line: Trend) -> Sign:
    return Sign(key, line.since, line.start, line.end, line.low, line.high)


def _alarm(step: int, proxy: Sign, falling: list[Sign], hints: list[Sign]) -> Alarm:
    told = "; ".join(map(str, [*falling, *hints]))
    if falling:
        advice = (
            "The policy may be learning the reward model's mistakes. Take an earlier checkpoint, "
            "raise trainer.kl_coef, have people compare these answers, or train against an "
            "ensemble's lower bound, which helps as far as its members disagree about them."
        )
    else:
        advice = (
            "That fits reward hacking and does not prove it: read samples from before and after, "
            "and log a held-out reward (gold) to know."
        )
    return Alarm(
        "reward_hacking",
        step,
        "critical" if falling else "warning",
        f"Since step {proxy.since} {proxy}, while {told}. {advice}",
        (proxy, *falling, *hints),
    )
