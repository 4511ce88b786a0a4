"""What a policy became: its distance to a reference, its entropy, its fit to held-out text.

The KL divergence is estimated on the policy's own completions. They must be drawn at top-p 1 and
top-k 0, or they are not samples of the policy; the temperature they were drawn with divides the
logits of policy and reference alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from align.engine.head import causal_lm, completion_logprobs
from align.errors import DataError, ModelError
from align.evaluate.significance import Interval, bootstrap_interval
from align.ppo.kl import estimate_kl
from align.rollout.base import pad_left
from align.rollout.transformers import evaluating
from align.types import Rollout


@dataclass(frozen=True)
class Perplexity:
    """Fit of a model to held-out text, per predicted token."""

    nll: Interval  # nats per token; texts are redrawn, so `n` is their number
    tokens: int  # tokens predicted

    @property
    def value(self) -> float:
        """exp(nll)."""
        return math.exp(self.nll.value)

    def as_dict(self) -> dict[str, float]:
        """Plain numbers for evaluation.json."""
        return {
            "perplexity": self.value,
            "perplexity_low": math.exp(self.nll.low),
            "perplexity_high": math.exp(self.nll.high),
            "nll_token": self.nll.value,
            "perplexity_tokens": self.tokens,
        }


def score_rollout(
    model: nn.Module, rollout: Rollout, batch_size: int = 16
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of a rollout's tokens under any model, dropout off.

    Args:
        model: causal language model with the tokenizer that the rollout was drawn with.
        rollout: B completions of at most A tokens.
        batch_size: rows at once.

    Returns:
        log-probabilities and entropies (nats), each (B, A) float32 on the CPU, 0 outside the mask.
    """
    return _score(
        model,
        rollout.input_ids,
        rollout.attention_mask,
        rollout.mask,
        rollout.temperature,
        batch_size,
    )


def policy_metrics(
    policy: nn.Module,
    reference: nn.Module | None,
    rollout: Rollout,
    *,
    group_size: int = 1,
    batch_size: int = 16,
    level: float = 0.95,
) -> dict[str, float]:
    """Entropy of a policy and its KL divergence to a reference, on the policy's completions.

    Args:
        policy: the model that wrote the completions.
        reference: what it is measured against; None leaves the KL out.
        rollout: its completions, a prompt's side by side.
        group_size: completions per prompt.
        batch_size: rows at once.
        level: confidence level.

    Returns:
        those of `kl_metrics`, and `entropy_token` (nats), and `sampler_gap`: the mean absolute
        difference between the sampler's log-probabilities and the ones computed here. A gap well
        above 1e-3 means that the two models differ and no KL of this table can be trusted.
    """
    logprobs, entropy = score_rollout(policy, rollout, batch_size)
    mask = rollout.mask.cpu()
    tokens = max(1.0, float(mask.sum()))
    metrics = {
        "entropy_token": float((entropy * mask).sum()) / tokens,
        "sampler_gap": float(((logprobs - rollout.logprobs.cpu()).abs() * mask).sum()) / tokens,
    }
    if reference is None:
        return metrics
    ref_logprobs, _ = score_rollout(reference, rollout, batch_size)
    return kl_metrics(logprobs, ref_logprobs, mask, group_size=group_size, level=level) | metrics


def kl_metrics(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    *,
    group_size: int = 1,
    level: float = 0.95,
) -> dict[str, float]:
    """KL(policy || reference) from log-probabilities of the policy's own samples.

    Schulman (2020), "Approximating KL Divergence": k1 = log p - log q is unbiased and may come out
    negative; k3 = q/p - 1 - log(q/p) is unbiased, never negative, and heavy-tailed where the policy
    has left the reference far behind. Far apart means read k1.

    Args:
        logprobs: (B, A) under the policy.
        ref_logprobs: (B, A) under the reference.
        mask: (B, A), 1 on completion tokens.
        group_size: completions per prompt, side by side; prompts are redrawn for the interval.
        level: confidence level.

    Returns:
        `kl_k1_token`, `kl_k3_token` (means over all tokens), `kl_k1_sequence`, `kl_k3_sequence`
        (sums over a completion, mean over completions), and `kl_low`, `kl_high`, the bootstrap
        interval of `kl_k1_sequence` over prompts; in nats.

    Raises:
        DataError: B is not a multiple of group_size, or there is no completion.
    """
    if len(mask) == 0 or len(mask) % group_size:
        raise DataError(
            f"{len(mask)} completions cannot be split into groups of {group_size} per prompt."
        )
    tokens = max(1.0, float(mask.sum()))
    metrics: dict[str, float] = {}
    sequences: dict[str, Tensor] = {}
    for name in ("k1", "k3"):
        sums = (estimate_kl(logprobs, ref_logprobs, name).double() * mask).sum(dim=1)  # (B,)
        metrics[f"kl_{name}_token"] = float(sums.sum()) / tokens
        metrics[f"kl_{name}_sequence"] = float(sums.mean())
        sequences[name] = sums
    by_prompt = sequences["k1"].view(-1, group_size).mean(dim=1)
    interval = bootstrap_interval(by_prompt.tolist(), level=level)
    return metrics | {"kl_low": interval.low, "kl_high": interval.high}


