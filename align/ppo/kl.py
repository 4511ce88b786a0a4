"""KL estimators and the controllers of the KL coefficient. Imports no trainer.

Estimators follow Schulman (2020), "Approximating KL Divergence"; the adaptive controller follows
Ziegler et al. (2019), "Fine-Tuning Language Models from Human Preferences", section 2.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]


def estimate_kl(
    logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator = "k1", clamp: float = 20.0
) -> Tensor:
    """Per-token estimate of KL(policy || reference) on tokens drawn from the policy.

    Args:
        logprobs: (B, A) log-probabilities under the policy.
        ref_logprobs: (B, A) under the reference.
        estimator: k1 = log p - log q (unbiased, may be negative); k2 = (log p - log q)^2 / 2
            (biased, low variance); k3 = q/p - 1 - log(q/p) (unbiased, never negative).
        clamp: bound on |log p - log q|, so that one token cannot overflow the estimate.

    Returns:
        (B, A), in nats.
    """
    log_ratio = (logprobs - ref_logprobs).clamp(-clamp, clamp)
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    if estimator == "k3":
        return torch.expm1(-log_ratio) + log_ratio
    raise ValueError(f"KL estimator {estimator!r} is unknown: use 'k1', 'k2' or 'k3'.")


@dataclass
class FixedKL:
    """A constant coefficient."""

    value: float

    def update(self, kl: float, steps: int) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore `state_dict`."""
        self.value = state["value"]


@dataclass
class AdaptiveKL(FixedKL):
    """A coefficient that steers the KL per sequence towards `target` (nats).

    beta <- beta * (1 + clip(KL / target - 1, -0.2, 0.2) * n / horizon), n episodes a time. Ziegler
    et al. assume n far below the horizon; n / horizon is capped at 1, so that one large batch moves
    beta by a fifth at most and never below zero.
    """

    target: float = 6.0
    horizon: int = 10_000

    def update(self, kl: float, steps: int) -> None:
        """Move the coefficient after `steps` episodes whose mean sequence KL was `kl`."""
        error = max(-0.2, min(0.2, kl / self.target - 1.0))
        self.value *= 1.0 + error * min(steps / self.horizon, 1.0)
