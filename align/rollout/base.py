"""What every sampler shares: encoded prompts in, drawn tokens out, and the `Rollout` made of them.

An engine (transformers, vLLM in this process, a vLLM server) implements `draw`; a sampler encodes
prompts, draws and assembles. A multi-turn environment calls `draw` turn by turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from align.errors import ModelError
from align.types import Rollout, Text


@dataclass
class Draw:
    """One completion, token by token."""

    tokens: list[int]  # A of them, the end-of-turn token included
    logprobs: list[float]  # A, under the sampler's weights at its temperature, all tokens possible
    finished: bool  # ended by itself


class Engine(Protocol):
    """Draws tokens after token ids."""

    temperature: float  # the tokens are drawn, and their log-probabilities taken, at this one

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
            max_new_tokens: at most so many, for all or for each prompt; None: the engine's own.

        Raises:
            ModelError: a prompt and its completion exceed the model's context.
            SamplerError: the engine failed or did not answer in time.
        """
        ...


def assemble(
    prompts: Sequence[Text],
    encoded: Sequence[Sequence[int]],
    draws: Sequence[Draw],
    tokenizer: PreTrainedTokenizerBase,
    columns: dict[str, list[Any]],
    *,
    temperature: float = 1.0,
    version: int = 0,
    device: torch.device | str = "cpu",
) -> Rollout:
    """A `Rollout` of draws.

    Args:
        prompts: P, as the dataset has them.
        encoded: P, their token ids.
        draws: B = P * G, a prompt's side by side.
        tokenizer: decodes completions, and pads.
        columns: further dataset columns, each of length P.
        temperature: of the draws.
        version: updates of the policy before the draws.
        device: where the tensors go.
    """
    group_size = len(draws) // len(prompts)
    repeated = [prompt for prompt in prompts for _ in range(group_size)]
    padding = pad_id(tokenizer)
    prompt_ids, prompt_mask = pad_left(
        [row for row in encoded for _ in range(group_size)], padding, device
    )
    tokens, mask = pad_right([draw.tokens for draw in draws], padding)
    logprobs = torch.zeros(mask.shape)
    for row, draw in enumerate(draws):
        logprobs[row, : len(draw.logprobs)] = torch.tensor(draw.logprobs)
    texts = [str(tokenizer.decode(draw.tokens, skip_special_tokens=True)) for draw in draws]
    return Rollout(
        prompts=repeated,
        completions=[like(prompt, text) for prompt, text in zip(repeated, texts, strict=True)],
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        completion_ids=tokens.to(device),
        mask=mask.float().to(device),
        logprobs=logprobs.to(device),
        finished=torch.tensor([draw.finished for draw in draws], device=device),
        columns={
            key: [value for value in values for _ in range(group_size)]
            for key, values in columns.items()
        },
        temperature=temperature,
        version=version,
    )


def like(prompt: Text, text: str) -> Text:
    """A completion in the form of its prompt: text, or one assistant message."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding token's id.

    Raises:
        ModelError: the tokenizer has no padding token.
    """
    if tokenizer.pad_token_id is None:
        raise ModelError(
            "the tokenizer has no padding token. Fix: load it with align.engine.models."
            "load_tokenizer, which adds one that is not the end-of-sequence token."
        )
    return int(tokenizer.pad_token_id)


def pad_left(
    rows: Sequence[Sequence[int]], padding: int, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Token ids and mask, each (rows, longest) int64, padded on the left."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), padding, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask[index, width - len(row) :] = 1
    return ids.to(device), mask.to(device)


def pad_right(rows: Sequence[Sequence[int]], padding: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask, each (rows, longest) int64, padded on the right; one column at least."""
    width = max([1, *map(len, rows)])
    ids = torch.full((len(rows), width), padding, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[index, : len(row)] = 1
    return ids, mask
