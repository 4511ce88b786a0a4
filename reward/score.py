"""Scoring texts with a sequence-classification model, in length order, pooled by attention mask.

Pooling looks at the mask, never at token ids: a tokenizer whose PAD is its EOS, the padding side
and the batch size do not change a score. Leaves out scoring from Parquet to Parquet.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from feedback.schema import Text
from reward.errors import ModelError
from reward.packed import can_pack, packed_states


def encode_answer(prompt: Text, completion: Text, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of prompt and completion as TRL's RewardTrainer makes them.

    Conversations go through the chat template; plain text ends with the end-of-sequence token.
    """
    if isinstance(prompt, str) or isinstance(completion, str):
        if not (isinstance(prompt, str) and isinstance(completion, str)):
            raise ModelError(
                "prompt and completion must both be text or both be conversations, not "
                f"{type(prompt).__name__} and {type(completion).__name__}."
            )
        end = str(tokenizer.eos_token or "")
        text = prompt + completion
        ids: list[int] = tokenizer(text if text.endswith(end) else text + end)["input_ids"]
        return ids
    if tokenizer.chat_template is None:
        raise ModelError(
            "the data are conversations, but the tokenizer has no chat template. Fix: set "
            "model.chat_template (chatml, or a .jinja file)."
        )
    encoded: dict[str, list[int]] = tokenizer.apply_chat_template(  # type: ignore[assignment]
        [*prompt, *completion], return_dict=True
    )
    return encoded["input_ids"]


def pool_scores(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Score of each row at its last attended token.

    Args:
        model: a sequence-classification model with one label, a PEFT wrapper included.
        input_ids: (B, T), padded on either side.
        attention_mask: (B, T).

    Returns:
        (B,) float32.
    """
    wrapped: Any = model
    inner: PreTrainedModel = (
        wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped
    )
    backbone = inner.base_model
    real = attention_mask.bool()
    if can_pack(backbone, input_ids.device) and bool(real.any(dim=1).all()):
        lengths = real.sum(dim=1)
        ends = torch.zeros(int(lengths.sum()), dtype=torch.bool)
        ends[lengths.cumsum(dim=0) - 1] = True
        pooled = packed_states(backbone, input_ids[real], lengths.tolist(), ends)
        return score_head(inner)(pooled).squeeze(-1).float()
    extra = {}
    if "position_ids" in inspect.signature(backbone.forward).parameters:
        extra["position_ids"] = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    hidden = backbone(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **extra
    ).last_hidden_state
    columns = torch.arange(input_ids.shape[1], device=input_ids.device)
    last = (columns * attention_mask).argmax(dim=1)
    pooled = hidden[torch.arange(len(hidden), device=hidden.device), last]
    return score_head(inner)(pooled).squeeze(-1).float()


def score_head(model: nn.Module) -> nn.Module:
    """The linear head of a sequence-classification model.

    Raises:
        ModelError: the model has no head of a known name.
    """
    for name in ("score", "classifier"):
        head = getattr(model, name, None)
        if isinstance(head, nn.Module):
            return head
    raise ModelError(
        f"{type(model).__name__} has no `score` head. Fix: give the directory of a model trained "
        "by `align reward`, or of a one-label sequence-classification model."
    )


def score_ids(
    model: nn.Module, rows: Sequence[Sequence[int]], padding: int, batch_size: int = 32
) -> Tensor:
    """Raw scores of token-id rows, (N,) float32 on the CPU; longest first, order restored."""
    device = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    scores = torch.zeros(len(rows))
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                width = len(rows[chosen[0]])
                ids = torch.full((len(chosen), width), padding, dtype=torch.long)
                mask = torch.zeros((len(chosen), width), dtype=torch.long)
                for place, index in enumerate(chosen):
                    ids[place, : len(rows[index])] = torch.tensor(rows[index], dtype=torch.long)
                    mask[place, : len(rows[index])] = 1
                batch = pool_scores(model, ids.to(device), mask.to(device))
                scores[torch.tensor(chosen)] = batch.cpu()
    finally:
        model.train(training)
    return scores
