"""What can go wrong with the policy itself: KL running away, entropy gone, a dead critic."""

from __future__ import annotations

import math

from align.signals.history import Alarm, History, Sign
from align.signals.limits import RECENT, WINDOWS, Limits
from align.signals.trend import bend, mean

KL = "kl/reference"
ENTROPY = "policy/entropy"
EXPLAINED = "value/explained_variance"
CRITIC_WINDOW = 16


def kl_runaway(history: History, limits: Limits) -> Alarm | None:
    """KL past its limit, or a distance sqrt(KL) that grows ever faster.

    A policy that moves at a steady pace has KL ~ t^2, so its square root is a straight line; a
    root that bends upwards is what a policy does that nothing holds back any more.
    """
    kl = history[KL]
    if len(kl) < RECENT:
        return None
    recent = kl.last(RECENT)
    now = mean(recent.values, limits.level)
    if limits.kl_limit is not None and now.low > limits.kl_limit:
        sign = Sign(KL, kl.steps[0], kl.values[0], now.value)
        message = (
            f"The KL to the reference is {now.value:.3g} nats per answer over the last {RECENT} "
            f"updates (interval [{now.low:.3g}, {now.high:.3g}]); the limit is "
            f"{limits.kl_limit:g}. {_HOLD}"
        )
        return Alarm("kl_runaway", kl.steps[-1], "critical", message, (sign,))
    if now.value < limits.kl_floor:
        return None
    for window in WINDOWS[1:]:
        if window > len(kl) or len(kl) % (window // 8):
            continue
        part = kl.last(window)
        curve = bend(part.steps, [math.sqrt(max(v, 0.0)) for v in part.values], limits.level)
        start, end = max(curve.start, 0.0) ** 2, curve.end**2
        pace = max(curve.slope_start, 1e-12)
        if curve.low > 0 and curve.slope_end >= limits.kl_acceleration * pace and end >= 2 * start:
            sign = Sign(KL, curve.since, start, end)
            message = (
                f"Since step {curve.since} {sign}, faster and faster: its root grew "
                f"{curve.slope_end:.2g} a step at the end and {curve.slope_start:.2g} at the "
                f"beginning of these {window} updates. {_HOLD}"
            )
            return Alarm("kl_runaway", kl.steps[-1], "critical", message, (sign,))
    return None


_HOLD = "Lower trainer.learning_rate, raise trainer.kl_coef, or use trainer.kl_controller=adaptive."


def entropy_collapse(history: History, limits: Limits) -> Alarm | None:
    """Entropy down to a small fraction of what it was at the start."""
    entropy = history[ENTROPY]
    if len(entropy) < 2 * RECENT:
        return None
    start = mean(entropy.first(RECENT).values, limits.level)
    recent = entropy.last(RECENT)
    now = mean(recent.values, limits.level)
    if start.value <= 0 or now.high >= limits.entropy_fraction * start.value:
        return None
    sign = Sign(ENTROPY, entropy.steps[0], start.value, now.value)
    message = (
        f"{sign} nats per token, {now.value / start.value:.0%} of the start: the policy hardly "
        "explores any more. Lower trainer.learning_rate, raise trainer.kl_coef, or set "
        "trainer.entropy_coef."
    )
    return Alarm("entropy_collapse", entropy.steps[-1], "critical", message, (sign,))


def dead_critic(history: History, limits: Limits) -> Alarm | None:
    """After its warm-up the critic explains none of the returns' variance."""
    explained = history[EXPLAINED]
    if len(explained) < limits.critic_warmup + CRITIC_WINDOW:
        return None
    recent = explained.last(CRITIC_WINDOW)
    now = mean(recent.values, limits.level)
    if now.high >= limits.explained_variance:
        # A critic far below zero is noisy too; its worst does not excuse it.
        below = sum(value < limits.explained_variance for value in recent.values)
        if below < len(recent) or now.value >= 0:
            return None
    sign = Sign(EXPLAINED, recent.steps[0], recent.values[0], now.value)
    message = (
        f"The critic's explained variance is {now.value:.3g} on average since step "
        f"{recent.steps[0]} (highest {max(recent.values):.3g}; 1 is perfect, 0 is no help), so "
        "advantages are as noisy as without it. Raise value.learning_rate, add "
        "trainer.critic_warmup_updates, start from value.init=<a reward model>, or use an "
        "estimator without a critic."
    )
    return Alarm("dead_critic", explained.steps[-1], "warning", message, (sign,))
