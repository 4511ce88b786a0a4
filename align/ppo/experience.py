"""From rollouts and scores to an `Experience`: one forward pass of everyone, KL, advantages.

Log-probabilities are recomputed by the policy being trained, not taken from the sampler, so that
the first ratio is 1 to rounding; how far the sampler's differ is measured and reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from align.engine.head import completion_logprobs
from align.ppo.actor_critic import ActorCritic
from align.ppo.advantages import Reduce, gae, masked_mean, shape_rewards, whiten
from align.ppo.kl import KLEstimator, estimate_kl
from align.types import Experience, Rollout


@dataclass(frozen=True)
class Shaping:
    """How scores become advantages; the fields are `PPOConfig`'s of the same names."""

    gamma: float = 1.0
    gae_lambda: float = 0.95
    kl_estimator: KLEstimator = "k1"
    missing_eos_penalty: float = 1.0
    mask_truncated: bool = False
    reward_clip: float | None = None
    whiten_rewards: bool = False
    whiten_advantages: bool = True


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
    input_ids, attention = rollout.input_ids.to(device), rollout.attention_mask.to(device)
    mask, finished = rollout.mask.to(device), rollout.finished.to(device)
    parts: list[tuple[Tensor, ...]] = []
    with torch.inference_mode(), dropout_off(model):
        for rows in torch.arange(len(rollout), device=device).split(batch_size):
            batch = (input_ids[rows], attention[rows], mask[rows])
            judged = model(*batch, temperature=rollout.temperature, with_entropy=True)
            frozen = model.policy if reference is None else reference
            with adapters_off(model.policy) if reference is None else nullcontext():
                ref = completion_logprobs(frozen, *batch, rollout.temperature)[0]
            parts.append((judged.logprobs, judged.values, judged.entropy, ref))
    logprobs, values, entropy, ref_logprobs = (
        torch.cat(p).clone() for p in zip(*parts, strict=True)
    )
    shaped_scores = scores - shaping.missing_eos_penalty * (~finished).float()
    if shaping.reward_clip is not None:
        shaped_scores = shaped_scores.clamp(-shaping.reward_clip, shaping.reward_clip)
    kl = estimate_kl(logprobs, ref_logprobs, shaping.kl_estimator)
    rewards = shape_rewards(shaped_scores, kl, mask, kl_coef)
    if shaping.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False, reduce=reduce)
    advantages, returns = gae(rewards, values, mask, shaping.gamma, shaping.gae_lambda)
    train = mask * finished[:, None].float() if shaping.mask_truncated else mask
    explained = explained_variance(values, returns, train)
    if shaping.whiten_advantages:
        advantages = whiten(advantages, train, reduce=reduce)
    experience = Experience(
        input_ids, attention, train, logprobs, ref_logprobs, values, advantages, returns, scores
    )
    k1 = (estimate_kl(logprobs, ref_logprobs, "k1") * mask).sum(dim=1)
    k3 = (estimate_kl(logprobs, ref_logprobs, "k3") * mask).sum(dim=1)
    lengths = mask.sum(dim=1)
    metrics = {
        "reward/mean": scores.mean().item(),
        "reward/std": scores.std(unbiased=False).item(),
        "reward/kl_shaped": (rewards * mask).sum(dim=1).mean().item(),
        "kl/reference": k1.mean().item(),
        "kl/k3": k3.mean().item(),
        "kl/coef": kl_coef,
        "policy/entropy": masked_mean(entropy, mask).item(),
        "rollout/eos_rate": finished.float().mean().item(),
        "rollout/length_mean": lengths.mean().item(),
        "rollout/length_max": lengths.max().item(),
        "rollout/sampler_gap": gap(rollout.logprobs.to(device), logprobs, mask),
        "value/mean": masked_mean(values, train).item(),
        "value/explained_variance": explained,
    }
    return experience, metrics


def gap(first: Tensor, second: Tensor, mask: Tensor) -> float:
    """Largest absolute difference of two (B, A) tensors inside the mask."""
    return float(((first - second).abs() * mask).max())


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
