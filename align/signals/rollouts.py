"""What can go wrong with the rollouts: stale, endless, ever longer, empty, or all scored alike."""

from __future__ import annotations

from statistics import median

from align.signals.history import Alarm, History, Sign
from align.signals.limits import RECENT, Limits
from align.signals.trend import mean

LENGTH = "rollout/length_mean"
EOS = "rollout/eos_rate"
SPREAD = "reward/std"
FEW = 3  # logged updates that a bound without noise must be broken in, one after the other


def stale_rollouts(history: History, limits: Limits) -> Alarm | None:
    """Rollouts older than their bound, or corrections that most tokens need."""
    signs: list[Sign] = []
    age = history["rollout/age"].last(FEW)
    if len(age) == FEW and min(age.values) > limits.max_age:
        signs.append(Sign("rollout/age", age.steps[0], limits.max_age, age.values[-1]))
    for key in ("correction/clipped", "correction/dropped"):
        share = history[key].last(RECENT)
        if len(share) == RECENT and median(share.values) > limits.max_corrected:
            before = history[key].values[0]
            signs.append(Sign(key, share.steps[0], before, median(share.values)))
    ratio = history["correction/ratio_mean"].last(RECENT)
    if len(ratio) == RECENT:
        middle = median(ratio.values)
        if not 1 / limits.ratio_bound <= middle <= limits.ratio_bound:
            signs.append(Sign("correction/ratio_mean", ratio.steps[0], 1.0, middle))
    if not signs:
        return None
    step = max(history[sign.metric].steps[-1] for sign in signs)
    found = "; ".join(f"{sign.metric} is {sign.now:.3g}" for sign in signs)
    message = (
        f"The policy that is trained is not the one that sampled: {found} since step "
        f"{min(sign.since for sign in signs)}. Sync the sampler's weights more often, lower "
        "trainer.learning_rate or trainer.ppo_epochs, or look for a difference of precision or "
        "temperature between sampler and trainer."
    )
    return Alarm("stale_rollouts", step, "warning", message, tuple(signs))


def eos_collapse(history: History, limits: Limits) -> Alarm | None:
    """Far fewer answers end by themselves than at the start."""
    eos = history[EOS]
    if len(eos) < 2 * RECENT:
        return None
    start = mean(eos.first(RECENT).values, limits.level)
    now = mean(eos.last(RECENT).values, limits.level)
    if now.high >= limits.eos_fraction * start.low:
        return None
    sign = Sign(EOS, eos.steps[0], start.value, now.value)
    message = (
        f"{sign}: answers no longer end. Raise trainer.missing_eos_penalty, and see whether the "
        "reward pays for length."
    )
    return Alarm("eos_collapse", eos.steps[-1], "critical", message, (sign,))


def length_explosion(history: History, limits: Limits) -> Alarm | None:
    """Answers several times as long as at the start."""
    length = history[LENGTH]
    if len(length) < 2 * RECENT:
        return None
    start = mean(length.first(RECENT).values, limits.level)
    now = mean(length.last(RECENT).values, limits.level)
    if now.low <= limits.length_growth * start.high:
        return None
    sign = Sign(LENGTH, length.steps[0], start.value, now.value)
    message = (
        f"{sign} tokens, {now.value / start.value:.1f} times the start. See whether the reward "
        "pays for length (`align evaluate` shows what length alone achieves), and take a length "
        "penalty into the reward if so."
    )
    return Alarm("length_explosion", length.steps[-1], "warning", message, (sign,))


def length_collapse(history: History, limits: Limits) -> Alarm | None:
    """Answers that have shrunk to almost nothing."""
    length = history[LENGTH]
    if len(length) < 2 * RECENT:
        return None
    start = mean(length.first(RECENT).values, limits.level)
    now = mean(length.last(RECENT).values, limits.level)
    if now.high >= limits.length_shrink * start.low:
        return None
    sign = Sign(LENGTH, length.steps[0], start.value, now.value)
    message = (
        f"{sign} tokens, {now.value / start.value:.0%} of the start. Read samples; a reward that "
        "is normalised below zero pays for silence, and so does a KL penalty per token that "
        "outweighs it."
    )
    return Alarm("length_collapse", length.steps[-1], "warning", message, (sign,))


def degenerate_groups(history: History, limits: Limits) -> Alarm | None:
    """All scores of an update are equal, so that advantages are zero or noise."""
    spread = history[SPREAD]
    if len(spread) < RECENT:
        return None
    recent = spread.last(RECENT)
    start = median(spread.first(RECENT).values) if len(spread) >= 2 * RECENT else 0.0
    now = median(recent.values)
    if now > max(1e-6, limits.degenerate_share * start):
        return None
    sign = Sign(SPREAD, recent.steps[0], start if start > 0 else spread.values[0], now)
    message = (
        f"{SPREAD} is {now:.2g} since step {recent.steps[0]}: the answers of an update all score "
        "alike, so nothing tells good from bad. Use prompts of middling difficulty, a reward with "
        "more levels, or a higher rollout.temperature."
    )
    return Alarm("degenerate_groups", spread.steps[-1], "warning", message, (sign,))
