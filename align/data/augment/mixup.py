"""Mixup: convex mixtures of examples and of their targets, on hidden states or any arrays.

Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization" (arXiv 1710.09412), equation 1; on
text, Guo, Mao & Zhang 2019, "Augmenting Data with Mixup for Sentence Classification" (arXiv
1905.08941): on pooled states that is senMixup, on token states wordMixup (give the mask of both).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

A = TypeVar("A")  # a numpy array or a torch tensor


@dataclass(frozen=True)
class Mixed(Generic[A]):
    """A mixed batch."""

    states: A  # (B, ...) weight * states + (1 - weight) * states[partner]
    targets: A | None  # (B, ...) the same of the targets
    mask: A | None  # (B, T) 1 = a token of either
    partner: NDArray[np.int64]  # (B,) the row that each was mixed with
    weight: NDArray[np.float64]  # (B,) of the row itself, in [0, 1]


def mixup(
    states: A,
    targets: A | None = None,
    *,
    mask: A | None = None,
    alpha: float = 0.2,
    seed: int = 0,
    per_row: bool = True,
) -> Mixed[A]:
    """Mix each row with another of its batch, drawn as a permutation.

    Args:
        states: (B, ...) floats, a numpy array or a torch tensor (gradients flow through).
        targets: (B, ...) numbers that can be mixed: one-hot rows, probabilities, scores. Labels as
            class numbers cannot; make them one-hot. For a pairwise loss mix chosen and rejected
            states with one seed: margins then mix, and "chosen is better" stays true.
        mask: (B, T) 1 = a token, of states (B, T, H).
        alpha: of Beta(alpha, alpha), which the weights are drawn from; small: hardly mixed.
        seed: the same one gives the same partners and weights.
        per_row: a weight for each row; off, one for the batch, as in the paper's code.

    Raises:
        ValueError: alpha is not above 0, or numbers of rows differ, or targets are class numbers.
    """
    if not alpha > 0:
        raise ValueError(f"alpha is {alpha}; expected a number above 0")
    rows = _rows(states)
    for name, value in (("targets", targets), ("mask", mask)):
        if value is not None and _rows(value) != rows:
            raise ValueError(f"{name} has {_rows(value)} rows, but states has {rows}")
    if targets is not None and not _is_float(targets):
        raise ValueError(
            "targets are whole numbers, which cannot be mixed. Fix: floats, one-hot for classes"
        )
    draw = np.random.default_rng(seed)
    partner = draw.permutation(rows)
    weight = draw.beta(alpha, alpha, rows if per_row else 1) * np.ones(rows)
    joined = None if mask is None else _joined(mask, partner)
    return Mixed(
        _blend(states, partner, weight),
        None if targets is None else _blend(targets, partner, weight),
        joined,
        partner,
        weight,
    )


def _rows(value: Any) -> int:
    return int(value.shape[0])


def _is_float(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return bool(np.issubdtype(value.dtype, np.floating))
    return bool(value.is_floating_point())


def _blend(value: Any, partner: NDArray[np.int64], weight: NDArray[np.float64]) -> Any:
    shape = (-1, *(1,) * (value.ndim - 1))
    if isinstance(value, np.ndarray):
        share = weight.reshape(shape).astype(value.dtype)
        return share * value + (1 - share) * value[partner]
    import torch

    index = torch.as_tensor(partner, device=value.device)
    own = torch.as_tensor(weight, dtype=value.dtype, device=value.device).reshape(shape)
    return own * value + (1 - own) * value[index]


def _joined(mask: Any, partner: NDArray[np.int64]) -> Any:
    """A token of either row: the shorter one counts as zeros where it has ended (Guo 2019)."""
    if isinstance(mask, np.ndarray):
        return np.maximum(mask, mask[partner])
    import torch

    return torch.maximum(mask, mask[torch.as_tensor(partner, device=mask.device)])
