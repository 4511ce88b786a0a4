"""From rollouts and scores to an `Experience`: one forward pass of everyone, KL, advantages.

Log-probabilities are recomputed by the policy being trained, not taken from the sampler, so that
the first ratio is 1 to rounding; how far the sampler's differ is measured and reported, and
corrected for where `Shaping.correction` asks for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from align.engine.head import completion_logprobs
from align.ppo.actor_critic import ActorCritic
from align.ppo.advantages import (
    CRITICS,
    Estimator,
    Reduce,
    estimate_advantages,
    masked_mean,
    overlong_penalty,
    shape_rewards,
    whiten,
)
from align.ppo.arguments import RolloutArguments
from align.ppo.checks import gap, mean_gap
from align.ppo.correction import Correction, importance_weights
from align.ppo.kl import KLEstimator, estimate_kl
from align.ppo.objectives import Aggregation, aggregation_weights
from align.rollout.repetition import repetition
from align.types import Experience, Rollout


@dataclass(frozen=True)
class Shaping:
    """How scores become advantages; the fields are `PPOConfig`'s of the same names."""

    advantage: Estimator = "gae"
    group_size: int = 1
    gamma: float = 1.0
    gae_lambda: float = 0.95
    kl_estimator: KLEstimator = "k1"
    kl_in_reward: bool = True
    missing_eos_penalty: float = 1.0
    mask_truncated: bool = False
    overlong_buffer: int = 0  # tokens; 0 is off
    overlong_penalty: float = 1.0
    length_penalty: float = 0.0  # a token
    reward_clip: float | None = None
    whiten_rewards: bool = False
    whiten_advantages: bool = True
    loss_aggregation: Aggregation = "token"
    longest: int = 1  # the limit of completions, in tokens
    correction: Correction = "none"
    correction_high: float = 3.0
    correction_low: float | None = None


def shaping_of(args: RolloutArguments, longest: int) -> Shaping:
    """What a trainer's arguments say of rewards and advantages; the rest is the default.

    Args:
        args: the trainer's.
        longest: the length limit of completions, in tokens.
    """
    given = {f.name: getattr(args, f.name) for f in fields(Shaping) if hasattr(args, f.name)}
    return Shaping(**given | {"longest": longest})


@dataclass
class Judged:
    """What policy, critic and reference say of a rollout, each (B, A), 0 outside the mask."""

    logprobs: Tensor
    values: Tensor
    entropy: Tensor
    ref_logprobs: Tensor


def make_experience(
    rollout: Rollout,
    scores: Sequence[float] | Tensor,
    model: ActorCritic,
    reference: nn.Module | None,
    *,
    kl_coef: float,
    shaping: Shaping,
    batch_size: int = 32,
    reduce: Reduce | None = None,
) -> tuple[Experience, dict[str, float]]:
    """Score rollouts under policy, critic and reference, and estimate advantages.

    Args:
        rollout: B completions.
        scores: (B,) raw rewards.
        model: policy and critic.
        reference: frozen model; None for a policy whose adapters are switched off instead.
        kl_coef: weight of the per-token KL in the reward.
        shaping: everything else about rewards and advantages.
        batch_size: rows scored at once.
        reduce: sums over ranks, for whitening.

    Returns:
        The experience, on the policy's device, and what to log about it.
    """
    device = next(model.parameters()).device
    scores = torch.as_tensor(scores, dtype=torch.float32, device=device)
    mask, finished = rollout.mask.to(device), rollout.finished.to(device)
    judged = judge(rollout, model, reference, batch_size)
    lengths = mask.sum(dim=1)
    shaped_scores = shape_scores(scores, lengths, finished, shaping)
    kl = estimate_kl(judged.logprobs, judged.ref_logprobs, shaping.kl_estimator)
    rewards = shape_rewards(shaped_scores, kl, mask, kl_coef if shaping.kl_in_reward else 0.0)
    if shaping.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False, reduce=reduce)
    advantages, returns = estimate_advantages(
        shaping.advantage,
        rewards,
        judged.values,
        mask,
        shaping.group_size,
        shaping.gamma,
        shaping.gae_lambda,
    )
    train = mask * finished[:, None].float() if shaping.mask_truncated else mask
    if shaping.whiten_advantages:
        advantages = whiten(advantages, train, reduce=reduce)
    sampled = rollout.logprobs.to(device)
    correcting, correction_metrics = importance_weights(
        judged.logprobs,
        sampled,
        train,
        shaping.correction,
        shaping.correction_high,
        shaping.correction_low,
    )
    weights, shares = aggregation_weights(train, shaping.loss_aggregation, shaping.longest)
    experience = Experience(
        rollout.input_ids.to(device),
        rollout.attention_mask.to(device),
        train,
        judged.logprobs,
        judged.ref_logprobs,
        judged.values,
        # The surrogate is linear in the advantage, so the weight of a token can sit there.
        advantages * correcting,
        returns,
        scores,
        weights,
        shares,
    )
    metrics = describe(rollout, scores, judged)
    metrics["reward/kl_shaped"] = (rewards * mask).sum(dim=1).mean().item()
    metrics["kl/coef"] = kl_coef
    if shaping.advantage in CRITICS:
        metrics["value/mean"] = masked_mean(judged.values, train).item()
        metrics["value/explained_variance"] = explained_variance(judged.values, returns, train)
    if shaping.correction != "none":
        metrics |= correction_metrics
    if shaping.group_size > 1:
        groups = scores.view(-1, shaping.group_size)
        metrics["reward/group_std"] = groups.std(dim=1, unbiased=False).mean().item()
    return experience, metrics


