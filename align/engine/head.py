"""Per-token log-probabilities at completion positions only, in chunks, on every device.

The head is the largest matrix product of a small model and the largest tensor of a large one
(B x T x V logits): scoring only the tokens that train, a chunk at a time, keeps both small.
Chunks recompute their logits in the backward pass. Temperature divides the logits here, in policy
and reference alike.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.engine.prefix import sharing_of
from align.engine.token_scores import CHUNK_LOGITS, Logits, score_states
from align.types import Rollout
from reward.layout import lay_out
from reward.packed import can_pack
from reward.shared import batch_states


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions that count real tokens only, right under left padding: (B, T) int64."""
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """The transformers model under a PEFT wrapper, if any; its layers keep their adapters."""
    inner = model
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()  # type: ignore[operator]
    return inner  # type: ignore[return-value]


def has_virtual_tokens(model: nn.Module) -> bool:
    """Whether PEFT prepends learnt tokens, so that only the wrapper's forward is right."""
    configs: Mapping[str, Any] = getattr(model, "peft_config", {})
    if not isinstance(configs, Mapping):
        return False
    return any(getattr(config, "is_prompt_learning", False) for config in configs.values())


def backbone_states(backbone: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Last hidden states of a bare backbone, (B, T, H), positions right under any padding."""
    extra = {}
    if "position_ids" in inspect.signature(backbone.forward).parameters:
        extra["position_ids"] = position_ids(attention_mask)
    output = backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **extra)
    return output.last_hidden_state


def states_at(
    backbone: nn.Module, input_ids: Tensor, attention_mask: Tensor, wanted: Tensor
) -> Tensor:
    """Last hidden states of some tokens, without padding where the backbone allows it.

    Prefixes that rows share are computed once (`align.engine.prefix`).

    Args:
        backbone: without its head.
        input_ids: (B, T), padded on either side.
        attention_mask: (B, T).
        wanted: (B, T) bool, True on N tokens.

    Returns:
        (N, H), row by row.
    """
    real = attention_mask.bool()
    sharing = sharing_of(backbone)
    if sharing is not None:
        states = sharing.states_at(input_ids, attention_mask, wanted)
        if states is not None:
            return states
    elif (
        bool(real.any())
        and not bool((wanted & ~real).any())
        and can_pack(backbone, input_ids.device, int(real.sum(dim=1).max()))
    ):
        return batch_states(backbone, lay_out(input_ids, attention_mask), wanted)
    return backbone_states(backbone, input_ids, attention_mask)[wanted]


def states_before(
    backbone: nn.Module, input_ids: Tensor, attention_mask: Tensor, kept: Tensor
) -> Tensor:
    """Hidden states from which the kept completion tokens are predicted.

    Args:
        backbone: without its head.
        input_ids: (B, T), prompt left-padded, completion right-padded.
        attention_mask: (B, T).
        kept: (B, A) bool, True on N of the last A columns.

    Returns:
        (N, H): for each kept token, row by row, the state of the token before it.
    """
    width = kept.shape[1]
    before = torch.zeros_like(attention_mask, dtype=torch.bool)
    before[:, -width - 1 : -1] = kept
    return states_at(backbone, input_ids, attention_mask, before)


def score_tokens(
    model: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probability (and entropy) of N target tokens from their N hidden states.

    Args:
        model: the causal language model whose head is used.
        hidden: (N, H) states at the positions *before* the targets.
        targets: (N,) int64.
        temperature: divides the logits.
        with_entropy: otherwise the second result is zeros.

    Returns:
        log-probabilities and entropies, each (N,) float32 (float64 from a float64 model).
    """
    base = causal_lm(model)
    config = base.config.get_text_config()
    # Cohere multiplies its logits by logit_scale, Granite divides by logits_scaling.
    scale = (getattr(config, "logit_scale", None) or 1.0) / (
        getattr(config, "logits_scaling", None) or 1.0
    )
    found = score_states(
        base.get_output_embeddings(),
        hidden,
        targets,
        Logits(scale, getattr(config, "final_logit_softcapping", None), temperature),
        ("entropy",) if with_entropy else (),
        chunk_logits=CHUNK_LOGITS,
        vocabulary=config.vocab_size,
    )
    entropy = torch.zeros_like(found.log_probs) if found.entropy is None else found.entropy
    return found.log_probs, entropy


def completion_logprobs(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    mask: Tensor,
    temperature: float = 1.0,
    with_entropy: bool = False,
    states: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of the completion, the last A columns of the input.

    Args:
        model: causal language model, a PEFT wrapper included.
        input_ids: (B, T), prompt left-padded, completion right-padded.
        attention_mask: (B, T).
        mask: (B, A), 1 on completion tokens.
        temperature: the sampling temperature.
        with_entropy: whether entropies are wanted (costs a softmax).
        states: (N, H) of `states_before` when the backbone has run already.

    Returns:
        two (B, A) float32 tensors (float64 from a float64 model), 0 outside the mask.
    """
    width = mask.shape[1]
    kept = mask.bool()
    targets = input_ids[:, -width:][kept]
    if states is None and has_virtual_tokens(model):
        logits = model(
            input_ids=input_ids, attention_mask=attention_mask, logits_to_keep=width + 1
        ).logits
        scaled = at_least_float32(logits[:, -width - 1 : -1][kept]) / temperature
        table = scaled.log_softmax(dim=-1)
        flat = table.gather(1, targets[:, None]).squeeze(1)
        flat_entropy = -(table.exp() * table).sum(dim=-1)
    else:
        if states is None:
            states = states_before(causal_lm(model).base_model, input_ids, attention_mask, kept)
        flat, flat_entropy = score_tokens(model, states, targets, temperature, with_entropy)
    return spread(flat, kept), spread(flat_entropy, kept)


def spread(flat: Tensor, kept: Tensor) -> Tensor:
    """One value for each True of `kept`, (B, A), back in its place among zeros."""
    shape = torch.zeros(kept.shape, dtype=flat.dtype, device=flat.device)
    return shape.masked_scatter(kept, flat)


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision as float32; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def policy_logprobs(policy: nn.Module, rollout: Rollout) -> Tensor:
    """Log-probabilities of a rollout's completions under `policy`, (B, A), with gradients."""
    device = next(policy.parameters()).device
    return completion_logprobs(
        policy,
        rollout.input_ids.to(device),
        rollout.attention_mask.to(device),
        rollout.mask.to(device),
        rollout.temperature,
    )[0]
