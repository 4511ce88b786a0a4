"""One token from each row's logits, drawn by inversion.

It is the first token at which the summed probabilities pass a uniform number: one random number a
token instead of one for each word of the vocabulary. A completion brings its own numbers, so what
it draws does not depend on the batch that it is drawn in.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from align.engine.head import at_least_float32

BELOW_ONE = 1 - 2**-52  # times any total, this is less than the total


def uniform_numbers(rows: int, columns: int, generator: torch.Generator | None) -> Tensor:
    """Numbers in [0, 1), (rows, columns) float64: 53 bits reach tokens of any probability."""
    numbers = torch.rand(rows, columns, dtype=torch.float64, generator=generator)
    return numbers.clamp_(max=BELOW_ONE)


def pick_tokens(
    logits: Tensor,
    numbers: Tensor | None,
    temperature: float = 1.0,
    barred: Tensor | None = None,
    warpers: LogitsProcessorList | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw one token a row.

    Args:
        logits: (B, V).
        numbers: (B,) float64 in [0, 1); None takes the likeliest token.
        temperature: divides the logits.
        barred: (B, V) bool, True where a token may not be drawn.
        warpers: what truncates the distribution that is drawn from.

    Returns:
        tokens (B,) int64, and the log-probability of each, (B,), float32 or float64, under the
        full distribution at `temperature`; NaN where the logits are NaN or infinite.
    """
    scaled = at_least_float32(logits)
    if temperature != 1.0:
        scaled = scaled / temperature
    top = scaled.amax(dim=-1, keepdim=True)
    sums = (scaled - top).exp_().cumsum(dim=-1, dtype=torch.float64)
    totals = sums[:, -1:]
    drawn_from, drawn_sums = scaled, sums
    if barred is not None or warpers:
        if barred is not None:
            drawn_from = drawn_from.masked_fill(barred, -torch.inf)
        if warpers:
            drawn_from = warpers(None, drawn_from)  # type: ignore[arg-type]
        drawn_sums = drawn_from.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    if numbers is None:
        tokens = drawn_from.argmax(dim=-1, keepdim=True)
    else:
        level = numbers[:, None] * drawn_sums[:, -1:]
        tokens = torch.searchsorted(drawn_sums, level, right=True)
        tokens = tokens.clamp_(max=scaled.shape[-1] - 1)  # NaN passes no level
    logprobs = scaled.gather(1, tokens) - top - totals.log().to(scaled.dtype)
    return tokens.squeeze(1), logprobs.squeeze(1)


def build_warpers(top_k: int, top_p: float, min_p: float) -> LogitsProcessorList:
    """What truncates a distribution before drawing; empty when all are off."""
    warpers = LogitsProcessorList()
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1.0:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p > 0.0:
        warpers.append(MinPLogitsWarper(min_p))
    return warpers
