"""A model that takes part in a conversation: loading it, its answers, what its context holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.data import encode_prompt
from align.engine.models import load_policy
from align.errors import ModelError
from align.generate import Decoding
from align.rollout.stream import ReplyStream
from feedback.schema import Messages


@dataclass(frozen=True)
class Speaker:
    """A loaded model that answers."""

    name: str
    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def context(self) -> int | None:
        """How many tokens prompt and answer may have."""
        return getattr(self.policy.config.get_text_config(), "max_position_embeddings", None)

    def reply(
        self, messages: Messages, decoding: Decoding, generator: torch.Generator | None
    ) -> ReplyStream:
        """The answer to a conversation, as a stream."""
        return ReplyStream(
            self.policy,
            self.tokenizer,
            encode_prompt(messages, self.tokenizer),
            max_new_tokens=decoding.max_new_tokens,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            top_k=decoding.top_k,
            min_p=decoding.min_p,
            generator=generator,
        )


def load_speaker(
    path: str | Path, tokenizer: str | None, chat_template: str | None, dtype: str
) -> Speaker:
    """A model ready to answer.

    Raises:
        ModelError: it cannot be loaded, or its tokenizer has no chat template.
    """
    policy, _, loaded = load_policy(
        path, tokenizer=tokenizer, chat_template=chat_template, dtype=dtype, with_reference=False
    )
    if loaded.chat_template is None:
        raise ModelError(
            f"the tokenizer of {path} has no chat template, so it cannot hold a conversation. "
            "Fix: --chat-template chatml or plain (whichever it was trained with), or a .jinja "
            "file; `align generate --raw` continues plain text."
        )
    return Speaker(str(path), policy.eval(), loaded)


def turns_to_drop(
    head: Messages, turns: Messages, tokenizer: PreTrainedTokenizerBase, room: int
) -> int:
    """How many of the oldest turns must go so that the prompt has at most `room` tokens.

    Whole exchanges go, so that the conversation still begins with the user.

    Raises:
        ModelError: the last message alone is too long.
    """
    length = 0
    for dropped in range(0, len(turns), 2):
        length = len(encode_prompt([*head, *turns[dropped:]], tokenizer))
        if length <= room:
            return dropped
    raise ModelError(
        f"your message has {length} tokens with the system message; at most {room} fit. "
        "Say it shorter."
    )
