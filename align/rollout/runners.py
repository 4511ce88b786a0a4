"""How a model computes the next logits of several completions: in place, or on transformers' cache.

`SlotRunner` packs prompts without padding, writes in place and lets rows join and leave. What its
cache or its attention cannot do goes to `PaddedRunner`: `fits` is the one place that decides.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import get_layer_types_and_kwargs

from align.engine.head import causal_lm, has_virtual_tokens, position_ids
from align.rollout.attention import slots
from align.rollout.base import pad_left
from align.rollout.cache import SLACK, Segment, SlotCache
from reward.packed_attention import READY

PACK_TOKENS = 4096  # prompt tokens computed at once


class Runner(Protocol):
    """The rows of a batch and their cache."""

    joins: bool  # whether rows can be admitted while others are running
    keep_share: float  # drop finished rows once at most this share is running

    def admit(self, prompts: Sequence[Sequence[int]], copies: Sequence[int]) -> Tensor:
        """Append rows, so many of each prompt; their logits (rows, V)."""
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Take in each row's next token, (B,) int64; the logits after it, (B, V)."""
        ...

    def select(self, order: Sequence[int]) -> None:
        """Keep rows: the i-th is then the one that was `order[i]`."""
        ...

    def running(self) -> AbstractContextManager[None]:
        """The above is called inside this."""
        ...


def fits(policy: nn.Module) -> bool:
    """Whether a `SlotRunner` is right for this policy; if not, `PaddedRunner` is."""
    model = causal_lm(policy)
    config = model.config.get_text_config(decoder=True)
    if has_virtual_tokens(policy) or not getattr(model, "_supports_attention_backend", False):
        return False
    if model.config._attn_implementation not in ("sdpa", READY):
        return False
    if getattr(config, "num_kv_shared_layers", 0):
        return False
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    return {"full_attention", "sliding_attention"} >= set(get_layer_types_and_kwargs(config)[0])


