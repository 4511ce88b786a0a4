"""One model from several that were fine-tuned from one base: soups, TIES and DARE.

A soup is the mean of the weights (Wortsman et al. 2022, "Model soups"). TIES (Yadav et al. 2023)
adds to the base what most models agree on: of each change the largest part is kept, signs are put
to the vote, and those that agree are averaged. DARE (Yu et al. 2024) drops changes by chance and
scales the others up. The mathematics of both is PEFT's (`peft.utils.merge_utils`), here on the
weights of whole models instead of adapters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from peft.utils.merge_utils import dare_linear, dare_ties, ties
from torch import Tensor

from align.errors import ModelError

Method = Literal["soup", "ties", "dare_ties", "dare_linear"]
CHANGES = {"ties": ties, "dare_ties": dare_ties, "dare_linear": dare_linear}
METHODS: tuple[Method, ...] = ("soup", "ties", "dare_ties", "dare_linear")


def merge_weights(
    base: Mapping[str, Tensor],
    models: Sequence[Mapping[str, Tensor]],
    method: Method,
    *,
    weights: Sequence[float] | None = None,
    density: float = 0.5,
    seed: int = 0,
) -> dict[str, Tensor]:
    """The merged weights.

    Args:
        base: by name; the models' common start.
        models: at least one, with the base's names and shapes.
        method: see the module.
        weights: of each model; None: all alike, summing to 1.
        density: share of each change that is kept, of TIES and DARE.
        seed: of what DARE drops.

    Raises:
        ModelError: names or shapes differ, or there is not a weight for each model.
    """
    shares = [1 / len(models)] * len(models) if weights is None else list(weights)
    if len(shares) != len(models):
        raise ModelError(f"{len(shares)} weights were given for {len(models)} models.")
    torch.manual_seed(seed)
    found = {}
    for name, start in base.items():
        wrong = next((i for i, m in enumerate(models) if _other(m.get(name), start)), None)
        if wrong is not None:
            raise ModelError(
                f"model {wrong + 1} has no {name} of the base's shape: they do not share a start."
            )
        if not start.is_floating_point():
            found[name] = start
            continue
        changes = [model[name].float() - start.float() for model in models]
        share = torch.tensor(shares)
        if method == "soup":
            moved = sum((s * c for s, c in zip(shares, changes, strict=True)), torch.zeros(()))
        else:
            moved = CHANGES[method](changes, share, density)
        found[name] = (start.float() + moved).to(start.dtype)
    return found


def _other(value: Tensor | None, start: Tensor) -> bool:
    return value is None or value.shape != start.shape
