"""L2-SP and L1-SP: Li et al. (2018), "Explicit inductive bias for transfer learning".

strength / 2 * ||theta - theta_0||^2 + head_strength / 2 * ||theta_new||^2, equation 2 of the paper,
and with absolute values in the first term, equation 5. theta_0 are the weights that training
starts from: every number counts alike, and nothing has to be estimated. L1 leaves most numbers
exactly where they were; its proximal step is the one to use, since its gradient never gets smaller.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from align.engine.guards.importance import WeightGuard
from align.engine.guards.weights import Weight


class L2SP(WeightGuard):
    """Holds all weights near the start, and new ones near 0."""

    name = "l2sp"

    def __init__(
        self,
        strength: float,
        *,
        new: Sequence[str] = (),
        head_strength: float | None = None,
        proximal: bool = False,
        in_place: bool = False,
    ):
        """Set up.

        Args:
            strength: of the penalty.
            new: regular expressions: names of weights that start fresh, held near 0.
            head_strength: of those; None: as strong.
            proximal: see `WeightGuard`.
            in_place: see `WeightGuard`.
        """
        super().__init__(strength, None, proximal=proximal, in_place=in_place)
        self.new = [re.compile(pattern) for pattern in new]
        self.head_share = 1.0 if head_strength is None else head_strength / strength

    def begin(self, model: nn.Module) -> None:
        """See `WeightGuard.begin`."""
        super().begin(model)
        for name, anchor in self.anchor.items():
            if self._is_new(name):
                anchor.zero_()

    def pick(self, weights: dict[str, Weight]) -> dict[str, Weight]:
        """All; new ones only where they are to be held."""
        return {n: w for n, w in weights.items() if self.head_share > 0 or not self._is_new(n)}

    def _is_new(self, name: str) -> bool:
        return any(pattern.search(name) for pattern in self.new)

    def _importances(self, names: Sequence[str]) -> list[Tensor | None]:
        if self.head_share == 1.0:
            return [None for _ in names]
        return [
            torch.full_like(self.anchor[n], self.head_share) if self._is_new(n) else None
            for n in names
        ]


class L1SP(L2SP):
    """strength * sum |theta - theta_0|: few weights move, and those freely."""

    name = "l1sp"

    def _value(
        self, now: Sequence[Tensor], anchors: Sequence[Tensor], importances: Sequence[Tensor | None]
    ) -> Tensor:
        return self._graph(now, anchors, importances).detach().double()

    def _graph(
        self, now: Sequence[Tensor], anchors: Sequence[Tensor], importances: Sequence[Tensor | None]
    ) -> Tensor:
        terms = [
            (w.float() - a).abs().sum() if h is None else (h * (w.float() - a).abs()).sum()
            for w, a, h in zip(now, anchors, importances, strict=True)
        ]
        return self.strength * torch.stack(terms).sum()

    def _add(
        self,
        gradients: Sequence[Tensor],
        now: Sequence[Tensor],
        anchors: Sequence[Tensor],
        importances: Sequence[Tensor | None],
        strength: float,
    ) -> None:
        for gradient, weight, anchor, share in zip(
            gradients, now, anchors, importances, strict=True
        ):
            side = torch.sign(weight.float() - anchor)
            gradient.add_(side if share is None else side * share, alpha=strength)

    def _proximal(
        self,
        now: Sequence[Tensor],
        anchors: Sequence[Tensor],
        importances: Sequence[Tensor | None],
        rates: Sequence[float],
    ) -> None:
        for weight, anchor, share, rate in zip(now, anchors, importances, rates, strict=True):
            apart = weight.float() - anchor
            least = rate if share is None else rate * share
            shrunk = torch.sign(apart) * (apart.abs() - least).clamp(min=0)
            weight.copy_(anchor + shrunk)
