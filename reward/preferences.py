"""From judgements to the rows that reward models and DPO learn from.

Rows are TRL's preference format with an explicit prompt; a conversational prompt gets
conversational answers. Under hard labels a tie teaches nothing: it is dropped and counted. Under
soft labels it stays, and teaches that the answers are equally good.

Our reward and DPO trainers read the column `soft_label` (`data.labels` of a configuration asks for
it). For trainers that do not, TRL's own among them, `expand_soft` repeats rows, each pair equally
often and turned round in the share 1 - P: the mean of the logistic loss over the copies is the soft
label's cross-entropy, and so is its gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from feedback.aggregate import Verdict
from feedback.aggregate import aggregate as aggregate_votes
from feedback.errors import DataError
from feedback.quality.soft import SoftMethod, soft_labels
from feedback.schema import Comparison, Message, Text

SoftMode = Literal["column", "rows"]
SOFT_LABEL = "soft_label"  # the column: P(chosen is better), in [0, 1]
TIE = 1e-6  # a soft label this near to one half names no better answer
MOST_COPIES = 12  # of a pair, unless asked for; meets the votes of 1, 2, 3 or 6 people exactly


@dataclass(frozen=True)
class Preferences:
    """Preference rows, and what was left out on the way."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    comparisons: int = 0  # judgements read
    pairs: int = 0  # different pairs among them
    ties: int = 0  # pairs (or judgements, without aggregation) that name no better answer;
    # left out of the rows, but for soft ones
    contested: int = 0  # pairs whose judgements were not unanimous


def preferences(
    comparisons: Iterable[Comparison],
    *,
    aggregate: bool = True,
    margin: bool = False,
    weight: bool = False,
    soft: SoftMode | None = None,
    labels: SoftMethod | Mapping[str, float] = "votes",
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
        soft: `column` adds `soft_label`, P(chosen is better) in [0.5, 1], for losses that read it;
            `rows` repeats rows instead, see `expand_soft`. Pairs at one half are kept, but for
            those of two equal answers, which no loss can tell apart.
        labels: where soft labels come from: a method of `soft_labels`, or P(a better) by pair id.

    Raises:
        DataError: `labels` lacks a pair or holds something that is no probability.
        ValueError: `soft` with a margin, a weight or without aggregation, or an unknown mode.
    """
    items = list(comparisons)
    if soft is not None:
        if soft not in get_args(SoftMode):
            raise ValueError(f"soft must be one of {get_args(SoftMode)} or None, not {soft!r}.")
        if margin or weight or not aggregate:
            raise ValueError(
                "soft labels already say how sure the votes are. Fix: leave margin and weight off "
                "and aggregate on."
            )
        return _soft_preferences(items, labels, soft)
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
    soft: SoftMode | None = None,
    labels: SoftMethod | Mapping[str, float] = "votes",
) -> list[dict[str, Any]]:
    """The rows of `preferences`: `prompt`, `chosen`, `rejected`, and further columns on demand.

    Answers are text beside a text prompt, [assistant message] beside a conversation.
    """
    found = preferences(
        comparisons, aggregate=aggregate, margin=margin, weight=weight, soft=soft, labels=labels
    )
    return found.rows


def is_tie(row: Mapping[str, Any]) -> bool:
    """Whether a row has a soft label and it names no better answer."""
    label = row.get(SOFT_LABEL)
    return label is not None and abs(float(label) - 0.5) <= TIE


def expand_soft(
    rows: Sequence[Mapping[str, Any]], copies: int | None = None
) -> list[dict[str, Any]]:
    """Rows without `soft_label`, each repeated so that a logistic loss sees the soft label.

    A row with soft label p becomes `copies` rows, of which the nearest whole number to p * copies
    stand as they are and the rest have chosen and rejected exchanged. Expand the training rows
    only, after splitting and removing duplicates, and shuffle.

    Args:
        rows: rows with `soft_label`.
        copies: of each row; default: the fewest, up to `MOST_COPIES`, that meet every label
            exactly, else `MOST_COPIES`, which meets each to within 1/24.

    Raises:
        DataError: a row without a soft label in [0, 1].
        ValueError: `copies` below 1.
    """
    if copies is not None and copies < 1:
        raise ValueError(f"copies must be at least 1, not {copies}.")
    shares = [_probability(row.get(SOFT_LABEL), f"row {i}") for i, row in enumerate(rows)]
    times = copies or _fewest_copies(shares)
    expanded = []
    for row, share in zip(rows, shares, strict=True):
        kept = {name: value for name, value in row.items() if name != SOFT_LABEL}
        turned = kept | {"chosen": kept["rejected"], "rejected": kept["chosen"]}
        stand = int(share * times + 0.5)
        expanded += [dict(kept) for _ in range(stand)]
        expanded += [dict(turned) for _ in range(times - stand)]
    return expanded


def _soft_preferences(
    items: list[Comparison], labels: SoftMethod | Mapping[str, float], soft: SoftMode
) -> Preferences:
    known = soft_labels(items, labels) if isinstance(labels, str) else labels
    verdicts = aggregate_votes(items)
    rows, ties = [], 0
    for verdict in verdicts:
        share = _probability(known.get(verdict.pair), f"pair {verdict.pair}")
        ties += abs(share - 0.5) <= TIE
        if abs(share - 0.5) <= TIE and verdict.response_a.strip() == verdict.response_b.strip():
            continue
        answers = [verdict.response_a, verdict.response_b]
        if share < 0.5:
            answers.reverse()
        chosen, rejected = (_answer(text, verdict.prompt) for text in answers)
        label = max(share, 1 - share)
        rows.append(
            {
                "prompt": verdict.prompt,
                "chosen": chosen,
                "rejected": rejected,
                SOFT_LABEL: label,
            }
        )
    return Preferences(
        rows=rows if soft == "column" else expand_soft(rows),
        comparisons=len(items),
        pairs=len(verdicts),
        ties=ties,
        contested=sum(not verdict.unanimous for verdict in verdicts),
    )


def _fewest_copies(shares: Sequence[float]) -> int:
    for times in range(1, MOST_COPIES):
        if all(abs(share * times - round(share * times)) < 1e-6 for share in shares):
            return times
    return MOST_COPIES


def _probability(value: object, where: str) -> float:
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise DataError(f"{where} needs a soft label in [0, 1], but has {value!r}.")
    return float(value)


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
