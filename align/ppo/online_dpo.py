"""Online (iterative) DPO: pairs of the policy's own completions, judged by the rewards.

Guo et al. (2024), "Direct Language Model Alignment from Online AI Feedback"; the loss is DPO's
(Rafailov et al. 2023, equation 7), or IPO's (Azar et al. 2024, equation 17). Each prompt's best
and worst completion are a pair; prompts whose completions all score alike train nothing. Sampler,
loader and rewards are PPO's. Leaves out a correction of the sampler's probabilities: DPO is right
on samples of a slightly older policy too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from align.engine.finite import FiniteMixin
from align.engine.guards.base import GuardMixin
from align.engine.throughput import SpeedMixin
from align.errors import Problem
from align.ppo.actor_critic import ActorCritic
from align.ppo.advantages import keep
from align.ppo.arguments import RolloutArguments
from align.ppo.checks import check_ratio
from align.ppo.experience import describe, judge, shape_scores, shaping_of
from align.ppo.on_policy import OnPolicyTrainer
from align.types import Experience, Rollout

LossType = Literal["sigmoid", "ipo"]


@dataclass
class OnlineDPOConfig(RolloutArguments):
    """Arguments of `OnlineDPOTrainer`; those of its outer loop are `RolloutArguments`'."""

    group_size: int = field(default=2, metadata={"help": "Completions per prompt; 2 or more."})
    learning_rate: float = field(default=1e-6, metadata={"help": "Of the policy."})
    dpo_epochs: int = field(default=1, metadata={"help": "Passes over each batch of pairs."})
    beta: float = field(default=0.1, metadata={"help": "Of DPO: the strength of the KL."})
    loss_type: LossType = field(default="sigmoid", metadata={"help": "Or ipo."})
    label_smoothing: float = field(default=0.0, metadata={"help": "Of sigmoid: noise of scores."})

    @property
    def epochs(self) -> int:
        """Passes over each batch of pairs."""
        return self.dpo_epochs

    @property
    def rows_per_update(self) -> int:
        """A chosen and a rejected row for each prompt."""
        return 2 * (self.rollout_batch_size // self.group_size)

    @property
    def bounds(self) -> Mapping[str, str]:
        """What each number must satisfy."""
        return {**super().bounds, "dpo_epochs": ">= 1", "beta": "> 0"}

    def _problems(self) -> list[Problem]:
        found = super()._problems()
        if self.group_size < 2:
            what = f"{self.group_size} completion a prompt makes no pair."
            found.append(Problem("trainer.group_size", what, "use 2 or more."))
        if self.per_device_train_batch_size % 2:
            what = f"{self.per_device_train_batch_size} rows would part a pair."
            found.append(Problem("trainer.per_device_train_batch_size", what, "use an even one."))
        if not 0 <= self.label_smoothing < 0.5:
            what = f"{self.label_smoothing} is not within [0, 0.5)."
            found.append(Problem("trainer.label_smoothing", what))
        return found


def extremes(scores: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Rows of each group's best and worst completion: (B,) -> (P,) and (P,) int64.

    They are the same row where all scores of a group are equal.
    """
    groups = scores.view(-1, group_size)
    first = torch.arange(len(groups), device=scores.device) * group_size
    best, worst = groups.argmax(dim=1), groups.argmin(dim=1)
    worst = torch.where(groups.amax(dim=1) > groups.amin(dim=1), worst, best)
    return first + best, first + worst


def pair_loss(
    margins: Tensor, beta: float, loss_type: LossType = "sigmoid", label_smoothing: float = 0.0
) -> Tensor:
    """DPO's loss of each pair, (P,) -> (P,).

    Args:
        margins: log(pi/ref) of the chosen minus that of the rejected completion, in nats; for ipo
            each per token.
        beta: strength of the KL.
        loss_type: sigmoid is -log sigmoid(beta m), with label smoothing its mixture with
            -log sigmoid(-beta m); ipo is (m - 1 / (2 beta))^2.
        label_smoothing: probability that a pair is the wrong way round.
    """
    if loss_type == "ipo":
        return (margins - 1.0 / (2.0 * beta)).square()
    sigmoid = nn.functional.logsigmoid
    right, wrong = sigmoid(beta * margins), sigmoid(-beta * margins)
    return -(1.0 - label_smoothing) * right - label_smoothing * wrong


class OnlineDPOLossTrainer(OnPolicyTrainer):
    """The pairs and the loss; `OnlineDPOTrainer` adds guards and checks."""

    args: OnlineDPOConfig
    model: ActorCritic  # without a critic
    together = 2

    @property
    def policy(self) -> nn.Module:
        """The language model."""
        return self.model.policy

    @property
    def corrected(self) -> bool:
        """A sampler of other weights or precision draws other pairs, and no wrong ones."""
        return self.synced

    def experience_of(
        self, rollout: Rollout, scores: list[float]
    ) -> tuple[Experience, dict[str, float]]:
        """Chosen and rejected rows side by side; those that tie have no weight."""
        judged = judge(rollout, self.model, self.reference, self.args.per_device_train_batch_size)
        device = judged.logprobs.device
        raw = torch.as_tensor(scores, dtype=torch.float32, device=device)
        mask, finished = rollout.mask.to(device), rollout.finished.to(device)
        shaping = shaping_of(self.args, self.longest)
        shaped = shape_scores(raw, mask.sum(dim=1), finished, shaping)
        chosen, rejected = extremes(shaped, self.args.group_size)
        counts = (chosen != rejected).float().repeat_interleave(2)
        zeros = torch.zeros_like(mask)
        whole = Experience(
            rollout.input_ids.to(device),
            rollout.attention_mask.to(device),
            mask,
            judged.logprobs,
            judged.ref_logprobs,
            values=zeros,
            advantages=zeros,
            returns=zeros,
            scores=raw,
            weights=torch.ones_like(raw),
            shares=torch.ones_like(raw),
        )
        pairs = whole.select(torch.stack([chosen, rejected], dim=1).flatten())
        pairs.weights, pairs.shares = counts, counts / 2  # a step divides by its pairs
        metrics = describe(rollout, raw, judged)
        metrics["reward/group_std"] = raw.view(-1, self.args.group_size).std(dim=1).mean().item()
        metrics["pairs/used"] = counts.mean().item()
        return pairs, metrics

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """DPO's loss of the microbatch's pairs, by the number of pairs of the whole step."""
        mask = inputs["mask"]
        judged = model(
            inputs["input_ids"],
            inputs["attention_mask"],
            mask,
            temperature=getattr(self.sampler, "temperature", 1.0) or 1.0,
        )
        if not self.checked:
            self.checked = True
            check_ratio(judged.logprobs, inputs["logprobs"], mask, self._tolerance())
        ratios = keep(judged.logprobs - inputs["ref_logprobs"], mask).sum(dim=1)
        if self.args.loss_type == "ipo":
            ratios = ratios / mask.sum(dim=1).clamp(min=1)
        margins = ratios[0::2] - ratios[1::2]
        weights = inputs["weights"][0::2]
        each = pair_loss(margins, self.args.beta, self.args.loss_type, self.args.label_smoothing)
        loss = (each * weights).sum() / inputs["tokens"].clamp(min=1e-6)
        used = weights.bool()
        if used.any():
            won = margins.detach()[used]
            self.metrics["policy/loss"].append(each.detach()[used].mean().item())
            self.metrics["rewards/margins"].append(self.args.beta * won.mean().item())
            self.metrics["rewards/accuracies"].append((won > 0).float().mean().item())
            chosen = ratios.detach()[0::2][used]
            self.metrics["logprobs/chosen_change"].append(chosen.mean().item())
        return (loss, judged) if return_outputs else loss


class OnlineDPOTrainer(SpeedMixin, FiniteMixin, GuardMixin, OnlineDPOLossTrainer):
    """Online DPO with guards and finite checks."""
