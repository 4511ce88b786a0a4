"""The quickstart's world: a help desk whose facts, questions and answers come from a grammar.

A world draws its facts (the kettle's warranty, when order 4821 arrives) from its seed. Questions
ask for one or two of them. Answers are mixed on purpose: right or wrong, complete or not, courteous
or not, brief or rambling, each independently, so that a policy fine-tuned on them has much to
learn from preferences. Test questions are combinations that no training text holds; every single
fact is in the training text.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from align.quickstart.grammar import (
    BY_NAME,
    DODGES,
    FAREWELLS,
    RAMBLING,
    RUDENESS,
    SALUTATIONS,
    TOPICS,
    WELCOMES,
)
from align.types import Messages

Split = Literal["train", "test"]
TEST_SHARE = 5  # one combination in five is held out


@dataclass(frozen=True)
class Fact:
    """One truth of the world: the `value` of a topic for a slot."""

    topic: str
    slot: str
    value: str


@dataclass(frozen=True)
class Habits:
    """How a help desk answers: probabilities, each drawn independently.

    The defaults are the mixed help desk whose answers the policy is fine-tuned on.
    """

    state: float = 0.9  # a part of the question is answered at all
    right: float = 0.85  # and the stated value is the right one
    welcome: float = 0.45
    farewell: float = 0.45
    rude: float = 0.12
    rambling: float = 0.4  # one to three surplus sentences


FLAWLESS = Habits(state=1, right=1, welcome=1, farewell=1, rude=0, rambling=0)
RECORDED = Habits(  # what pretraining reads: true and complete, in manner a poor desk
    state=1, right=1, welcome=0.1, farewell=0.1, rude=0.5, rambling=0.4
)


class World:
    """A help desk; the seed decides its facts and everything drawn from it."""

    def __init__(self, seed: int = 0):
        self.seed = seed
        draw = random.Random(f"facts {seed}")
        self.facts = {
            (topic.name, slot): Fact(topic.name, slot, draw.choice(topic.values))
            for topic in TOPICS
            for slot in topic.slots
        }

    def prompts(self, n: int, split: Split = "train") -> list[dict[str, Any]]:
        """`n` different questions, each {"prompt": conversation, "facts": the truths asked for}.

        The first n of a larger call are the same. `facts` is what the gold scorer needs: a list of
        {"topic", "slot", "value"}.

        Raises:
            ValueError: the world has fewer different questions of that split.
        """
        draw = random.Random(f"prompts {split} {self.seed}")
        found: dict[str, list[Fact]] = {}
        misses = 0
        while len(found) < n:
            text, facts = self._question(draw, split)
            misses = misses + 1 if text in found else 0
            if misses > 1000:
                raise ValueError(f"the world has about {len(found)} {split} prompts, not {n}.")
            found.setdefault(text, facts)
        return [
            {"prompt": _user(text), "facts": [asdict(fact) for fact in facts]}
            for text, facts in found.items()
        ]

    def demonstrations(self, n: int, habits: Habits = Habits()) -> list[dict[str, Any]]:
        """`n` answered training questions, {"prompt", "completion"} as conversations (kind sft)."""
        draw = random.Random(f"demonstrations {self.seed}")
        rows = []
        for _ in range(n):
            text, facts = self._question(draw, "train")
            answer = self.answer(facts, draw, habits)
            completion = [{"role": "assistant", "content": answer}]
            rows.append({"prompt": _user(text), "completion": completion})
        return rows

    def corpus(self, n: int) -> list[tuple[str, str]]:
        """`n` plain texts about the world for pretraining: notes, and dialogues.

        A note says all that is known of one product, city, order or day. What texts state is true
        and complete; in manner they are mixed.

        Returns:
            (lead, text) pairs. The lead is what a customer asks, empty for a note: drawn at random,
            so there is nothing in it to learn.
        """
        draw = random.Random(f"corpus {self.seed}")
        subjects = [
            [fact for fact in self.facts.values() if fact.slot == slot]
            for slot in dict.fromkeys(fact.slot for fact in self.facts.values())
        ]
        texts = []
        for _ in range(n):
            if draw.random() < 0.2:
                facts = draw.choice(subjects)
                note = " ".join(state(fact, draw) for fact in draw.sample(facts, len(facts)))
                texts.append(("", note))
            else:
                text, facts = self._question(draw, "train")
                answer = self.answer(facts, draw, RECORDED)
                texts.append((f"Customer:\n{text}\nHelp desk:\n", answer))
        return texts

    def answer(self, facts: Sequence[Fact], draw: random.Random, habits: Habits = FLAWLESS) -> str:
        """An answer to a question about `facts`, as good as the habits make it."""
        body = []
        for fact in facts:
            if draw.random() >= habits.state:
                continue
            right = draw.random() < habits.right
            body.append(state(fact if right else _mistaken(fact, draw), draw))
        if not body:
            body.append(state(facts[0], draw) if habits.state == 1 else draw.choice(DODGES))
        if draw.random() < habits.rambling:
            body += draw.sample(RAMBLING, draw.choice((1, 1, 2, 3)))
        if draw.random() < habits.rude:
            body.append(draw.choice(RUDENESS))
        if draw.random() < habits.welcome:
            body.insert(0, draw.choice(WELCOMES))
        if draw.random() < habits.farewell:
            body.append(draw.choice(FAREWELLS))
        return " ".join(body)

    def _question(self, draw: random.Random, split: Split) -> tuple[str, list[Fact]]:
        """A question of the split, and the facts that it asks for."""
        while True:
            topics = draw.sample(TOPICS, 1 if draw.random() < 0.3 else 2)
            facts = [self.facts[topic.name, draw.choice(topic.slots)] for topic in topics]
            ways = [draw.randrange(len(topic.questions)) for topic in topics]
            if _is_test(facts, ways) == (split == "test"):
                break
        parts = [
            topic.questions[way].format(slot=fact.slot)
            for topic, way, fact in zip(topics, ways, facts, strict=True)
        ]
        salutation = draw.choice(SALUTATIONS)
        text = salutation + ", and ".join(parts) + "?"
        return text[0].upper() + text[1:], facts


def state(fact: Fact, draw: random.Random) -> str:
    """A sentence that states the fact."""
    return draw.choice(BY_NAME[fact.topic].answers).format(slot=fact.slot, value=fact.value)


def _mistaken(fact: Fact, draw: random.Random) -> Fact:
    others = [value for value in BY_NAME[fact.topic].values if value != fact.value]
    return Fact(fact.topic, fact.slot, draw.choice(others))


def _is_test(facts: Sequence[Fact], ways: Sequence[int]) -> bool:
    """Whether a combination is held out: two facts together, or one fact asked in one way."""
    if len(facts) > 1:
        key = " + ".join(sorted(f"{fact.topic} {fact.slot}" for fact in facts))
    else:
        key = f"{facts[0].topic} {facts[0].slot} {ways[0]}"
    return zlib.crc32(key.encode()) % TEST_SHARE == 0


def _user(text: str) -> Messages:
    return [{"role": "user", "content": text}]
