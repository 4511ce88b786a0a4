"""Elastic weight consolidation: Kirkpatrick et al. (2017), "Overcoming catastrophic forgetting".

penalty = strength / 2 * sum_i F_i (theta_i - theta*_i)^2, equation 3 of the paper, F the diagonal
of the empirical Fisher at theta*: the mean over examples of the *squared per-example* gradient of
the log-likelihood. The square of a batch's mean gradient is something else and far smaller.

Simplified: one anchor (a second task adds its Fisher to the first and moves the anchor, as in
Huszar 2018); the true Fisher, by sampling labels from the model, and the LoRA product come with
the other guards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from align.engine.guards.base import Batch, finite, refuse_sharded, trainable, unwrap
from align.errors import CheckpointError, ModelError

LossFn = Callable[[nn.Module, Batch], Tensor]


def estimate_fisher(
    model: nn.Module, examples: Iterable[Batch], loss_fn: LossFn
) -> dict[str, Tensor]:
    """Diagonal of the empirical Fisher: mean over examples of the squared gradient.

    Args:
        model: its trainable parameters are taken; gradients are cleared afterwards.
        examples: batches of *one* example each.
        loss_fn: negative log-likelihood of an example, a scalar *sum* over its tokens.

    Returns:
        Parameter name to a tensor of that parameter's shape, float32.

    Raises:
        ModelError: no example was given, or a gradient is not finite.
    """
    parameters = trainable(model)
    fisher = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    training = model.training
    model.eval()
    count = 0
    for example in examples:
        model.zero_grad(set_to_none=True)
        loss_fn(model, example).backward()
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                fisher[name] += parameter.grad.detach().float().square()
        count += 1
    model.zero_grad(set_to_none=True)
    model.train(training)
    if not count:
        raise ModelError("the Fisher needs at least one example; guards.data gave none.")
    if not finite(fisher.values()):
        raise ModelError("the Fisher is not finite: an example's loss or gradient overflowed.")
    return {name: value / count for name, value in fisher.items()}


def ewc_penalty(
    parameters: dict[str, nn.Parameter] | dict[str, Tensor],
    anchor: dict[str, Tensor],
    fisher: dict[str, Tensor],
    strength: float,
) -> Tensor:
    """The penalty, equation 3 of the paper, as a scalar."""
    terms = [
        (fisher[name] * (parameter.float() - anchor[name]).square()).sum()
        for name, parameter in parameters.items()
        if name in fisher
    ]
    return 0.5 * strength * torch.stack(terms).sum()


class EWC:
    """The guard: anchored where training starts, weighted by a Fisher estimated there."""

    name = "ewc"

    def __init__(self, strength: float, fisher: dict[str, Tensor]):
        """Args: strength of the penalty; the Fisher, as `estimate_fisher` returns it."""
        self.strength = strength
        self.fisher = fisher
        self.anchor: dict[str, Tensor] = {}

    def begin(self, model: nn.Module) -> None:
        """Anchor the current weights.

        Raises:
            ModelError: the Fisher belongs to another model.
            ConfigError: under ZeRO-3.
        """
        refuse_sharded(self.name)
        parameters = trainable(model)
        wrong = [
            n
            for n in parameters
            if n in self.fisher and self.fisher[n].shape != parameters[n].shape
        ]
        if wrong or not parameters.keys() & self.fisher.keys():
            shown = wrong[0] if wrong else next(iter(self.fisher), "nothing")
            raise ModelError(
                f"the Fisher does not belong to this model ({shown} is not the same there). "
                "Fix: estimate it on the model that training starts from."
            )
        self.fisher = {
            name: self.fisher[name].to(parameter.device)
            for name, parameter in parameters.items()
            if name in self.fisher
        }
        self.anchor = {name: parameters[name].detach().float().clone() for name in self.fisher}

    def penalty(self, model: nn.Module, batch: Batch) -> Tensor:
        """The penalty at the current weights."""
        parameters = dict(unwrap(model).named_parameters())
        kept = {name: parameters[name] for name in self.fisher}
        return ewc_penalty(kept, self.anchor, self.fisher, self.strength)

    def before_step(self, model: nn.Module) -> None:
        """Nothing to do."""

    def after_step(self, model: nn.Module) -> None:
        """Nothing to do."""

    def finish(self, model: nn.Module, batches: Iterable[Batch], loss_fn: Any) -> None:
        """Add this task's Fisher and move the anchor to the current weights."""
        for name, value in estimate_fisher(model, batches, loss_fn).items():
            if name in self.fisher:
                self.fisher[name] = self.fisher[name] + value
        parameters = trainable(model)
        self.anchor = {name: parameters[name].detach().float().clone() for name in self.fisher}

    def state_dict(self) -> dict[str, Any]:
        """Anchor and Fisher, on the CPU."""
        return {
            "strength": self.strength,
            "fisher": {name: value.cpu() for name, value in self.fisher.items()},
            "anchor": {name: value.cpu() for name, value in self.anchor.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore anchor and Fisher."""
        self.strength = float(state["strength"])
        for kind in ("fisher", "anchor"):
            mine = getattr(self, kind)
            setattr(
                self,
                kind,
                {
                    n: v.to(mine[n].device if n in mine else v.device)
                    for n, v in state[kind].items()
                },
            )


def save_fisher(path: Path, fisher: dict[str, Tensor]) -> None:
    """Write a Fisher as safetensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.cpu().contiguous() for name, value in fisher.items()}, path)


def load_fisher(path: Path) -> dict[str, Tensor]:
    """Read a Fisher.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        return load_file(path)
    except Exception as error:
        raise CheckpointError(f"cannot read the Fisher {path}: {error}") from error
