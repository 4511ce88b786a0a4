"""Sampling with transformers: token ids in, token ids out, log-probabilities of what was drawn.

A decoding loop of our own: prompts are computed once per group and without padding, keys and values
are written in place, completions that end make room for waiting ones, and log-probabilities come
from the logits that were drawn from. Leaves out beams: `align generate --beam` calls
`model.generate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from align.data.tokens import encode_prompt, end_of_turn_id
from align.engine.head import causal_lm
from align.errors import ModelError
from align.rollout.base import Draw, assemble, pad_id
from align.rollout.decode import Pick, decode
from align.rollout.pick import build_warpers, pick_tokens, uniform_numbers
from align.rollout.runners import PaddedRunner, Runner, SlotRunner, fits
from align.types import Rollout, Text


@dataclass
class TransformersSampler:
    """A `Sampler` and an `Engine` on a transformers causal language model.

    `temperature` 0 is greedy. With top-p, top-k, min-p or `min_new_tokens` the log-probabilities
    are still those of the full distribution at `temperature`: a policy gradient on them needs a
    correction, so PPO refuses top-p and top-k. `seed` makes every call repeatable: a call's i-th
    completion draws with the same random numbers each time, in whatever batch it is computed.
    Without one they come from torch's global generator.
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
        encoded = [encode_prompt(prompt, self.tokenizer) for prompt in prompts]
        return assemble(
            prompts,
            encoded,
            self.draw(encoded, group_size),
            self.tokenizer,
            columns,
            temperature=self.temperature or 1.0,
            device=causal_lm(self.policy).device,
        )

    def draw(
        self,
        prompts: Sequence[Sequence[int]],
        group_size: int = 1,
        max_new_tokens: int | Sequence[int] | None = None,
    ) -> list[Draw]:
        """P token-id prompts in, P * group_size draws out, a prompt's side by side.

        Args:
            prompts: token ids, not padded.
            group_size: completions of each prompt.
            max_new_tokens: at most so many, for all or for each prompt; None: the sampler's own.

        Raises:
            ModelError: no prompt was given, one is empty, or a prompt and its completion exceed
                the context.
        """
        given = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        budgets = [given] * len(prompts) if isinstance(given, int) else list(given)
        check_lengths(self.policy, prompts, budgets)
        rows, most = len(prompts) * group_size, max(budgets)
        generator = None if self.seed is None else torch.Generator().manual_seed(self.seed)
        numbers = uniform_numbers(rows, most, generator) if self.temperature else None
        at_once = max(1, min(self.batch_size, rows))
        runner: Runner
        if fits(self.policy):
            longest = max(len(p) + new for p, new in zip(prompts, budgets, strict=True))
            runner = SlotRunner(self.policy, at_once, longest, spare=rows > at_once)
        else:
            runner = PaddedRunner(self.policy, pad_id(self.tokenizer), max(map(len, prompts)), most)
        ends = end_ids(self.policy, self.tokenizer)
        with torch.inference_mode(), evaluating(self.policy), runner.running():
            pick = self._picker(numbers, ends)
            return decode(runner, prompts, group_size, budgets, ends, pick, at_once)

    def _picker(self, numbers: Tensor | None, ends: Sequence[int]) -> Pick:
        """How one token a row is drawn; `numbers` (B, A), a row for each completion."""
        device = causal_lm(self.policy).device
        warpers = build_warpers(self.top_k, self.top_p, self.min_p)
        table = None if numbers is None else numbers.to(device)
        stops = torch.tensor(ends, device=device)

        def pick(logits: Tensor, rows: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
            barred = None
            if self.min_new_tokens:
                early = (counts < self.min_new_tokens)[:, None]
                barred = torch.zeros_like(logits, dtype=torch.bool).index_fill_(1, stops, True)
                barred &= early
            row_numbers = None if table is None else table[rows, counts]
            return pick_tokens(logits, row_numbers, self.temperature or 1.0, barred, warpers)

        return pick


def check_lengths(
    policy: nn.Module, prompts: Sequence[Sequence[int]], budgets: Sequence[int]
) -> None:
    """Refuse what the model cannot take in.

    Raises:
        ModelError: no prompt, an empty one, a limit missing, or more than the context.
    """
    if not prompts:
        raise ModelError("the sampler was given no prompts; at least one is expected.")
    if len(budgets) != len(prompts):
        raise ModelError(
            f"max_new_tokens has {len(budgets)} limits for {len(prompts)} prompts. "
            "Fix: give one number, or one for each prompt."
        )
    if empty := [index for index, prompt in enumerate(prompts) if not len(prompt)]:
        raise ModelError(
            f"prompt {empty[0]} has no tokens; at least one is expected. Fix: start it with the "
            "tokenizer's BOS token, or drop it."
        )
    context = getattr(causal_lm(policy).config.get_text_config(), "max_position_embeddings", None)
    needed = [len(prompt) + new for prompt, new in zip(prompts, budgets, strict=True)]
    longest = max(range(len(needed)), key=lambda row: needed[row])
    if context and needed[longest] > context:
        raise ModelError(
            f"prompt {longest} has {len(prompts[longest])} tokens; with max_new_tokens="
            f"{budgets[longest]} that is {needed[longest]}, more than the model's context of "
            f"{context}. Fix: shorten the prompt or lower rollout.max_new_tokens."
        )


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
