"""Everything that is said about agreement, at once, ready for a page or a JSON file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from feedback.agreement import Rate, pairwise_agreement
from feedback.quality.alpha import krippendorff_alpha
from feedback.quality.coefficient import Coefficient
from feedback.quality.dawid_skene import dawid_skene_pairs
from feedback.quality.kappa import cohen_kappas, fleiss_kappa
from feedback.quality.votes import LABELS, LEVELS, label_votes, level_votes
from feedback.schema import Comparison


@dataclass(frozen=True)
class AgreementSummary:
    """How far annotators agree. What cannot be known is None, or a coefficient with a note."""

    pairs: int
    overlapping: int  # pairs judged by two people or more
    judgements: int
    annotators: tuple[str, ...]
    same_side: Rate | None  # how often two people, neither saying tie, chose the same answer
    alpha_nominal: Coefficient  # a, tie, b
    alpha_ordinal: Coefficient  # the five levels from label and strength
    fleiss: Coefficient
    cohen: dict[tuple[str, str], Coefficient]
    reliability: dict[str, float] | None  # P(names the true label), after Dawid and Skene

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; pairs of annotators become a list."""
        values = asdict(self)
        values["cohen"] = [
            {"a": one, "b": other, **asdict(found)} for (one, other), found in self.cohen.items()
        ]
        return values


def agreement_summary(
    comparisons: Iterable[Comparison], *, draws: int = 1000, seed: int = 0
) -> AgreementSummary:
    """All agreement figures of a set of judgements; empty sets and missing overlap are answered.

    Args:
        comparisons: judgements. Each person's first judgement of a pair counts, but for
            `same_side`, which reads all.
        draws: bootstrap draws; 0 for no intervals.
        seed: of the draws.
    """
    items = list(comparisons)
    votes = label_votes(items)
    per_pair = Counter(vote[0] for vote in votes)
    overlapping = sum(count > 1 for count in per_pair.values())
    same = pairwise_agreement(items)
    return AgreementSummary(
        pairs=len(per_pair),
        overlapping=overlapping,
        judgements=len(items),
        annotators=tuple(sorted({vote[1] for vote in votes})),
        same_side=same if same.n else None,
        alpha_nominal=krippendorff_alpha(votes, labels=LABELS, draws=draws, seed=seed),
        alpha_ordinal=krippendorff_alpha(
            level_votes(items), "ordinal", labels=LEVELS, draws=draws, seed=seed
        ),
        fleiss=fleiss_kappa(votes, labels=LABELS, draws=draws, seed=seed),
        cohen=cohen_kappas(votes, labels=LABELS, draws=draws, seed=seed),
        reliability=dawid_skene_pairs(items).reliability() if overlapping else None,
    )
