"""What one person said about two answers, and the text types every layer shares.

Leaves out rankings, ratings and corrections: they join with the Label Studio layer.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

Message = dict[str, str]  # {"role": "user" | "assistant" | "system", "content": text}
Messages = list[Message]
Text = str | Messages  # plain text, or a conversation

Label = Literal["a", "b", "tie"]


def pair_id(prompt: Text, response_a: str, response_b: str) -> str:
    """A deterministic id of an unordered pair of answers to a prompt (32 hex digits).

    The order of the two answers does not matter, so importing a pair twice, or once swapped,
    names the same pair.
    """
    answers = sorted([response_a, response_b])
    text = json.dumps([prompt, answers], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Comparison:
    """One judgement of one annotator on one pair, position bias already undone.

    `label` speaks of `response_a` and `response_b` as stored; `swapped` says whether the person saw
    them in the other order. `strength` is 1 (better) or 2 (much better), 0 for a tie.
    """

    prompt: Text
    response_a: str
    response_b: str
    label: Label
    annotator: str
    strength: int = 1
    swapped: bool = False
    pair: str = ""
    source_a: str = ""  # the policy that wrote response_a
    source_b: str = ""
    lead_time: float | None = None  # seconds
    reason: str = ""
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, as issued to annotators. `a` and `b` never change places."""

    id: str
    prompt: Text
    response_a: str
    response_b: str
    source_a: str = ""  # the policy that wrote response_a
    source_b: str = ""
    columns: dict[str, Any] = field(default_factory=dict)  # further dataset columns of the prompt
    seed: int = 0  # what the display order was drawn with
    swapped: bool = False  # True where response_b is to be shown first
    round: str = ""  # the labelling round that issued it
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
