"""What guards on weights have in common: quadratic penalties, their gradients and proximal steps.

With importances H and an anchor theta*, all of one shape per parameter,

    penalty   strength / 2 * sum_i H_i (theta_i - theta*_i)^2
    gradient  strength * H_i (theta_i - theta*_i)
    proximal  theta_i <- (theta_i + rate * strength * H_i * theta*_i) / (1 + rate * strength * H_i)

The gradient needs no autograd: it is added in place, in blocks that stay in a CPU's cache, or with
`torch._foreach_*` elsewhere, in groups; what is allocated is small. An explicit step diverges where
rate * strength * max(H) > 2 (1 + momentum); the proximal one is stable for every strength.

Leaves out which weights are held (`weights`) and where importances come from (`ewc`, `si`, `mas`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

BLOCK = 1 << 18  # numbers worked on at once on a CPU: 1 MiB in float32
GROUP = 1 << 26  # and elsewhere: 256 MiB
Importances = Sequence[Tensor | None]  # None: 1 everywhere


def penalty_value(
    weights: Sequence[Tensor], anchors: Sequence[Tensor], importances: Importances
) -> Tensor:
    """sum_i H_i (theta_i - theta*_i)^2, without strength and half: a float64 scalar, no gradient.

    Args:
        weights: of any shapes.
        anchors: of the same shapes.
        importances: likewise.
    """
    total = torch.zeros((), dtype=torch.float64, device=weights[0].device if weights else None)
    with torch.no_grad():
        for weight, anchor, importance in zip(weights, anchors, importances, strict=True):
            for w, a, h in _blocks(weight, anchor, importance):
                apart = w.float() - a
                weighted = apart if h is None else h * apart
                total += torch.dot(weighted, apart).double()
    return total


def add_gradient(
    gradients: Sequence[Tensor],
    weights: Sequence[Tensor],
    anchors: Sequence[Tensor],
    importances: Importances,
    strength: float,
) -> None:
    """Gradient += strength * H (theta - theta*), in place.

    Args:
        gradients: changed.
        weights: of the same shapes, as are all that follow.
        anchors: theta*.
        importances: H.
        strength: of the penalty, times a loss scale if gradients have one.
    """
    with torch.no_grad():
        if weights and weights[0].device.type != "cpu":
            add_in_groups(gradients, weights, anchors, importances, strength)
            return
        buffer = torch.empty(BLOCK)
        for gradient, weight, anchor, importance in zip(
            gradients, weights, anchors, importances, strict=True
        ):
            _add_blocks(gradient, weight, anchor, importance, strength, buffer)


def _add_blocks(
    gradient: Tensor,
    weight: Tensor,
    anchor: Tensor,
    importance: Tensor | None,
    strength: float,
    buffer: Tensor,
) -> None:
    if not gradient.is_contiguous():
        apart = weight.float() - anchor
        held = apart if importance is None else apart * importance
        gradient.add_(held, alpha=strength)
        return
    flat = gradient.view(-1)
    for number, (w, a, h) in enumerate(_blocks(weight, anchor, importance)):
        part = flat[number * BLOCK : number * BLOCK + len(w)]
        apart = torch.sub(w, a, out=buffer[: len(w)])
        if h is None:
            part.add_(apart, alpha=strength)
        else:
            part.addcmul_(h, apart, value=strength)


def add_in_groups(
    gradients: Sequence[Tensor],
    weights: Sequence[Tensor],
    anchors: Sequence[Tensor],
    importances: Importances,
    strength: float,
    most: int = GROUP,
) -> None:
    """`add_gradient` where starting a kernel costs more than a pass over memory.

    Tensors are taken together up to `most` numbers, whose differences are all that is allocated.
    """
    start = 0
    while start < len(weights):
        stop, count = start, 0
        while stop < len(weights) and (stop == start or count + weights[stop].numel() <= most):
            count += weights[stop].numel()
            stop += 1
        part = slice(start, stop)
        apart = list(torch._foreach_sub([w.float() for w in weights[part]], list(anchors[part])))
        held = [(d, h) for d, h in zip(apart, importances[part], strict=True) if h is not None]
        if held:
            torch._foreach_mul_([d for d, _ in held], [h for _, h in held])
        torch._foreach_add_(list(gradients[part]), apart, alpha=strength)
        start = stop


def proximal_step(
    weights: Sequence[Tensor],
    anchors: Sequence[Tensor],
    importances: Importances,
    rates: Sequence[float],
) -> None:
    """Theta <- (theta + c H theta*) / (1 + c H), in place, c = rates (learning rate * strength).

    The minimiser of c / 2 * H (x - theta*)^2 + (x - theta)^2 / 2: between theta and theta* for
    every c, so that no strength diverges.
    """
    with torch.no_grad():
        for weight, anchor, importance, rate in zip(
            weights, anchors, importances, rates, strict=True
        ):
            share = torch.full_like(anchor, rate) if importance is None else rate * importance
            # as a move towards the anchor, so that at the anchor nothing is rounded
            weight.add_(((anchor - weight.float()) * (share / (1 + share))).to(weight.dtype))


def combine(
    importances: Sequence[Tensor], anchors: Sequence[Tensor]
) -> tuple[Tensor, Tensor, float]:
    """Several quadratic penalties on one parameter as one, exactly.

    sum_k H_k (x - a_k)^2 = H (x - a)^2 + c with H = sum_k H_k, a = sum_k H_k a_k / H and
    c = sum_k H_k a_k^2 - H a^2: any number of tasks needs the memory of one.

    Returns:
        H, a (0 where H is 0) and c, summed over elements.
    """
    total = torch.zeros_like(importances[0], dtype=torch.float64)
    first, second = torch.zeros_like(total), torch.zeros_like(total)
    for importance, anchor in zip(importances, anchors, strict=True):
        wide = importance.double()
        total += wide
        first += wide * anchor.double()
        second += wide * anchor.double().square()
    # Where nothing matters any anchor will do; the last one keeps the penalty's distances small.
    mean = torch.where(total > 0, first / total.clamp(min=1e-300), anchors[-1].double())
    constant = float((second - total * mean.square()).sum())
    kind = importances[0].dtype
    return total.to(kind), mean.to(anchors[0].dtype), max(constant, 0.0)


class Penalty(torch.autograd.Function):
    """The penalty as a node of autograd whose backward is the formula above.

    For a guard that cannot add its gradient in place (DeepSpeed, a loss of one's own).
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        strength: float,
        anchors: Sequence[Tensor],
        importances: Importances,
        *weights: Tensor,
    ) -> Tensor:
        """Strength / 2 * sum H (theta - theta*)^2, a float32 scalar."""
        ctx.save_for_backward(*weights)
        ctx.given = strength, anchors, importances  # type: ignore[attr-defined]
        return (0.5 * strength * penalty_value(weights, anchors, importances)).float()

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, upstream: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Strength * H (theta - theta*), times what comes from above."""
        strength, anchors, importances = ctx.given  # type: ignore[attr-defined]
        found: list[Tensor] = []
        for weight, anchor, importance in zip(
            ctx.saved_tensors,  # type: ignore[attr-defined]
            anchors,
            importances,
            strict=True,
        ):
            apart = (weight.float() - anchor).mul_(strength * upstream)
            found.append((apart if importance is None else apart.mul_(importance)).to(weight.dtype))
        return None, None, None, *found


def _blocks(
    weight: Tensor, anchor: Tensor, importance: Tensor | None
) -> Iterable[tuple[Tensor, Tensor, Tensor | None]]:
    """Flat pieces of at most BLOCK numbers on a CPU, whole tensors elsewhere."""
    w, a = weight.reshape(-1), anchor.reshape(-1)
    h = None if importance is None else importance.reshape(-1)
    step = BLOCK if w.device.type == "cpu" else max(1, len(w))
    for start in range(0, len(w), step):
        stop = start + step
        yield w[start:stop], a[start:stop], None if h is None else h[start:stop]
