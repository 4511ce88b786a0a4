"""Scoring texts with a sequence-classification model, in length order, pooled by attention mask.

Pooling looks at the mask, never at token ids: a tokenizer whose PAD is its EOS, the padding side
and the batch size do not change a score. Scoring from Parquet to Parquet: `reward.pool`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from feedback.schema import Text
from reward.errors import ModelError
from reward.packed import can_pack
from reward.packed_probe import rounding, undisturbed
from reward.shared import last_states


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


def pool_states(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, **more: Any) -> Tensor:
    """Last hidden state of each row at its last attended token: what the head reads.

    Args:
        model: a sequence-classification model, a PEFT wrapper included.
        input_ids: (B, T), padded on either side.
        attention_mask: (B, T).
        **more: for the backbone's forward.

    Returns:
        (B, H), in the model's dtype.
    """
    backbone = unwrapped(model).base_model
    real = attention_mask.bool()
    longest = int(real.sum(dim=1).max()) if len(real) else 0
    whole = not more and bool(real.any(dim=1).all())
    if whole and can_pack(backbone, input_ids.device, longest):
        rows = zip(input_ids, real, strict=True)
        return last_states(backbone, [ids[kept].tolist() for ids, kept in rows])
    if "position_ids" in inspect.signature(backbone.forward).parameters:
        more["position_ids"] = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    hidden: Tensor = backbone(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **more
    ).last_hidden_state
    columns = torch.arange(input_ids.shape[1], device=input_ids.device)
    last = (columns * attention_mask).argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def pool_heads(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, **more: Any) -> Tensor:
    """Each head's score of each row, (B, K) float32; arguments as of `pool_states`."""
    states = pool_states(model, input_ids, attention_mask, **more)
    heads: Tensor = score_head(unwrapped(model))(states)
    return heads.float()


def pool_scores(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Score of each row at its last attended token: the mean of the heads.

    Args:
        model: a sequence-classification model with one label a head, a PEFT wrapper included.
        input_ids: (B, T), padded on either side.
        attention_mask: (B, T).

    Returns:
        (B,) float32.
    """
    return pool_heads(model, input_ids, attention_mask).mean(dim=1)


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """The sequence-classification model inside a PEFT wrapper, or the model itself."""
    wrapped: Any = model
    return wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped


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


def check_reader(model: PreTrainedModel, name: str) -> None:
    """Refuse a classifier that is more than one linear layer on the last state of a decoder.

    Encoders read both ways, and put a pooler or layers between their states and the head; scores
    read at the last token would mean nothing. Seen on a few tokens rather than from a list.

    Raises:
        ModelError: it is one.
    """
    head = score_head(model)
    fix = "Fix: give a decoder with one linear head, such as `align reward` trains."
    if not isinstance(head, nn.Linear):
        raise ModelError(
            f"the head of {name} is a {type(head).__name__}, and one linear layer at an answer's "
            f"last token is expected. {fix}"
        )
    config: Any = model.config.get_text_config()
    plain = [token for token in range(min(config.vocab_size, 9)) if token != config.pad_token_id]
    plain = (plain * 8)[:8]
    ids = torch.tensor([plain, plain[:4] + plain[:4]], device=model.device)
    with torch.no_grad(), undisturbed(model):
        states = model.base_model(input_ids=ids[:, :7]).last_hidden_state
        own = model(input_ids=ids[:1, :7]).logits[0].double()
    ours = head(states[0, -1]).detach().double()
    length = states.double().norm(dim=-1)
    apart = (states[0, :4] - states[1, :4]).double().norm(dim=-1)
    least = rounding(model)
    if states.isfinite().all() and bool((apart > least * length[0, :4]).any()):
        raise ModelError(
            f"{name} is a {type(model).__name__}, whose tokens see those after them; a reward "
            f"model's score is read at the last token of a decoder. {fix}"
        )
    scale = float(head.weight.detach().double().norm(dim=1).max()) * float(length[0, -1])
    if states.isfinite().all() and float((own - ours).abs().max()) > least * scale:
        raise ModelError(
            f"{name} is a {type(model).__name__}, whose own score ({own.tolist()}) is not that of "
            f"its head at the last token ({ours.tolist()}). {fix}"
        )


def context_length(model: nn.Module) -> int:
    """Tokens that a model can read; a very large number where its config names none."""
    config: Any = model.config
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or 1 << 62)


def head_parameters(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight (K, H) and bias (K,) of a model's heads, float64 on the CPU; no bias reads as 0.

    Raises:
        ModelError: the head is more than one linear layer.
    """
    head = score_head(unwrapped(model))
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise ModelError(
            f"the head of {type(model).__name__} is a {type(head).__name__}, but one linear layer "
            "is expected. Fix: use a model trained by `align reward`."
        )
    bias = getattr(head, "bias", None)
    zero = torch.zeros(len(weight), dtype=torch.float64)
    own = zero if bias is None else bias.detach().double().cpu()
    return weight.detach().double().cpu(), own


def score_ids(
    model: nn.Module, rows: Sequence[Sequence[int]], padding: int, batch_size: int = 32
) -> Tensor:
    """Raw scores of token-id rows, (N,) float32 on the CPU: the mean of the heads."""
    return read_rows(model, rows, padding, batch_size, pool_scores)


def heads_ids(
    model: nn.Module, rows: Sequence[Sequence[int]], padding: int, batch_size: int = 32
) -> Tensor:
    """Raw scores of token-id rows by each head, (N, K) float32 on the CPU."""
    return read_rows(model, rows, padding, batch_size, pool_heads)


def pooled_features(
    model: nn.Module, rows: Sequence[Sequence[int]], padding: int, batch_size: int = 32
) -> Tensor:
    """What the head reads of token-id rows, (N, H) float32 on the CPU."""
    return read_rows(model, rows, padding, batch_size, lambda *batch: pool_states(*batch).float())


def read_rows(
    model: nn.Module,
    rows: Sequence[Sequence[int]],
    padding: int,
    batch_size: int,
    read: Callable[[nn.Module, Tensor, Tensor], Tensor],
) -> Tensor:
    """Read token-id rows in batches without gradients: longest first, order restored.

    Args:
        model: put into evaluation mode meanwhile.
        rows: N rows of token ids.
        padding: the token that fills rows up, on the right.
        batch_size: rows read at once.
        read: `pool_scores`, `pool_heads` or another: (model, (b, T) ids, (b, T) mask) to (b, ...).

    Returns:
        (N, ...) on the CPU; (0,) without rows.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    found: list[Tensor] = []
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
                found.append(read(model, ids.to(device), mask.to(device)).cpu())
    finally:
        model.train(training)
    if not found:
        return torch.zeros(0)
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(order))
    return torch.cat(found)[back]
