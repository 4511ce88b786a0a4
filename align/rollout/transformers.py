"""Sampling with transformers: token ids in, token ids out, log-probabilities of what was drawn.

A plain decoding loop on the model's own cache. The prompt is computed once per group, finished
sequences leave the batch, and log-probabilities come from the logits that were drawn from. Leaves
out beams: `align generate --beam` calls `model.generate`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedTokenizerBase
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from align.data.tokens import encode_prompt, end_of_turn_id
from align.engine.head import causal_lm, has_virtual_tokens, position_ids
from align.errors import ModelError
from align.rollout.base import like, pad_id, pad_left
from align.types import Rollout, Text

SHRINK_AT = 0.75  # drop finished rows once fewer than this share of the rows is still running


@dataclass
class TransformersSampler:
    """A `Sampler` on a transformers causal language model.

    `temperature` 0 is greedy. With top-p, top-k, min-p or `min_new_tokens` the log-probabilities
    are still those of the full distribution at `temperature`: a policy gradient on them needs a
    correction, so PPO refuses top-p and top-k. `seed` makes every call repeatable; without one the
    global generator is used.
    """

    policy: nn.Module
    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int = 128
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    batch_size: int = 64  # completions decoded at once
    seed: int | None = None

    def __call__(self, prompts: list[Text], group_size: int = 1, **columns: list[Any]) -> Rollout:
        """Sample `group_size` completions of each prompt; a prompt's completions lie side by side.

        Raises:
            ModelError: no prompt was given, or a prompt and its completion exceed the context.
        """
        if not prompts:
            raise ModelError("the sampler was given no prompts; at least one is expected.")
        encoded = [encode_prompt(prompt, self.tokenizer) for prompt in prompts]
        self._check_length(encoded)
        device = next(self.policy.parameters()).device
        generator = None
        if self.seed is not None:
            generator = torch.Generator(device=device).manual_seed(self.seed)
        at_once = max(1, self.batch_size // group_size)
        parts = [
            self._decode(encoded[start : start + at_once], group_size, generator, device)
            for start in range(0, len(encoded), at_once)
        ]
        return self._assemble(prompts, encoded, parts, group_size, columns)

    def _check_length(self, encoded: list[list[int]]) -> None:
        config = causal_lm(self.policy).config.get_text_config()
        context = getattr(config, "max_position_embeddings", None)
        longest = max(range(len(encoded)), key=lambda row: len(encoded[row]))
        needed = len(encoded[longest]) + self.max_new_tokens
        if context and needed > context:
            raise ModelError(
                f"prompt {longest} has {len(encoded[longest])} tokens; with max_new_tokens="
                f"{self.max_new_tokens} that is {needed}, more than the model's context of "
                f"{context}. Fix: shorten the prompt or lower rollout.max_new_tokens."
            )

    def _decode(
        self,
        encoded: list[list[int]],
        group_size: int,
        generator: torch.Generator | None,
        device: torch.device,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Completion ids (B, A), their log-probabilities (B, A), lengths (B,)."""
        ids, mask = pad_left(encoded, pad_id(self.tokenizer), device)
        with torch.inference_mode(), evaluating(self.policy):
            return self._loop(ids, mask, group_size, generator)

    def _loop(
        self, ids: Tensor, mask: Tensor, group_size: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        model = self.policy if has_virtual_tokens(self.policy) else causal_lm(self.policy)
        cache = DynamicCache(config=causal_lm(self.policy).config)
        positions = {} if has_virtual_tokens(self.policy) else {"position_ids": position_ids(mask)}
        output = model(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **positions,
        )
        rows = len(ids) * group_size
        logits = output.logits[:, -1].repeat_interleave(group_size, dim=0)
        if group_size > 1:
            cache.batch_repeat_interleave(group_size)
            mask = mask.repeat_interleave(group_size, dim=0)
        width = self.max_new_tokens
        tokens = torch.full((rows, width), pad_id(self.tokenizer), device=ids.device)
        logprobs = torch.zeros((rows, width), device=ids.device)
        lengths = torch.full((rows,), width, device=ids.device)
        running = torch.arange(rows, device=ids.device)  # rows of the output still decoded
        alive = torch.ones(rows, dtype=torch.bool, device=ids.device)
        ends = torch.tensor(end_ids(self.policy, self.tokenizer), device=ids.device)
        warpers = build_warpers(self.top_k, self.top_p, self.min_p)
        for step in range(width):
            scaled = logits.float() / (self.temperature or 1.0)
            barred = ends if step < self.min_new_tokens else ends[:0]
            token = self._draw(scaled.index_fill(1, barred, -torch.inf), warpers, generator)
            tokens[running[alive], step] = token[alive]
            drawn = scaled.log_softmax(dim=-1).gather(1, token[:, None]).squeeze(1)
            logprobs[running[alive], step] = drawn[alive]
            stopped = alive & torch.isin(token, ends)
            lengths[running[stopped]] = step + 1
            alive = alive & ~stopped
            left = int(alive.sum())
            if left == 0 or step == width - 1:
                break
            if left < SHRINK_AT * len(alive):
                keep = alive.nonzero().squeeze(1)
                cache.batch_select_indices(keep)
                running, mask, token = running[keep], mask[keep], token[keep]
                alive = torch.ones(left, dtype=torch.bool, device=ids.device)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            positions = (
                {}
                if has_virtual_tokens(self.policy)
                else {"position_ids": position_ids(mask)[:, -1:]}
            )
            output = model(
                input_ids=token[:, None],
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
                **positions,
            )
            logits = output.logits[:, -1]
        return tokens, logprobs, lengths

    def _draw(
        self, scaled: Tensor, warpers: LogitsProcessorList, generator: torch.Generator | None
    ) -> Tensor:
        if self.temperature == 0:
            return scaled.argmax(dim=-1)
        warped = warpers(None, scaled) if warpers else scaled  # type: ignore[arg-type]
        return torch.multinomial(warped.softmax(dim=-1), 1, generator=generator).squeeze(1)

    def _assemble(
        self,
        prompts: list[Text],
        encoded: list[list[int]],
        parts: list[tuple[Tensor, Tensor, Tensor]],
        group_size: int,
        columns: dict[str, list[Any]],
    ) -> Rollout:
        tokens = torch.cat([part[0] for part in parts])
        logprobs = torch.cat([part[1] for part in parts])
        lengths = torch.cat([part[2] for part in parts])
        width = max(1, int(lengths.max()))
        tokens, logprobs = tokens[:, :width], logprobs[:, :width]
        mask = (torch.arange(width, device=tokens.device)[None] < lengths[:, None]).float()
        last = tokens.gather(1, (lengths - 1).clamp(min=0)[:, None]).squeeze(1)
        ends = torch.tensor(end_ids(self.policy, self.tokenizer), device=tokens.device)
        repeated = [prompt for prompt in prompts for _ in range(group_size)]
        prompt_ids, prompt_mask = pad_left(
            [row for row in encoded for _ in range(group_size)],
            pad_id(self.tokenizer),
            tokens.device,
        )
        texts = [
            str(self.tokenizer.decode(row[:length], skip_special_tokens=True))
            for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)
        ]
        return Rollout(
            prompts=repeated,
            completions=[like(prompt, text) for prompt, text in zip(repeated, texts, strict=True)],
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            completion_ids=tokens,
            mask=mask,
            logprobs=logprobs,
            finished=torch.isin(last, ends),
            columns={
                key: [value for value in values for _ in range(group_size)]
                for key, values in columns.items()
            },
            temperature=self.temperature or 1.0,
        )


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


def end_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token id that ends a completion.

    The tokenizer's EOS, the generation config's, and what the chat template ends a turn with: a
    base model's config does not know the last, and its fine-tuned answers would never end.
    """
    found = {tokenizer.eos_token_id}
    if tokenizer.chat_template is not None:
        with suppress(ModelError):  # a template that ends no turn
            found.add(end_of_turn_id(tokenizer, conversational=True))
    generation = getattr(causal_lm(model), "generation_config", None)
    configured = getattr(generation, "eos_token_id", None)
    found |= set(configured) if isinstance(configured, list | tuple) else {configured}
    return sorted(int(token) for token in found if token is not None)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off inside, whatever it was before."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
