"""One answer, token by token as it comes: for people, not for training.

Draws as `align.rollout.transformers` draws. Leaves out batches, log-probabilities and beams.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from align.errors import ModelError
from align.rollout.decode import NOT_FINITE
from align.rollout.pick import build_warpers
from align.rollout.transformers import end_ids

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what half a character decodes to


@dataclass
class ReplyStream:
    """Iterate to get the answer's text in pieces; stop iterating to stop the model.

    A piece never ends inside a character: the bytes of an emoji may be several tokens.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompt_ids: list[int]
    max_new_tokens: int = 256
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    generator: torch.Generator | None = None
    tokens: list[int] = field(default_factory=list)  # drawn so far
    text: str = ""  # handed out so far
    finished: bool = False  # the model ended its turn

    def __iter__(self) -> Iterator[str]:
        cache = DynamicCache(config=self.model.config)
        ends = set(end_ids(self.model, self.tokenizer))
        warpers = build_warpers(self.top_k, self.top_p, self.min_p)
        step = torch.tensor([self.prompt_ids], device=self.model.device)  # (1, tokens to compute)
        while len(self.tokens) < self.max_new_tokens and not self.finished:
            token = self._next(step, cache, warpers)
            self.tokens.append(token)
            self.finished = token in ends
            step = torch.tensor([[token]], device=self.model.device)
            last = self.finished or len(self.tokens) == self.max_new_tokens
            decoded = str(self.tokenizer.decode(self.tokens, skip_special_tokens=True))
            if last or not decoded.endswith(INCOMPLETE):
                piece, self.text = decoded[len(self.text) :], decoded
                if piece:
                    yield piece

    @torch.inference_mode()
    def _next(self, step: Tensor, cache: DynamicCache, warpers: LogitsProcessorList) -> int:
        output = self.model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits = output.logits[:, -1].float()  # (1, V)
        if not bool(torch.isfinite(logits.amax())):
            raise ModelError(NOT_FINITE)
        if self.temperature == 0:
            return int(logits.argmax())
        warped = warpers(step, logits / self.temperature)  # type: ignore[arg-type]
        return int(torch.multinomial(warped.softmax(-1), 1, generator=self.generator))
