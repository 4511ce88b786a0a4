"""Synaptic intelligence: Zenke et al. (2017), "Continual learning through synaptic intelligence".

While a task trains, omega_i = -sum_t g_i(t) (theta_i(t+1) - theta_i(t)) adds up how much each
weight lowered the task's loss (equation 3); at its end Omega_i += max(omega_i, 0) / (Delta_i^2 +
damping), with Delta_i the whole move (equation 5). The penalty is strength / 2 * sum_i Omega_i
(theta_i - theta*_i)^2, as in the other guards (equation 4 has c in the place of strength / 2).

g is the *task's* gradient, before clipping and before any penalty: clipped it would credit the
optimizer's limits, with the penalty it would credit the guard. It costs a copy of the gradient, of
the weights and of omega. LoRA never computes whole gradients, so adapters are refused. Of several
guards SI reads first; where penalties are in the loss (DeepSpeed) it takes out its own alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from align.engine.guards.base import Batch, LossFn
from align.engine.guards.importance import Named, WeightGuard
from align.engine.guards.weights import Plain, Weight, like_shards, refuse_others, trained_weights
from align.errors import ConfigError, Problem


def consolidated(path: Tensor, moved: Tensor, damping: float) -> Tensor:
    """Importance of one task: max(omega, 0) / (moved^2 + damping), equation 5.

    Args:
        path: omega, the loss that each number saved; any shape.
        moved: how far each came from its start, of the same shape.
        damping: xi, which keeps what hardly moved from counting without bound.
    """
    return path.clamp(min=0) / (moved.square() + damping)


class SI(WeightGuard):
    """Adds up importances while it trains; holds those of the tasks before."""

    name = "si"
    place = 0  # before whatever changes gradients
    holds_products = False

    def __init__(
        self,
        strength: float,
        omega: Named | None = None,
        anchor: Named | None = None,
        *,
        damping: float = 0.1,
        proximal: bool = False,
        in_place: bool = False,
    ):
        """Set up.

        Args:
            strength: of the penalty.
            omega: Omega of earlier tasks; None: this is the first.
            anchor: theta*; None: the weights that `begin` sees.
            damping: xi of `consolidated`.
            proximal: see `WeightGuard`.
            in_place: see `WeightGuard`.
        """
        super().__init__(strength, omega or {}, anchor, proximal=proximal, in_place=in_place)
        self.damping = damping
        self.path: dict[str, Tensor] = {}
        self.start: dict[str, Tensor] = {}
        self._gradient: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}

    def begin(self, model: nn.Module) -> None:
        """Begin a task here; see `WeightGuard.begin`.

        Raises:
            ConfigError: with LoRA, or see `refuse_others`.
        """
        refuse_others(model, self.name)
        if self.importance:
            super().begin(model)
        weights = trained_weights(model)
        if not all(isinstance(w, Plain) for w in weights.values()):
            what = "needs the gradient of whole weights, which LoRA never computes."
            raise ConfigError([Problem("guards: si", what, "use ewc, mas or l2sp.")])
        self.start = {n: w.now().detach().float().clone() for n, w in weights.items()}
        self.path = {n: torch.zeros_like(v) for n, v in self.start.items()}
        self._gradient, self._before = {}, {}

    def before_step(self, model: nn.Module, scale: float = 1.0) -> None:
        """Keep the task's gradient and the weights, then add the penalty's gradient.

        Without `in_place` the gradient holds the penalty's already, which is taken out of the copy.
        """
        weights = trained_weights(model)
        self._put(weights)
        self._gradient.clear()
        self._before.clear()
        with torch.no_grad():
            for name, weight in weights.items():
                found = weight.gradient() if isinstance(weight, Plain) else None
                if found is None or name not in self.path:
                    continue
                kept = found.float() / scale
                if not self.in_place and name in self.importance:
                    apart = weight.now().detach().float() - self.anchor[name]
                    kept = kept - self.strength * self.importance[name] * apart
                elif kept is found:
                    kept = found.clone()
                if bool(torch.isfinite(kept.sum())):  # of all numbers: NaN and inf stay in a sum
                    self._gradient[name] = kept
                    self._before[name] = weight.now().detach().float().clone()
        super().before_step(model, scale)

    def after_step(self, model: nn.Module, optimizer: Optimizer | None = None) -> None:
        """Omega -= g * (theta_after - theta_before), then the proximal step, if any."""
        weights = trained_weights(model)
        with torch.no_grad():
            for name, gradient in self._gradient.items():
                back = self._before[name].sub_(weights[name].now().detach().float())
                self.path[name].addcmul_(gradient, back)
        self._gradient.clear()
        self._before.clear()
        super().after_step(model, optimizer)

    def finish(self, model: nn.Module, batches: Iterable[Batch], loss_fn: LossFn) -> None:
        """End the task: its importances are added, the anchor moves here, and a new task begins."""
        weights = trained_weights(model)
        self._put(weights)
        for name, path in self.path.items():
            here = weights[name].now().detach().float().clone()
            found = consolidated(path, here - self.start[name], self.damping)
            old = self.importance.get(name)
            self.importance[name] = found if old is None else old + found
            self.anchor[name] = here
        self.begin(model)

    def state_dict(self) -> dict[str, Any]:
        """Everything, on the CPU; what lies between `before_step` and `after_step` apart."""
        return super().state_dict() | {
            "path": {n: v.cpu() for n, v in self.path.items()},
            "start": {n: v.cpu() for n, v in self.start.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        super().load_state_dict(state)
        for kind in ("path", "start"):
            setattr(self, kind, {n: v.clone() for n, v in state[kind].items()})

    def _put(self, weights: dict[str, Weight]) -> None:
        for kind in (self.path, self.start):
            for name, value in kind.items():
                if name in weights:
                    kind[name] = like_shards(value, weights[name])
