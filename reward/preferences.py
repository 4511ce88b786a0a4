"""From judgements to the rows that reward models and DPO learn from.

Rows are TRL's preference format with an explicit prompt; a conversational prompt gets
conversational answers. Ties teach neither trainer anything: they are dropped and counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from feedback.aggregate import Verdict
from feedback.aggregate import aggregate as aggregate_votes
from feedback.schema import Comparison, Message, Text


@dataclass(frozen=True)
class Preferences:
    """Preference rows, and what was left out on the way."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    comparisons: int = 0  # judgements read
    pairs: int = 0  # different pairs among them
    ties: int = 0  # pairs (or judgements, without aggregation) that name no better answer
    contested: int = 0  # pairs whose judgements were not unanimous


def preferences(
    comparisons: Iterable[Comparison],
    *,
    aggregate: bool = True,
    margin: bool = False,
    weight: bool = False,
) -> Preferences:
    """Preference rows with counts.

    Args:
        comparisons: judgements; position bias is undone in them already.
        aggregate: one row per pair by majority; off, one row per judgement, so that a contested
            pair appears on both sides as often as it was voted for. Off, the mean gradient of the
            logistic losses is the soft label's.
        margin: add `margin`, the mean strength in favour of the chosen answer (0 to 2). TRL's
            RewardTrainer subtracts it inside the loss whenever the column is there.
        weight: add `weight`, |2 s - 1| for a share s of the votes: 1 unanimous, 0 a tie. TRL's
            trainers drop the column; it is for losses that read it.
    """
    items = list(comparisons)
    verdicts = aggregate_votes(items)
    chosen = verdicts if aggregate else [aggregate_votes([item])[0] for item in items]
    rows = [
        _row(verdict, margin=margin, weight=weight) for verdict in chosen if verdict.label != "tie"
    ]
    return Preferences(
        rows=rows,
        comparisons=len(items),
        pairs=len(verdicts),
        ties=len(chosen) - len(rows),
        contested=sum(not verdict.unanimous for verdict in verdicts),
    )


def preference_rows(
    comparisons: Iterable[Comparison],
    aggregate: bool = True,
    *,
    margin: bool = False,
    weight: bool = False,
) -> list[dict[str, Any]]:
    """The rows of `preferences`: `prompt`, `chosen`, `rejected`, and `margin`, `weight` on demand.

    Answers are text beside a text prompt, [assistant message] beside a conversation.
    """
    return preferences(comparisons, aggregate=aggregate, margin=margin, weight=weight).rows


def _row(verdict: Verdict, *, margin: bool, weight: bool) -> dict[str, Any]:
    answers = [verdict.response_a, verdict.response_b]
    strength = verdict.strength
    if verdict.label == "b":
        answers.reverse()
        strength = -strength
    chosen, rejected = (_answer(text, verdict.prompt) for text in answers)
    row: dict[str, Any] = {"prompt": verdict.prompt, "chosen": chosen, "rejected": rejected}
    if margin:
        row["margin"] = max(strength, 0.0)  # two weak votes may face one strong one
    if weight:
        row["weight"] = verdict.agreement
    return row


def _answer(text: str, prompt: Text) -> str | list[Message]:
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
