"""What people are asked and what they say, and the text types every layer shares.

People are asked about an item: a prompt and one or more answers. `Pair` is the item with two
answers that reward models live on, `Item` the general one. What they say is a `Comparison`, a
`Ranking`, a `Rating`, a `Thumb`, or beside any of these a `Correction`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, get_args

Message = dict[str, str]  # {"role": "user" | "assistant" | "system", "content": text}
Messages = list[Message]
Text = str | Messages  # plain text, or a conversation

Label = Literal["a", "b", "tie"]
Kind = Literal["pair", "ranking", "rating", "thumb"]
KINDS: tuple[Kind, ...] = get_args(Kind)
RATING_SCALE = range(1, 8)  # 1 (worst) to 7 (best)


def pair_id(prompt: Text, response_a: str, response_b: str) -> str:
    """A deterministic id of an unordered pair of answers to a prompt (32 hex digits).

    The order of the two answers does not matter, so importing a pair twice, or once swapped,
    names the same pair.
    """
    answers = sorted([response_a, response_b])
    text = json.dumps([prompt, answers], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def item_id(kind: Kind, prompt: Text, responses: Sequence[str]) -> str:
    """A deterministic id of an item (32 hex digits); a pair's is its `pair_id`.

    The order of the answers does not matter, so importing an item twice, or shuffled, names the
    same item.
    """
    if kind == "pair" and len(responses) == 2:
        return pair_id(prompt, responses[0], responses[1])
    text = json.dumps([kind, prompt, sorted(responses)], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Item:
    """What people are asked about: a prompt and its answers.

    `shown[i]` is the index of the answer at place i of the page, so (1, 0) is a turned pair.
    """

    id: str
    kind: Kind
    prompt: Text
    responses: tuple[str, ...]
    sources: tuple[str, ...] = ()  # the policies that wrote them
    columns: dict[str, Any] = field(default_factory=dict)  # further dataset columns of the prompt
    seed: int = 0  # what the display order was drawn with
    shown: tuple[int, ...] = ()
    round: str = ""  # the labelling round that issued it
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))


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


@dataclass(frozen=True)
class Ranking:
    """One person's order of K answers to one prompt; display order already undone."""

    prompt: Text
    responses: tuple[str, ...]
    order: tuple[int, ...]  # indices into `responses`, best first
    annotator: str
    item: str = ""
    sources: tuple[str, ...] = ()
    lead_time: float | None = None  # seconds
    reason: str = ""
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True)
class Rating:
    """One person's scores of one answer, 1 (worst) to 7 (best) per aspect."""

    prompt: Text
    response: str
    scores: Mapping[str, int]  # {"helpful": 6, "honest": 7, "harmless": 7}
    annotator: str
    item: str = ""
    source: str = ""
    lead_time: float | None = None  # seconds
    reason: str = ""
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True)
class Thumb:
    """One person's thumb up or down for one answer: KTO's unpaired feedback."""

    prompt: Text
    response: str
    good: bool
    annotator: str
    item: str = ""
    source: str = ""
    lead_time: float | None = None  # seconds
    reason: str = ""
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True)
class Correction:
    """An answer as a person would have it: SFT data, and preferred to the one it corrects."""

    prompt: Text
    response: str  # the answer that was shown
    corrected: str
    annotator: str
    item: str = ""
    source: str = ""
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))


Judgement = Comparison | Ranking | Rating | Thumb | Correction
