"""A reward model as one module for a Trainer: scores of answers or steps, one column per head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.engine.head import at_least_float32, causal_lm, states_at
from align.engine.trained import TrainedModule
from reward.score import score_head


@dataclass
class Scores:
    """What one forward pass says of M read tokens."""

    scores: Tensor  # (M, heads)
    states: Tensor  # (M, H), what the heads read
    text: Tensor | None = None  # (S, H), states before the tokens of `Scorer.forward`'s `text`


class Scorer(TrainedModule):
    """A sequence classifier, a PEFT wrapper included, read at any tokens."""

    def __init__(self, model: PreTrainedModel, tie: float | None = None):
        """`tie` is the start of a loss's parameter of ties, learnt with the model."""
        super().__init__()
        self.model = model
        self.tie = None if tie is None else nn.Parameter(torch.tensor(tie))

    @property
    def config(self) -> Any:
        """The classifier's configuration."""
        return self.model.config

    @property
    def guarded(self) -> nn.Module:
        """What guards on weights hold: the classifier, not the parameter of ties."""
        return self.model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        read: Tensor,
        text: Tensor | None = None,
    ) -> Scores:
        """Scores at the read tokens.

        Args:
            input_ids: (N, T), right-padded.
            attention_mask: (N, T).
            read: (N, T) bool, True on M tokens.
            text: (N, T) bool, True on S tokens whose preceding states are wanted too.
        """
        inner = causal_lm(self.model)
        before = torch.zeros_like(read)
        if text is not None:
            before[:, :-1] = text[:, 1:]
        wanted = read | before
        states = states_at(inner.base_model, input_ids, attention_mask, wanted)
        head = score_head(inner)
        mine = states[read[wanted]]
        found = at_least_float32(head(mine.to(next(head.parameters()).dtype)))
        return Scores(found, mine, states[before[wanted]] if text is not None else None)

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        """Checkpoint the backbone."""
        self.model.gradient_checkpointing_enable(**kwargs)
