"""A guard on weights: an anchor, an importance for every number, a strength.

What importance is, a method says (`ewc`, `si`, `mas`, `l2sp`). Here is how it acts: the gradient is
added in place just before the step, or the penalty carries it; or, with `proximal`, neither, and
the weights are moved towards the anchor after the step. Works on whole weights and on LoRA's
product, under DistributedDataParallel, ZeRO-1/2 and FSDP2 (`weights`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from align.engine.guards.base import Batch, LossFn
from align.engine.guards.quadratic import (
    Penalty,
    add_gradient,
    combine,
    penalty_value,
    proximal_step,
)
from align.engine.guards.weights import (
    Plain,
    Product,
    Weight,
    like_shards,
    refuse_others,
    trained_weights,
    zero_splits,
)
from align.errors import ConfigError, ModelError, Problem

Named = Mapping[str, Tensor]


class WeightGuard:
    """Holds weights near an anchor; see the methods for what H is.

    In a loop of one's own: `loss + guard.penalty(model, batch)`, `backward`, `guard.before_step`,
    the optimizer's step, `guard.after_step`. With `in_place`, which the trainers set, the penalty
    is only a number and `before_step` adds its gradient; without, the penalty has the gradient.
    """

    name = "weights"
    holds_products = True  # LoRA's

    def __init__(
        self,
        strength: float,
        importance: Named | None = None,
        anchor: Named | None = None,
        *,
        proximal: bool = False,
        in_place: bool = False,
    ):
        """Set up.

        Args:
            strength: of the penalty.
            importance: H by parameter, each of its parameter's shape; None: 1 everywhere.
            anchor: theta* by parameter; None: the weights that `begin` sees.
            proximal: move the weights after the step instead of the gradient before it: stable
                at any strength.
            in_place: see the class.
        """
        self.strength, self.proximal, self.in_place = strength, proximal, in_place or proximal
        self.uniform = importance is None
        self.importance: dict[str, Tensor] = dict(importance or {})
        # Copies: an anchor that shares the weights' memory would move with them, and hold nothing.
        self.anchor: dict[str, Tensor] = {n: v.detach().clone() for n, v in (anchor or {}).items()}
        self.constant = 0.0  # what several anchors leave of a penalty wherever one stands

    def begin(self, model: nn.Module) -> None:
        """Anchor the current weights, unless an anchor was given.

        Raises:
            ModelError: importances or anchors belong to another model.
            ConfigError: see `refuse_others`; or LoRA, where the method cannot work with it.
        """
        refuse_others(model, self.name)
        weights = self.pick(trained_weights(model))
        if not self.holds_products and any(isinstance(w, Product) for w in weights.values()):
            what = "needs the gradient of whole weights, which LoRA never computes."
            raise ConfigError([Problem(f"guards: {self.name}", what, "use ewc, mas or l2sp.")])
        if self.uniform:
            self.importance = {}
            held = set(weights)
        else:
            self._check_fit(weights)
            self.importance = {
                n: like_shards(h, weights[n])
                for n, h in self.importance.items()
                if n in weights and bool((h != 0).any())
            }
            held = set(self.importance)
        given = self.anchor
        self.anchor = {
            n: given[n].float() if n in given else w.now().detach().float().clone()
            for n, w in weights.items()
            if n in held
        }
        self._place(weights)

    def pick(self, weights: dict[str, Weight]) -> dict[str, Weight]:
        """Of the weights that train, those that the method holds."""
        return weights

    def penalty(self, model: nn.Module, batch: Batch) -> Tensor:
        """The penalty at the current weights: a scalar, with gradient unless `in_place`."""
        weights, held = self._held(model)
        if not held:
            return torch.zeros(())
        anchors = [self.anchor[n] for n in held]
        now = [weights[n].now() for n in held]
        if self.in_place:
            found = self._value([w.detach() for w in now], anchors, self._importances(held))
            if any(
                isinstance(w, Plain) and isinstance(w.parameter, DTensor) for w in weights.values()
            ):
                torch.distributed.all_reduce(found)  # shards to the whole
            return (found + 0.5 * self.strength * self.constant).float()
        return self._graph(now, anchors, self._importances(held))

    def before_step(self, model: nn.Module, scale: float = 1.0) -> None:
        """Add the penalty's gradient where one is added in place.

        Args:
            model: its gradients are the task's, complete and not yet clipped.
            scale: what gradients are multiplied by (float16's loss scale).

        Raises:
            ModelError: ZeRO has the gradients.
        """
        if not self.in_place or self.proximal:
            return
        weights, held = self._held(model)
        self._refuse_zero(weights, "a gradient added in place", "leave in_place out")
        names = [n for n in held if isinstance(w := weights[n], Plain) and w.gradient() is not None]
        gradients = [weights[n].gradient() for n in names]  # type: ignore[union-attr]
        now = [weights[n].now().detach() for n in names]
        anchors = [self.anchor[n] for n in names]
        self._add(gradients, now, anchors, self._importances(names), self.strength * scale)  # type: ignore[arg-type]
        with torch.no_grad():
            for name in held:
                weight = weights[name]
                if isinstance(weight, Product):
                    wanted = torch.zeros_like(self.anchor[name])
                    self._add(
                        [wanted],
                        [weight.now()],
                        [self.anchor[name]],
                        self._importances([name]),
                        self.strength * scale,
                    )
                    weight.add_gradient(wanted)

    def after_step(self, model: nn.Module, optimizer: Optimizer | None = None) -> None:
        """Move the weights towards the anchor, where the step is proximal.

        Raises:
            ModelError: it needs the optimizer's learning rates, and there is no optimizer; or the
                weights are LoRA's products, which have no such step; or ZeRO has them.
        """
        if not self.proximal:
            return
        if optimizer is None:
            raise ModelError(f"{self.name}: after_step needs the optimizer for a proximal step.")
        weights, held = self._held(model)
        self._refuse_zero(weights, "a proximal step", "leave proximal out")
        rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
        moved: list[tuple[str, Tensor, float]] = []
        for name in held:
            weight = weights[name]
            if isinstance(weight, Product):
                raise ModelError(f"{self.name}: a proximal step cannot move LoRA's product {name}.")
            rate = rates.get(id(weight.parameter), 0.0) * self.strength
            moved.append((name, weight.now().detach(), rate))
        names = [n for n, _, _ in moved]
        self._proximal(
            [w for _, w, _ in moved],
            [self.anchor[n] for n in names],
            self._importances(names),
            [r for _, _, r in moved],
        )

    def finish(self, model: nn.Module, batches: Iterable[Batch], loss_fn: LossFn) -> None:
        """Nothing to consolidate; methods that estimate something do it here."""

    def state_dict(self) -> dict[str, Any]:
        """Everything, on the CPU."""
        return {
            "strength": self.strength,
            "constant": self.constant,
            "importance": {n: v.cpu() for n, v in self.importance.items()},
            "anchor": {n: v.cpu() for n, v in self.anchor.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.strength, self.constant = float(state["strength"]), float(state["constant"])
        for kind in ("importance", "anchor"):
            mine: dict[str, Tensor] = getattr(self, kind)
            kept = {
                n: v.to(mine[n].device) if n in mine else v.clone() for n, v in state[kind].items()
            }
            setattr(self, kind, kept)

    def add_task(self, importance: Named, anchor: Named, decay: float | None = None) -> None:
        """Take a task in: exactly (None), or online with the old importances times `decay`.

        Exactly: the sum of all tasks' penalties, each with its own anchor, in the memory of one
        (`quadratic.combine`). Online (Schwarz et al. 2018, "Progress & Compress", section 3.3):
        H <- decay * H + H_task, and the anchor moves to the task's.
        """
        for name, found in importance.items():
            at = anchor[name].float()
            if name not in self.importance:
                self.importance[name], self.anchor[name] = found.clone(), at.clone()
                continue
            old = self.importance[name]
            found, at = found.to(old.device), at.to(old.device)
            if decay is not None:
                self.importance[name], self.anchor[name] = decay * old + found, at.clone()
                continue
            total, mean, rest = combine([old, found], [self.anchor[name], at])
            self.importance[name], self.anchor[name] = total, mean
            self.constant += rest

    def _value(
        self, now: Sequence[Tensor], anchors: Sequence[Tensor], importances: Sequence[Tensor | None]
    ) -> Tensor:
        return 0.5 * self.strength * penalty_value(now, anchors, importances)

    def _graph(
        self, now: Sequence[Tensor], anchors: Sequence[Tensor], importances: Sequence[Tensor | None]
    ) -> Tensor:
        found: Tensor = Penalty.apply(self.strength, anchors, importances, *now)
        return found + 0.5 * self.strength * self.constant

    def _add(
        self,
        gradients: Sequence[Tensor],
        now: Sequence[Tensor],
        anchors: Sequence[Tensor],
        importances: Sequence[Tensor | None],
        strength: float,
    ) -> None:
        add_gradient(gradients, now, anchors, importances, strength)

    def _proximal(
        self,
        now: Sequence[Tensor],
        anchors: Sequence[Tensor],
        importances: Sequence[Tensor | None],
        rates: Sequence[float],
    ) -> None:
        proximal_step(now, anchors, importances, rates)

    def _importances(self, names: Sequence[str]) -> list[Tensor | None]:
        return [None if self.uniform else self.importance[n] for n in names]

    def _held(self, model: nn.Module) -> tuple[dict[str, Weight], list[str]]:
        """The model's weights, and the names of those held, laid out alike."""
        weights = trained_weights(model)
        self._place(weights)
        return weights, [n for n in self._acting() if n in weights]

    def _refuse_zero(self, weights: Mapping[str, Weight], what: str, fix: str) -> None:
        """DeepSpeed steps on copies of its own: what is done to the model is lost, silently."""
        for weight in weights.values():
            if zero_splits(weight.parameter if isinstance(weight, Plain) else weight.a):
                raise ModelError(
                    f"{self.name}: {what} does not reach the copies that DeepSpeed trains. "
                    f"Fix: {fix}, and add the penalty to the loss."
                )

    def _acting(self) -> Iterable[str]:
        return self.anchor if self.uniform else self.importance

    def _place(self, weights: Mapping[str, Weight]) -> None:
        for kind in (self.importance, self.anchor):
            for name, value in kind.items():
                if name in weights:
                    kind[name] = like_shards(value, weights[name])

    def _check_fit(self, weights: Mapping[str, Weight]) -> None:
        wrong = [
            n
            for n, w in weights.items()
            for given in (self.importance, self.anchor)
            if n in given and given[n].shape not in (w.shape, w.now().shape)  # or its shard
        ]
        if wrong or not weights.keys() & self.importance.keys():
            shown = wrong[0] if wrong else next(iter(self.importance), "nothing")
            raise ModelError(
                f"{self.name}: the importances do not belong to this model ({shown} is not the "
                "same there). Fix: estimate them on the model that training starts from."
            )
