"""What a language model says of target tokens: log-probabilities, entropies, and more for logs.

Logits live a chunk at a time. Each chunk's are gone after the forward pass when there are several,
and computed again in the backward pass. The gradient of a log-probability,
d/dz_j [z_y - log sum_k exp z_k] = 1[j = y] - p_j, is written out, because it saves two passes over
the logits. Leaves out which tokens are read: `align.engine.head`, `align.engine.labelled_head`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = 1 << 24  # logits held at once: 64 MiB in float32
FIELDS = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


@dataclass(frozen=True)
class Logits:
    """How a head's output becomes logits."""

    scale: float = 1.0
    softcap: float | None = None  # z -> c tanh(z / c), Gemma 2
    temperature: float = 1.0

    def of(self, output: Tensor) -> Tensor:
        """(N, V) logits in float32 at least; every pass over them counts, so few are made."""
        logits = output.to(torch.promote_types(output.dtype, torch.float32))
        if self.scale != 1:
            logits = logits * self.scale
        if self.softcap:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits / self.temperature if self.temperature != 1 else logits


@dataclass
class TokenScores:
    """Of N target tokens, each (N,); what was not asked for is None."""

    log_probs: Tensor
    entropy: Tensor | None = None
    log_sum_sq_probs: Tensor | None = None  # log sum_v p_v^2, without gradient
    mean_logits: Tensor | None = None  # over the vocabulary, without gradient
    is_top1: Tensor | None = None  # whether the target is the likeliest token


def score_states(
    head: nn.Module,
    states: Tensor,
    targets: Tensor,
    how: Logits,
    outputs: Collection[str] = (),
    *,
    entropy_gradient: bool = True,
    chunk_logits: int | None = None,
    vocabulary: int,
) -> TokenScores:
    """Score N targets from the N states before them.

    Args:
        head: the output embeddings, a linear map to V logits.
        states: (N, H).
        targets: (N,) int64.
        how: what is done to the head's output.
        outputs: of `FIELDS`, beside the log-probabilities.
        entropy_gradient: whether the entropy is trained on.
        chunk_logits: held at once; None: `CHUNK_LOGITS`.
        vocabulary: V.

    Returns:
        float32 (float64 from float64 states), and bool for `is_top1`.
    """
    names = [name for name in FIELDS if name in outputs]

    def score(part: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        return _score(how.of(head(part)), ids, names, entropy_gradient)

    size = max(1, (chunk_logits or CHUNK_LOGITS) // max(1, vocabulary))
    if len(targets) <= size:
        found = score(states, targets)
    else:
        again: Callable[..., Any] = score
        if torch.is_grad_enabled():
            again = _again(score)
        parts = [
            again(part, ids)
            for part, ids in zip(states.split(size), targets.split(size), strict=True)
        ]
        found = tuple(torch.cat(column) for column in zip(*parts, strict=True))
    return TokenScores(found[0], **dict(zip(names, found[1:], strict=True)))


def _again(score: Callable[..., Any]) -> Callable[..., Any]:
    return lambda part, ids: checkpoint(score, part, ids, use_reentrant=False)


def _score(
    logits: Tensor, ids: Tensor, names: Collection[str], entropy_gradient: bool
) -> tuple[Tensor, ...]:
    """Log-probabilities, then what is named, each (N,)."""
    log_probs, normaliser = _LogProb.apply(logits, ids)
    found = {"log_probs": log_probs}
    if "entropy" in names and entropy_gradient:
        lse = logits.logsumexp(dim=-1)
        found["entropy"] = lse - (logits.softmax(dim=-1) * logits).sum(dim=-1)
    with torch.no_grad():
        rest = [name for name in names if name not in found]
        if "entropy" in rest or "log_sum_sq_probs" in rest:
            probs = (logits - normaliser[:, None]).exp_()
            if "entropy" in rest:
                mean = torch.linalg.vecdot(probs, logits)
                found["entropy"] = normaliser - mean
            if "log_sum_sq_probs" in rest:
                found["log_sum_sq_probs"] = torch.linalg.vecdot(probs, probs).log()
        if "mean_logits" in rest:
            found["mean_logits"] = logits.mean(dim=-1)
        if "is_top1" in rest:
            found["is_top1"] = logits.argmax(dim=-1) == ids
    return tuple(found[field.name] for field in fields(TokenScores) if field.name in found)


class _LogProb(torch.autograd.Function):
    """log softmax(z)_y and log sum exp z; the second has no gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        normaliser = logits.logsumexp(dim=-1)
        ctx.save_for_backward(logits, ids, normaliser)
        ctx.mark_non_differentiable(normaliser)
        return logits.gather(1, ids[:, None]).squeeze(1) - normaliser, normaliser

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None]:
        logits, ids, normaliser = ctx.saved_tensors
        found = (logits - normaliser[:, None]).exp_().neg_()
        found.scatter_add_(1, ids[:, None], torch.ones_like(found[:, :1]))
        return found.mul_(gradient[:, None]), None
