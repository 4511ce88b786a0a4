"""A-GEM: Chaudhry et al. (2019), "Efficient lifelong learning with A-GEM".

Where the step's gradient g would raise the loss on a memory of earlier tasks, whose gradient is
g_ref, it is turned until it no longer does (equation 11):

    g <- g - (g . g_ref) / (g_ref . g_ref) * g_ref    if g . g_ref < 0, else g

It costs a forward and a backward of the memory's batch in every step, and holds outputs on average
only: what one remembered example gains another may lose.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from align.engine.guards.base import Batch, LossFn
from align.engine.guards.replay import Replay
from align.errors import ConfigError, Problem


def project(gradients: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Turn gradients in place, equation 11.

    Args:
        gradients: g, changed where it goes against the reference.
        reference: g_ref, of the same shapes, in any scale.

    Returns:
        The cosine of the two before; negative: it was turned.
    """
    with torch.no_grad():
        dot = sum(float((g.double() * r).sum()) for g, r in zip(gradients, reference, strict=True))
        length = sum(float(r.double().square().sum()) for r in reference)
        own = sum(float(g.double().square().sum()) for g in gradients)
        if dot < 0 and length > 0:
            for gradient, other in zip(gradients, reference, strict=True):
                gradient.add_(other.to(gradient.dtype), alpha=-dot / length)
    return dot / max((length * own) ** 0.5, 1e-300)


class AGEM(Replay):
    """Projects the step's gradient by that of stored examples; adds nothing to the loss.

    Needs whole gradients: plain training and DistributedDataParallel.
    """

    name = "agem"
    place = 1
    in_place = True

    def __init__(
        self,
        examples: Iterable[Batch],
        loss_fn: LossFn,
        batch_size: int = 8,
        seed: int = 0,
        **kwargs: Any,
    ):
        """Store the examples; see `Replay`."""
        super().__init__(examples, loss_fn, 1.0, batch_size, seed, **kwargs)
        self.cosine = 0.0

    def penalty(self, model: nn.Module, batch: Batch) -> Tensor:
        """Nothing is added to the loss: the last cosine of the gradients, where it was negative."""
        return torch.tensor(min(self.cosine, 0.0))

    def before_step(self, model: nn.Module, scale: float = 1.0) -> None:
        """Turn the gradient.

        Raises:
            ConfigError: gradients are split over processes.
        """
        trained = [p for p in model.parameters() if p.requires_grad and p.grad is not None]
        if not trained:
            return
        if any(hasattr(p, "_hp_mapping") or hasattr(p, "device_mesh") for p in trained):
            what = "agem needs whole gradients, and here they are split over processes."
            raise ConfigError([Problem("guards", what, "use replay, or train with DDP.")])
        # Not `backward`: nothing may be added to gradients, nor DDP's hooks run.
        with torch.enable_grad():
            loss = self.loss(bare(model))
        found = torch.autograd.grad(loss, trained, allow_unused=True)
        reference = [
            torch.zeros_like(p) if r is None else r for p, r in zip(trained, found, strict=True)
        ]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for value in reference:
                torch.distributed.all_reduce(value)
        self.cosine = project([p.grad for p in trained if p.grad is not None], reference)

    def after_step(self, model: nn.Module, optimizer: Optimizer | None = None) -> None:
        """Nothing to do."""


def bare(model: nn.Module) -> nn.Module:
    """The model without DistributedDataParallel, whose forward would wait for a backward."""
    inner = getattr(model, "module", None)
    return inner if isinstance(inner, nn.Module) else model
