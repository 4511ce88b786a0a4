"""Memory aware synapses: Aljundi et al. (2018), "Memory Aware Synapses".

Omega_i = 1/N sum_n | d ||f(x_n)||^2 / d theta_i |, equation 2 and section 4.1 of the paper, with f
the outputs: how much the function moves when a weight does. It needs no labels. Held like EWC's
Fisher, with penalty strength / 2 * sum Omega_i (theta_i - theta*_i)^2 (the paper's equation 3 has
lambda in the place of strength / 2).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from align.engine.guards.base import Batch, LossFn
from align.engine.guards.fisher import IGNORED, LogitsFn, mean_of_gradients
from align.engine.guards.importance import Named, WeightGuard
from align.engine.guards.weights import trained_weights


def estimate_omega(
    model: nn.Module, examples: Iterable[Batch], logits_fn: LogitsFn
) -> dict[str, Tensor]:
    """Mean over examples of the absolute gradient of the outputs' squared length.

    Logits are centred first: a constant added to all of them changes nothing that the model says.
    Those of one example are summed over its positions.

    Args:
        model: its trained weights are taken.
        examples: batches of *one* example each.
        logits_fn: (model, example) -> logits (N, C) and labels (N,), -100 where none counts.

    Returns:
        Parameter name to a tensor of that parameter's shape, float32.

    Raises:
        ModelError: no example was given, or a gradient is not finite.
    """

    def length(module: nn.Module, example: Batch) -> Tensor:
        logits, labels = logits_fn(module, example)
        kept = logits[labels != IGNORED].float()
        return (kept - kept.mean(dim=-1, keepdim=True)).square().sum()

    return mean_of_gradients(model, examples, length, torch.abs, "Omega")


class MAS(WeightGuard):
    """Holds what the outputs are sensitive to."""

    name = "mas"

    def __init__(
        self,
        strength: float,
        omega: Named | None = None,
        anchor: Named | None = None,
        *,
        logits_fn: LogitsFn,
        decay: float | None = None,
        proximal: bool = False,
        in_place: bool = False,
    ):
        """Set up.

        Args:
            strength: of the penalty.
            omega: as `estimate_omega` returns it; None: there is no earlier task yet.
            anchor: theta*; None: the weights that `begin` sees.
            logits_fn: outputs, for `finish`.
            decay: of what is older, where a task is added; None adds exactly.
            proximal: see `WeightGuard`.
            in_place: see `WeightGuard`.
        """
        super().__init__(strength, omega or {}, anchor, proximal=proximal, in_place=in_place)
        self.logits_fn, self.decay = logits_fn, decay

    def begin(self, model: nn.Module) -> None:
        """See `WeightGuard.begin`; without importances nothing is held yet."""
        if self.importance:
            super().begin(model)

    def finish(self, model: nn.Module, batches: Iterable[Batch], loss_fn: LossFn) -> None:
        """Add a task: its importances and the current weights; labels and loss are not read."""
        found = estimate_omega(model, batches, self.logits_fn)
        here = {n: w.now().detach() for n, w in trained_weights(model).items()}
        self.add_task(found, here, self.decay)
