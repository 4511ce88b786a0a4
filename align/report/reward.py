"""Reward-model figures: from the evaluation, or else from the reward model's own held-out pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from align.report.evidence import (
    Estimate,
    Evaluation,
    Over,
    estimate_of,
    over_seeds,
    seed_label,
)
from align.report.families import Family
from align.report.values import Json, mapping, number, raw, rows

SHARES = {"accuracy", "annotators", "length_baseline", "against_length", "ece", "auc"}


@dataclass(frozen=True)
class RewardEvidence:
    """How good a reward model is, over all seeds."""

    label: str  # whose figures, and on what
    figures: dict[str, Estimate]  # accuracy, length_baseline, annotators, log_loss, ece, ...
    notes: Json  # the first seed's section as written, for its words
    bins: list[Json]  # of the reliability diagram, of the first seed that has them
    bins_of: str  # that seed
    seeds: int


def reward_evidence(
    families: Sequence[Family],
    evaluations: Sequence[Evaluation],
    summary: Json | None = None,
) -> list[RewardEvidence]:
    """What evaluations and summary say of reward models; if nothing, what the reward runs do.

    Args:
        families: all runs; a reward run keeps figures on its test or else its validation pairs.
        evaluations: `reward_model` in their evaluation.json.
        summary: `reward_model` in it, or in each of its `runs`.
    """
    sources = [
        (
            evaluation.family.label,
            [
                (seed_label(run), mapping(run.evaluation.get("reward_model")))
                for run in evaluation.family.one_per_seed
            ],
        )
        for evaluation in evaluations
    ]
    whole = summary or {}
    sources.append(("On the pairs of the summary", _of_summary(rows(whole.get("runs")) or [whole])))
    found = [evidence for label, sections in sources if (evidence := gather(label, sections))]
    for family in families if not found else ():
        results = [
            (seed_label(run), mapping(run.record.get("results")))
            for run in family.one_per_seed
            if family.stage == "reward"
        ]
        for part in ("test", "validation"):
            sections = [(label, mapping(result.get(part))) for label, result in results]
            if any("accuracy" in section for _, section in sections):
                over: Over = "folds" if family.folds else "seeds"
                evidence = gather(f"{family.label}, its own {part} pairs", sections, over)
                found += [evidence] if evidence else []
                break
    return found


def _of_summary(runs: Sequence[Json]) -> list[tuple[str, Json]]:
    return [
        (f"seed {run['seed']}" if "seed" in run else f"run {index + 1}", section)
        for index, run in enumerate(runs)
        if (section := mapping(run.get("reward_model")))
    ]


def gather(
    label: str, found: Sequence[tuple[str, Json]], over: Over = "seeds"
) -> RewardEvidence | None:
    """Figures of one reward model over seeds; None where there are none."""
    found = _once(found) if over == "seeds" else found
    collected: dict[str, list[tuple[str, Estimate]]] = {}
    for seed, section in found:
        for name, value in section.items():
            if name in ("low", "high", "n"):
                continue
            parent = section if name == "accuracy" else None
            if (estimate := estimate_of(value, parent)) is not None:
                collected.setdefault(_canonical(name), []).append((seed, estimate))
    if "accuracy" not in collected:
        return None
    binned = [(seed, bins) for seed, section in found if (bins := reliability_bins(section))]
    return RewardEvidence(
        label=label,
        figures={
            name: estimate
            for name, values in collected.items()
            if (estimate := over_seeds(values, name in SHARES, over)) is not None
        },
        notes=found[0][1],
        bins=binned[0][1] if binned else [],
        bins_of=binned[0][0] if binned else "",
        seeds=len(found),
    )


def _once(found: Sequence[tuple[str, Json]]) -> list[tuple[str, Json]]:
    """Each measurement once: evaluations of several policies repeat that of one reward model.

    No two reward models have the same log-loss to six digits on as many pairs.
    """
    kept: dict[str, tuple[str, Json]] = {}
    for place, (label, section) in enumerate(found):
        loss = estimate_of(section.get("log_loss"))
        same = [section.get("accuracy"), number(section.get("n")), loss and f"{loss.value:.6g}"]
        kept.setdefault(raw(same) if loss else str(place), (label, section))
    return list(kept.values())


def reliability_bins(section: Json) -> list[Json]:
    """Bins as predicted, observed (with low and high) and n; those that lack a figure are left out.

    Args:
        section: a reward model's figures; `reliability` holds the bins.
    """
    bins = []
    for item in rows(section.get("reliability")):
        predicted, observed = estimate_of(item.get("confidence")), estimate_of(item.get("accuracy"))
        if predicted and observed:
            bins.append(
                {
                    "predicted": predicted.value,
                    "observed": observed.value,
                    "low": item.get("accuracy_low"),
                    "high": item.get("accuracy_high"),
                    "n": item.get("n"),
                }
            )
    return bins


def _canonical(name: str) -> str:
    """The annotators' own consistency goes by several names."""
    return "annotators" if "annotator" in name or "consistency" in name else name
