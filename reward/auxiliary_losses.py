"""Terms beside a reward model's loss: the language-model head kept alive, embeddings spread."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from reward.loss_inputs import masked_mean, precise, real, same_shape

TextLoss = Literal["nll", "sft", "dpo"]


def generative_term(
    logps: Tensor,
    mask: Tensor,
    *,
    kind: TextLoss = "nll",
    rejected_logps: Tensor | None = None,
    rejected_mask: Tensor | None = None,
    reference_margins: Tensor | None = None,
    beta: float = 0.1,
) -> Tensor:
    """What keeps the language-model head of a reward model useful: a loss of its text.

    Yang et al. (2024), "Regularizing hidden states enables learning generalizable reward model"
    (GRM), arXiv 2406.10216, section 3: the reward's loss and this one share the hidden states,
    (1 - a) L_reward + a L_text with a small a.

    | kind  | loss, with log pi(y) the sum over an answer's tokens                          |
    |-------|-------------------------------------------------------------------------------|
    | "nll" | the mean of -log pi over the chosen answer's tokens, the loss of SFT          |
    | "sft" | -log sigmoid(beta log pi(chosen)), the paper's SFT regulariser                |
    | "dpo" | -log sigmoid(beta (log pi(chosen) - log pi(rejected) - reference margin))     |

    Args:
        logps: (B, T) log-probabilities of the chosen answers' tokens.
        mask: (B, T), 1 on the answer's tokens.
        kind: see the table.
        rejected_logps: (B, T2), of the rejected answers; for "dpo".
        rejected_mask: (B, T2).
        reference_margins: (B,) log pi_ref(chosen) - log pi_ref(rejected), for "dpo"; without it the
            paper's DPO without a reference.
        beta: of "sft" and "dpo".

    Returns:
        (B,) losses.

    Raises:
        ValueError: the kind is unknown, "dpo" has no rejected answers, another kind has them, or a
            shape differs.
    """
    if kind not in get_args(TextLoss):
        raise ValueError(f"kind is {kind!r}; expected one of {get_args(TextLoss)}")
    if (kind == "dpo") != (rejected_logps is not None):
        raise ValueError(
            f"kind is {kind!r} {'with' if rejected_logps is not None else 'without'} "
            "rejected_logps; expected them for 'dpo' and for nothing else"
        )
    kept = real(mask, logps, "logps")
    if kind == "nll":
        return masked_mean(-precise(logps), kept)
    total = _total(logps, kept)
    if rejected_logps is not None:
        total = total - _total(
            rejected_logps, real(rejected_mask, rejected_logps, "rejected_logps")
        )
    if reference_margins is not None:
        same_shape("reference_margins", reference_margins, "the answers", total)
        total = total - reference_margins.to(total.dtype)
    return -nn.functional.logsigmoid(beta * total)


def contrastive_term(chosen: Tensor, rejected: Tensor, temperature: float = 0.1) -> Tensor:
    """Supervised contrastive loss: chosen answers lie together, apart from rejected ones.

    Khosla et al. (2020), arXiv 2004.11362, eq. 2, with two classes: for an anchor z_i of unit
    length among the 2B embeddings, the mean over the others z_p of its class of
    -log(exp(z_i z_p / t) / sum_(a != i) exp(z_i z_a / t)). A pair's loss is the mean of its two
    anchors'. The answer to the same prompt is among the negatives.

    Args:
        chosen: (B, H) pooled embeddings.
        rejected: (B, H).
        temperature: t, above 0.

    Returns:
        (B,) losses; 0 for a single pair, which has no other of its class.

    Raises:
        ValueError: the shapes differ, or the temperature is not above 0.
    """
    same_shape("rejected", rejected, "chosen", chosen)
    _check_temperature(temperature)
    pairs = len(chosen)
    points = nn.functional.normalize(precise(torch.cat([chosen, rejected])), dim=-1)
    itself = torch.eye(2 * pairs, dtype=torch.bool, device=points.device)
    logits = (points @ points.T / temperature).masked_fill(itself, torch.finfo(points.dtype).min)
    logprobs = logits.log_softmax(dim=-1)
    classes = torch.arange(2 * pairs, device=points.device) // max(pairs, 1)
    positive = (classes[:, None] == classes[None, :]) & ~itself
    losses = masked_mean(-logprobs, positive)  # (2B,)
    return (losses[:pairs] + losses[pairs:]) / 2


def simcse_term(first: Tensor, second: Tensor, temperature: float = 0.05) -> Tensor:
    """InfoNCE of two views: an embedding is nearest to itself under another dropout mask.

    -log(exp(cos(h_i, h'_i) / t) / sum_j exp(cos(h_i, h'_j) / t)), Gao et al. (2021), arXiv
    2104.08821, eq. 1. For reward models Wang et al. (2024), "Secrets of RLHF II", arXiv 2401.06080,
    take as h the difference of chosen and rejected embeddings, or the embeddings themselves.

    Args:
        first: (N, H) of one forward pass.
        second: (N, H) of another, same inputs.
        temperature: t, above 0.

    Returns:
        (N,) losses.

    Raises:
        ValueError: the shapes differ, or the temperature is not above 0.
    """
    same_shape("second", second, "first", first)
    _check_temperature(temperature)
    left = nn.functional.normalize(precise(first), dim=-1)
    right = nn.functional.normalize(precise(second), dim=-1)
    return -(left @ right.T / temperature).log_softmax(dim=-1).diagonal()


def _total(logps: Tensor, kept: Tensor) -> Tensor:
    return precise(logps).masked_fill(~kept, 0.0).sum(dim=-1)


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; expected a number above 0")
