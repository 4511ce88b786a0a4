"""Elastic weight consolidation: Kirkpatrick et al. (2017), "Overcoming catastrophic forgetting".

penalty = strength / 2 * sum_i F_i (theta_i - theta*_i)^2, equation 3 of the paper, F the diagonal
of the Fisher information at theta* (`fisher`). Several tasks: the exact sum of their penalties in
the memory of one, or online with decay (`WeightGuard.add_task`).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from align.engine.guards.base import Batch, LossFn
from align.engine.guards.fisher import LogitsFn, estimate_fisher, estimate_true_fisher
from align.engine.guards.importance import Named, WeightGuard
from align.engine.guards.weights import trained_weights


def ewc_penalty(
    parameters: dict[str, nn.Parameter] | dict[str, Tensor],
    anchor: dict[str, Tensor],
    fisher: dict[str, Tensor],
    strength: float,
) -> Tensor:
    """The penalty, equation 3 of the paper, as a scalar: by plain autograd, for reading."""
    terms = [
        (fisher[name] * (parameter.float() - anchor[name]).square()).sum()
        for name, parameter in parameters.items()
        if name in fisher
    ]
    return 0.5 * strength * torch.stack(terms).sum()


class EWC(WeightGuard):
    """Anchored where training starts, or where its Fisher was estimated."""

    name = "ewc"

    def __init__(
        self,
        strength: float,
        fisher: Named | None = None,
        anchor: Named | None = None,
        *,
        logits_fn: LogitsFn | None = None,
        decay: float | None = None,
        proximal: bool = False,
        in_place: bool = False,
    ):
        """Set up.

        Args:
            strength: of the penalty.
            fisher: as `estimate_fisher` returns it; None: there is no earlier task yet.
            anchor: theta*; None: the weights that `begin` sees.
            logits_fn: `finish` then estimates the true Fisher, else the empirical one.
            decay: of what is older, where a task is added; None adds exactly.
            proximal: see `WeightGuard`.
            in_place: see `WeightGuard`.
        """
        super().__init__(strength, fisher or {}, anchor, proximal=proximal, in_place=in_place)
        self.logits_fn, self.decay = logits_fn, decay

    @property
    def fisher(self) -> dict[str, Tensor]:
        """F, summed over tasks."""
        return self.importance

    def begin(self, model: nn.Module) -> None:
        """See `WeightGuard.begin`; without a Fisher nothing is held yet."""
        if self.importance:
            super().begin(model)

    def finish(self, model: nn.Module, batches: Iterable[Batch], loss_fn: LossFn) -> None:
        """Add a task: its Fisher and the current weights.

        Args:
            model: at the end of the task.
            batches: one example of the task each.
            loss_fn: negative log-likelihood of an example, summed over its tokens.
        """
        if self.logits_fn is not None:
            found = estimate_true_fisher(model, batches, self.logits_fn)
        else:
            found = estimate_fisher(model, batches, loss_fn)
        here = {n: w.now().detach() for n, w in trained_weights(model).items()}
        self.add_task(found, here, self.decay)
