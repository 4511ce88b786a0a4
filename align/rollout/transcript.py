"""The tokens of a conversation with an environment, exactly as the model saw and sampled them.

A sampled turn is kept as it was drawn, never decoded and encoded again: encoding is not the
inverse of decoding, and a policy gradient on other tokens than were drawn is wrong. What the chat
template puts between two of the model's turns (end of turn, headers, the environment's message) is
the difference of two renderings, one that ends with the model's turn and one with the reply.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from jinja2 import TemplateError
from transformers import BatchEncoding, PreTrainedTokenizerBase

from align.data.tokens import encode_prompt, end_of_turn_id
from align.errors import ModelError
from align.rollout.base import Draw
from align.types import Messages


@dataclass
class Transcript:
    """One conversation, as messages and as tokens."""

    prompt: Messages  # what the model saw first, the opening observation included
    prompt_ids: list[int]
    messages: Messages = field(default_factory=list)  # what followed: turns and replies
    tokens: list[int] = field(default_factory=list)  # A, the same
    mask: list[int] = field(default_factory=list)  # A, 1 on what the model sampled
    logprobs: list[float] = field(default_factory=list)  # A, 0 on what it did not

    @property
    def ids(self) -> list[int]:
        """All tokens so far, the prompt's first."""
        return self.prompt_ids + self.tokens

    def add_turn(self, draw: Draw, text: str) -> None:
        """The model's turn: its tokens as drawn, and `text`, what they say."""
        self.messages.append({"role": "assistant", "content": text})
        self.tokens += draw.tokens
        self.mask += [1] * len(draw.tokens)
        self.logprobs += draw.logprobs

    def add_reply(self, reply: Messages, ids: list[int]) -> None:
        """The environment's reply and its tokens, from `reply_ids`."""
        self.messages += reply
        self.tokens += ids
        self.mask += [0] * len(ids)
        self.logprobs += [0.0] * len(ids)


def reply_ids(
    transcript: Transcript, reply: Messages, tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """The tokens between the model's last turn and its next: a reply and all that frames it.

    They begin after the end of turn. Where the model ended its turn with another token, or was
    cut, the template's end of turn comes first.

    Args:
        transcript: ends with a turn of the model's.
        reply: the environment's messages.
        tokenizer: with a chat template that only ever appends.

    Raises:
        ModelError: the template refuses the conversation, rewrites earlier turns once a message
            follows, or ends no turn.
    """
    history = [*transcript.prompt, *transcript.messages]
    end = end_of_turn_id(tokenizer, conversational=True)
    before = _render(history, tokenizer, generation_prompt=False)
    after = _render([*history, *reply], tokenizer, generation_prompt=True)
    kept = len(before) - before[::-1].index(end)  # what follows the end of turn is the frame's
    if after[:kept] != before[:kept]:
        same = next(i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b)
        raise ModelError(
            "the chat template rewrites what came before when a message of role "
            f"{reply[0]['role']!r} follows: {tokenizer.decode(before[same : same + 8])!r} becomes "
            f"{tokenizer.decode(after[same : same + 8])!r}. Tokens that were sampled cannot be "
            "changed afterwards. Fix: a template that only appends (model.chat_template=chatml), "
            "or replies of another role (tool)."
        )
    tail = after[kept:]
    return tail if transcript.tokens[-1:] == [end] else [end, *tail]


def _render(
    messages: Messages, tokenizer: PreTrainedTokenizerBase, *, generation_prompt: bool
) -> list[int]:
    try:
        if generation_prompt:
            return encode_prompt(messages, tokenizer)
        encoded = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)
        return cast(BatchEncoding, encoded)["input_ids"]
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ModelError(
            f"the chat template refuses a conversation of the roles {roles}: {error}. Fix: let the "
            "environment reply in a role it knows, or set model.chat_template=chatml."
        ) from error
