"""When to end a run early: a KL budget, an ensemble's falling lower bound, an alarm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from align.signals.history import Alarm, History, Series
from align.signals.limits import RECENT
from align.signals.policy import KL
from align.signals.trend import mean

LOWER_BOUND = "reward/lower_bound"
BUDGET_WINDOW = 4  # updates whose mean is held to the budget: one noisy update is none
DROP_LEVEL = 0.99


@dataclass(frozen=True)
class StopRules:
    """What ends a run; nothing by default."""

    kl_budget: float | None = None  # nats per answer
    lower_bound_drop: float | None = None  # in units of the reward, below its best
    on: tuple[str, ...] = ()  # names of alarms

    @property
    def any(self) -> bool:
        """Whether something can end the run."""
        return bool(self.on) or self.kl_budget is not None or self.lower_bound_drop is not None


def stop_reason(history: History, rules: StopRules, raised: Sequence[Alarm] = ()) -> str | None:
    """Why the run should end now, or None.

    Args:
        history: everything logged so far.
        rules: what ends a run.
        raised: the alarms of this step.
    """
    for alarm in raised:
        if alarm.name in rules.on:
            return f"alarm {alarm.name} at step {alarm.step}: {alarm.message}"
    return _over_budget(history, rules) or _bound_fell(history, rules)


def _over_budget(history: History, rules: StopRules) -> str | None:
    recent = history[KL].last(BUDGET_WINDOW)
    if rules.kl_budget is None or len(recent) < BUDGET_WINDOW:
        return None
    now = sum(recent.values) / BUDGET_WINDOW
    if now <= rules.kl_budget:
        return None
    return (
        f"the KL to the reference is {now:.3g} nats per answer on average over the last "
        f"{BUDGET_WINDOW} updates; signals.stop.kl_budget is {rules.kl_budget:g}"
    )


def _bound_fell(history: History, rules: StopRules) -> str | None:
    bound = history[LOWER_BOUND]
    if rules.lower_bound_drop is None or len(bound) < 2 * RECENT:
        return None
    best = best_window(bound, RECENT)
    recent = bound.last(RECENT)
    top, now = mean(best.values, DROP_LEVEL), mean(recent.values, DROP_LEVEL)
    fall = top.value - now.value
    # The half widths add up in squares: the two windows share no update once the fall is real.
    half = ((top.high - top.value) ** 2 + (now.high - now.value) ** 2) ** 0.5
    if fall <= rules.lower_bound_drop or fall <= half:
        return None
    return (
        f"the ensemble's lower bound fell from {top.value:.3g} (steps {best.steps[0]} to "
        f"{best.steps[-1]}) to {now.value:.3g} (over the last {RECENT} updates); "
        f"signals.stop.lower_bound_drop is {rules.lower_bound_drop:g}"
    )


def best_window(series: Series, width: int) -> Series:
    """The `width` consecutive points with the highest mean, the last points left out of it."""
    total = sum(series.values[:width])
    best, at = total, 0
    for end in range(width, len(series) - width):
        total += series.values[end] - series.values[end - width]
        if total > best:
            best, at = total, end - width + 1
    return Series(series.steps[at : at + width], series.values[at : at + width])