class SlotRunner:
    """Rows in a `SlotCache`: no padding, no copies, and rows join as others leave."""

    joins = True
    keep_share = 1.0

    def __init__(self, policy: nn.Module, rows: int, longest: int, spare: bool):
        self.model = causal_lm(policy)
        config = self.model.config.get_text_config(decoder=True)
        _, settings = get_layer_types_and_kwargs(config)
        windows = [one.get("sliding_window") for one in settings]
        self.cache = SlotCache(windows, rows, longest + (SLACK if spare else 0))
        self.device, dtype = self.model.device, self.model.dtype
        # (rows, 1, 1, columns): added to the scores
        self.mask = torch.zeros(rows, 1, 1, self.cache.columns, dtype=dtype, device=self.device)
        self.positions = torch.empty(0, dtype=torch.long, device=self.device)  # (B,) of the next

    @contextmanager
    def running(self) -> Iterator[None]:
        """The model attends in place inside."""
        with slots(self.model, self.cache):
            yield

    def admit(self, prompts: Sequence[Sequence[int]], copies: Sequence[int]) -> Tensor:
        """Compute prompts once each, packed; logits of all their rows."""
        row = self.cache.used
        counts = torch.tensor(copies, device=self.device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        self.cache.admit([len(p) for p, n in zip(prompts, copies, strict=True) for _ in range(n)])
        self._hide()
        self.positions = torch.cat([self.positions, lengths.repeat_interleave(counts)])
        parts = []
        for chunk in packs([len(prompt) for prompt in prompts]):
            segments, start = [], 0
            for index in chunk:
                segments.append(Segment(start, len(prompts[index]), row, copies[index]))
                start, row = start + len(prompts[index]), row + copies[index]
            parts.append(self._prefill([prompts[index] for index in chunk], segments))
        return torch.cat(parts).repeat_interleave(counts, dim=0)

    def _prefill(self, prompts: Sequence[Sequence[int]], segments: Sequence[Segment]) -> Tensor:
        tokens = [token for prompt in prompts for token in prompt]
        places = [place for prompt in prompts for place in range(len(prompt))]
        last = [segment.start + segment.length - 1 for segment in segments]
        self.cache.segments = segments
        try:
            output = self.model(
                input_ids=torch.tensor([tokens], device=self.device),
                position_ids=torch.tensor([places], device=self.device),
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=torch.tensor(last, device=self.device),
            )
        finally:
            self.cache.segments = ()
        return output.logits[0]

    def step(self, tokens: Tensor) -> Tensor:
        """One forward pass over one token a row."""
        cache = self.cache
        if cache.end == cache.columns:
            cache.move()
            self._hide()
        output = self.model(
            input_ids=tokens[:, None],
            attention_mask=self.mask[: cache.used, :, :, : cache.end + 1],
            position_ids=self.positions[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        cache.advance()
        self.positions += 1
        return output.logits[:, -1]

    def select(self, order: Sequence[int]) -> None:
        """Move the rows that have to; the others stay where they are."""
        self.cache.select(order)
        kept = torch.tensor(order, dtype=torch.long, device=self.device)
        self.positions = self.positions[kept]
        self.mask[: len(order)] = self.mask[kept]

    def _hide(self) -> None:
        """Mask what lies before each row's first column."""
        columns = torch.arange(self.cache.columns, device=self.device)
        starts = torch.tensor(self.cache.starts, device=self.device)
        hidden = (columns[None] < starts[:, None])[:, None, None]
        self.mask.zero_()
        self.mask[: self.cache.used].masked_fill_(hidden, -torch.inf)


class PaddedRunner:
    """Rows in transformers' own `DynamicCache`, prompts padded on the left; all start together."""

    joins = False
    keep_share = 0.75

    def __init__(self, policy: nn.Module, padding: int, longest_prompt: int, longest_answer: int):
        self.policy, self.model = policy, causal_lm(policy)
        self.virtual = has_virtual_tokens(policy)
        self.padding, self.device = padding, self.model.device
        self.longest_prompt, self.longest_answer = longest_prompt, longest_answer

    @contextmanager
    def running(self) -> Iterator[None]:
        """Nothing to arrange."""
        yield

    def admit(self, prompts: Sequence[Sequence[int]], copies: Sequence[int]) -> Tensor:
        """Compute prompts once each and copy their cache; there are no other rows."""
        ids, mask = pad_left(prompts, self.padding, self.device)
        rows = torch.tensor([i for i, n in enumerate(copies) for _ in range(n)], device=self.device)
        if self.virtual:
            # PEFT counts positions from its learnt tokens on, padding included: a completion is
            # what it will be scored as only with the padding that its rollout will have.
            short = self.longest_prompt - ids.shape[1]
            ids = nn.functional.pad(ids, (short, 0), value=self.padding)
            mask = nn.functional.pad(mask, (short, 0))
            output = self.policy(
                input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1
            )
        else:
            output = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=position_ids(mask),
                past_key_values=DynamicCache(config=self.model.config),
                use_cache=True,
                logits_to_keep=1,
            )
        self.cache = output.past_key_values
        self.width = self.cache.get_seq_length()
        learnt = self.width - ids.shape[1]
        if len(rows) > len(prompts):
            self.cache.batch_select_indices(rows)
        before, after = (mask.new_ones(len(rows), n) for n in (learnt, self.longest_answer))
        self.mask = torch.cat([before, mask[rows], after], dim=1)  # (B, columns)
        self.positions = mask[rows].sum(dim=1)  # (B,) of the next token
        return output.logits[:, -1][rows]

    def step(self, tokens: Tensor) -> Tensor:
        """One forward pass over one token a row; learnt tokens are in the cache by now."""
        positions = torch.full_like(self.positions, self.width) if self.virtual else self.positions
        self.width += 1
        output = self.model(
            input_ids=tokens[:, None],
            attention_mask=self.mask[:, : self.width],
            position_ids=positions[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.positions += 1
        return output.logits[:, -1]

    def select(self, order: Sequence[int]) -> None:
        """Copy the cache without the rows that left."""
        kept = torch.tensor(order, dtype=torch.long, device=self.device)
        self.cache.batch_select_indices(kept)
        self.mask, self.positions = self.mask[kept], self.positions[kept]


def packs(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices in order, in chunks of at most `PACK_TOKENS` tokens (a longer one is alone)."""
    chunk: list[int] = []
    total = 0
    for index, length in enumerate(lengths):
        if chunk and total + length > PACK_TOKENS:
            yield chunk
            chunk, total = [], 0
        chunk.append(index)
        total += length
    if chunk:
        yield chunk