def perplexity(
    model: nn.Module,
    pairs: Sequence[tuple[list[int], list[int]]],
    *,
    batch_size: int = 16,
    level: float = 0.95,
) -> Perplexity:
    """Perplexity of completions given their prompts, or of whole texts.

    Args:
        model: causal language model.
        pairs: (prompt ids, completion ids) as `align.data.tokens.encode_pair` gives them; only
            completion tokens are predicted. A text without prompt is ([], ids): its first token has
            nothing before it and is not counted.
        batch_size: texts at once.
        level: confidence level.

    Raises:
        DataError: nothing is left to predict.
        ModelError: a text is longer than the model's context.
    """
    losses, counts = sequence_losses(model, pairs, batch_size=batch_size)
    kept = [(loss, count) for loss, count in zip(losses, counts, strict=True) if count]
    if not kept:
        raise DataError("perplexity needs at least one text with a token to predict.")
    values, weights = zip(*kept, strict=True)
    return Perplexity(bootstrap_interval(values, weights=weights, level=level), sum(weights))


def sequence_losses(
    model: nn.Module, pairs: Sequence[tuple[list[int], list[int]]], *, batch_size: int = 16
) -> tuple[list[float], list[int]]:
    """Negative log-likelihood of each completion, summed over its tokens, and their number.

    Args:
        model: causal language model.
        pairs: as `perplexity` takes them; one with nothing to predict has loss 0 and 0 tokens.
        batch_size: texts at once.

    Returns:
        two lists in the order of `pairs`.

    Raises:
        ModelError: a text is longer than the model's context.
    """
    ready = [(p, c) if p else (c[:1], c[1:]) for p, c in pairs]
    order = [place for place, (_, completion) in enumerate(ready) if completion]
    order.sort(key=lambda place: sum(map(len, ready[place])))
    context = getattr(causal_lm(model).config.get_text_config(), "max_position_embeddings", None)
    longest = sum(map(len, ready[order[-1]])) if order else 0
    if context and longest > context:
        raise ModelError(
            f"a held-out text has {longest} tokens, more than the model's context of {context}. "
            "Fix: shorten or drop it before measuring perplexity."
        )
    losses = [0.0] * len(ready)
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        batch = [ready[place] for place in places]
        prompt_ids, prompt_mask = pad_left([p for p, _ in batch], 0, "cpu")
        backwards, mask = pad_left([c[::-1] for _, c in batch], 0, "cpu")
        ids, mask = backwards.flip(1), mask.flip(1)  # reversed twice: padding goes to the right
        logprobs, _ = _score(
            model, torch.cat([prompt_ids, ids], 1), torch.cat([prompt_mask, mask], 1), mask
        )
        for place, total in zip(places, logprobs.double().sum(dim=1).tolist(), strict=True):
            losses[place] = -total
    return losses, [len(completion) for _, completion in ready]


def _score(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    mask: Tensor,
    temperature: float = 1.0,
    batch_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    device = next(model.parameters()).device
    size = batch_size or len(mask)
    parts = []
    with torch.no_grad(), evaluating(model):
        for ids, attended, kept in zip(
            input_ids.split(size), attention_mask.split(size), mask.split(size), strict=True
        ):
            scored = completion_logprobs(
                model,
                ids.to(device),
                attended.to(device),
                kept.to(device),
                temperature,
                with_entropy=True,
            )
            parts.append([tensor.cpu() for tensor in scored])
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
