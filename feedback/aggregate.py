"""Several judgements of one pair, made one: a majority label and a soft one.

Every judgement is one vote, a tie half a vote for each side. Leaves out annotators' reliability
(Dawid and Skene): every vote weighs the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from feedback.schema import Comparison, Label, Text, pair_id

SIGN: dict[Label, int] = {"a": 1, "tie": 0, "b": -1}


@dataclass(frozen=True)
class Verdict:
    """What the annotators together said of one pair."""

    pair: str
    prompt: Text
    response_a: str
    response_b: str
    votes: int
    share_a: float  # mean vote for response_a, in [0, 1]: the soft label
    strength: float  # mean signed strength in favour of response_a, in [-2, 2]
    unanimous: bool  # every judgement said the same

    @property
    def label(self) -> Label:
        """The side with more than half of the votes; `tie` at exactly half."""
        if self.share_a == 0.5:
            return "tie"
        return "a" if self.share_a > 0.5 else "b"

    @property
    def agreement(self) -> float:
        """How one-sided the votes were: 1 unanimous, 0 a tie."""
        return abs(2 * self.share_a - 1)


def by_pair(comparisons: Iterable[Comparison]) -> dict[str, list[Comparison]]:
    """Judgements of each pair, both orders of the same two answers together, first seen first."""
    groups: dict[str, list[Comparison]] = {}
    for item in comparisons:
        name = item.pair or pair_id(item.prompt, item.response_a, item.response_b)
        groups.setdefault(name, []).append(item)
    return groups


def signed(comparison: Comparison, response_a: str) -> int:
    """+1 for `response_a`, -1 against it, 0 for a tie, whichever way the comparison is stored."""
    sign = SIGN[comparison.label]
    return sign if comparison.response_a == response_a else -sign


def aggregate(comparisons: Iterable[Comparison]) -> list[Verdict]:
    """One verdict per pair, in the order in which the pairs first appear."""
    verdicts = []
    for name, group in by_pair(comparisons).items():
        first = group[0]
        signs = [signed(item, first.response_a) for item in group]
        strengths = [sign * max(item.strength, 1) for sign, item in zip(signs, group, strict=True)]
        verdicts.append(
            Verdict(
                pair=name,
                prompt=first.prompt,
                response_a=first.response_a,
                response_b=first.response_b,
                votes=len(group),
                share_a=sum(1 + sign for sign in signs) / (2 * len(group)),
                strength=sum(strengths) / len(group),
                unanimous=len(set(signs)) == 1,
            )
        )
    return verdicts