def describe(rollout: Rollout, scores: Tensor, judged: Judged) -> dict[str, float]:
    """What to log about rollouts, whatever is learnt from them."""
    device = scores.device
    mask, finished = rollout.mask.to(device), rollout.finished.to(device)
    k1 = (estimate_kl(judged.logprobs, judged.ref_logprobs, "k1") * mask).sum(dim=1)
    k3 = (estimate_kl(judged.logprobs, judged.ref_logprobs, "k3") * mask).sum(dim=1)
    lengths = mask.sum(dim=1)
    return {
        "reward/mean": scores.mean().item(),
        "reward/std": scores.std(unbiased=False).item(),
        "kl/reference": k1.mean().item(),
        "kl/k3": k3.mean().item(),
        "policy/entropy": masked_mean(judged.entropy, mask).item(),
        "rollout/eos_rate": finished.float().mean().item(),
        "rollout/length_mean": lengths.mean().item(),
        "rollout/length_max": lengths.max().item(),
        "rollout/repetition": repetition(rollout.completion_ids, rollout.mask).mean().item(),
        "rollout/sampler_gap": gap(rollout.logprobs.to(device), judged.logprobs, mask),
        "rollout/sampler_gap_mean": mean_gap(rollout.logprobs.to(device), judged.logprobs, mask),
    }


def judge(
    rollout: Rollout, model: ActorCritic, reference: nn.Module | None, batch_size: int
) -> Judged:
    """One forward pass of policy, critic and reference over a rollout, without gradients."""
    device = next(model.parameters()).device
    input_ids, attention = rollout.input_ids.to(device), rollout.attention_mask.to(device)
    mask = rollout.mask.to(device)
    parts: list[tuple[Tensor, ...]] = []
    with torch.inference_mode(), dropout_off(model):
        for rows in torch.arange(len(rollout), device=device).split(batch_size):
            batch = (input_ids[rows], attention[rows], mask[rows])
            said = model(*batch, temperature=rollout.temperature, with_entropy=True)
            frozen = model.policy if reference is None else reference
            with adapters_off(model.policy) if reference is None else nullcontext():
                ref = completion_logprobs(frozen, *batch, rollout.temperature)[0]
            parts.append((said.logprobs, said.values, said.entropy, ref))
    return Judged(*(torch.cat(part).clone() for part in zip(*parts, strict=True)))


def shape_scores(scores: Tensor, lengths: Tensor, finished: Tensor, shaping: Shaping) -> Tensor:
    """Scores less the penalties on length and on a missing end, then clipped: (B,)."""
    shaped = scores - shaping.missing_eos_penalty * (~finished).float()
    if shaping.overlong_buffer:
        over = overlong_penalty(lengths, shaping.longest, shaping.overlong_buffer)
        shaped = shaped - shaping.overlong_penalty * over
    shaped = shaped - shaping.length_penalty * lengths
    if shaping.reward_clip is not None:
        shaped = shaped.clamp(-shaping.reward_clip, shaping.reward_clip)
    return shaped


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over trained tokens; 0 for constant returns."""
    kept = mask.bool()
    total = returns[kept].var(unbiased=False) if kept.any() else torch.zeros(())
    if total < 1e-8:
        return 0.0
    return float(1.0 - (returns - values)[kept].var(unbiased=False) / total)


def adapters_off(policy: nn.Module) -> Any:
    """A context in which a PEFT policy is what it started from."""
    return policy.disable_adapter()  # type: ignore[operator]


class dropout_off:  # noqa: N801 - used as a context manager
    """Evaluation mode inside, the former mode outside."""

    def __init__(self, model: nn.Module):
        self.model = model

    def __enter__(self) -> None:
        self.training = self.model.training
        self.model.eval()

    def __exit__(self, *error: object) -> None:
        self.model.train(self.training)
