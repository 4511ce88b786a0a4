"""CLEAR's cloning terms for PPO: Rolnick et al. (2019), "Experience replay for continual learning".

A buffer keeps rollouts of all that the policy has met, with the probabilities and values it had
then. Each step some are scored again, and

    policy_strength * KL(mu || pi) + value_strength / 2 * (V - V_then)^2

is added (section 3, behavioural cloning): mu the policy of then. The KL is estimated on the tokens
that mu drew: r - 1 - log r with r = pi / mu, unbiased because E_mu[r] = 1, and never negative.

Leaves out the paper's V-trace loss on replayed rollouts: PPO's own update is on-policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from align.engine.guards.base import Batch, LossFn
from align.engine.guards.buffers import Buffer

Row = dict[str, Any]  # prompt, completion: token ids; logprobs, values: a number for each of these
LARGEST = 20.0  # of a log-ratio, before exp


def cloning_loss(
    logprobs: Tensor,
    then: Tensor,
    values: Tensor,
    values_then: Tensor,
    mask: Tensor,
    policy_strength: float,
    value_strength: float,
) -> Tensor:
    """Both cloning terms, means over tokens.

    Args:
        logprobs: (B, A) of the policy now, with gradient.
        then: (B, A) of the policy that drew the tokens.
        values: (B, A) now, with gradient.
        values_then: (B, A).
        mask: (B, A), 1 on completion tokens.
        policy_strength: of the KL.
        value_strength: of the values' squared distance.

    Returns:
        A scalar.
    """
    log_ratio = (logprobs - then).clamp(-LARGEST, LARGEST)
    policy = log_ratio.exp() - 1 - log_ratio
    value = 0.5 * (values - values_then).square()
    each = policy_strength * policy + value_strength * value
    return (each * mask).sum() / mask.sum().clamp(min=1)


class Clear:
    """Keeps rollouts of a run, and of those before it, and holds policy and critic on them."""

    name = "clear"

    def __init__(
        self,
        policy_strength: float,
        value_strength: float,
        *,
        capacity: int = 1024,
        batch_size: int = 8,
        temperature: float = 1.0,
        seed: int = 0,
        rows: Iterable[Row] = (),
    ):
        """Set up.

        Args:
            policy_strength: of the policy's cloning.
            value_strength: of the critic's.
            capacity: rollouts kept, of all met (a reservoir).
            batch_size: rollouts scored again in an optimizer step.
            temperature: that tokens are drawn at.
            seed: of what is kept and drawn.
            rows: rollouts that earlier runs kept; they are offered first.
        """
        self.policy_strength, self.value_strength = policy_strength, value_strength
        self.batch_size, self.temperature = batch_size, temperature
        self.buffer: Buffer[Row] = Buffer("reservoir", capacity, seed=seed)
        self.buffer.extend(rows)
        self.generator = torch.Generator().manual_seed(seed)

    def begin(self, model: nn.Module) -> None:
        """Nothing to anchor."""

    def penalty(self, model: nn.Module, batch: Batch) -> Tensor:
        """The terms on stored rollouts; then the batch's own are offered to the buffer."""
        device = next(model.parameters()).device
        found = torch.zeros((), device=device)
        kept = self.buffer.items
        if kept:
            count = min(self.batch_size, len(kept))
            places = torch.randperm(len(kept), generator=self.generator)[:count]
            stored = together([kept[i] for i in places.tolist()], device)
            said = model(
                stored["input_ids"],
                stored["attention_mask"],
                stored["mask"],
                temperature=self.temperature,
            )
            found = cloning_loss(
                said.logprobs,
                stored["logprobs"],
                said.values,
                stored["values"],
                stored["mask"],
                self.policy_strength,
                self.value_strength,
            )
        self.buffer.extend(apart(batch))
        return found

    def before_step(self, model: nn.Module, scale: float = 1.0) -> None:
        """Nothing to do."""

    def after_step(self, model: nn.Module, optimizer: Optimizer | None = None) -> None:
        """Nothing to do."""

    def finish(self, model: nn.Module, batches: Iterable[Batch], loss_fn: LossFn) -> None:
        """Nothing to consolidate: the buffer is filled as the run goes."""

    def state_dict(self) -> dict[str, Any]:
        """The buffer."""
        return {"buffer": self.buffer.state_dict(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.buffer.load_state_dict(state["buffer"])
        self.generator.set_state(state["generator"])


def apart(batch: Mapping[str, Tensor]) -> list[Row]:
    """The rollouts of an experience, without padding; those that train nothing are left out."""
    width = batch["mask"].shape[1]
    found = []
    for row in range(len(batch["mask"])):
        real = batch["mask"][row].bool()
        if not bool(real.any()):
            continue
        attended = batch["attention_mask"][row].bool()
        ids = batch["input_ids"][row]
        count = int(attended[-width:].sum())
        found.append(
            {
                "prompt": ids[:-width][attended[:-width]].tolist(),
                "completion": ids[-width:][:count].tolist(),
                "mask": batch["mask"][row, :count].tolist(),
                "logprobs": batch["logprobs"][row, :count].detach().tolist(),
                "values": batch["values"][row, :count].detach().tolist(),
            }
        )
    return found


def together(rows: list[Row], device: torch.device) -> Batch:
    """Rollouts as a batch: prompts padded on the left, completions on the right."""
    longest = max(len(row["prompt"]) for row in rows)
    width = max(len(row["completion"]) for row in rows)
    ids = torch.zeros(len(rows), longest + width, dtype=torch.long)
    attention = torch.zeros_like(ids)
    numbers = {k: torch.zeros(len(rows), width) for k in ("mask", "logprobs", "values")}
    for place, row in enumerate(rows):
        start, count = longest - len(row["prompt"]), len(row["completion"])
        ids[place, start : longest + count] = torch.tensor(row["prompt"] + row["completion"])
        attention[place, start : longest + count] = 1
        for name, table in numbers.items():
            table[place, :count] = torch.tensor(row[name])
    batch = {"input_ids": ids, "attention_mask": attention} | numbers
    return {name: value.to(device) for name, value in batch.items()}
