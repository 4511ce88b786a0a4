"""Win rates and the models' figures: as evaluated on prompts, and aggregated over seeds.

One evaluation keeps the intervals its run wrote (Wilson, over prompts). Several seeds become the
mean with Student's t-interval over seeds, each seed's own figure staying visible beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from align.evaluate.significance import seeds_interval
from align.report.catalogue import SHARES
from align.report.collect import RunData
from align.report.families import Family, in_order, is_start
from align.report.values import Json, mapping, number, rows, text

Over = Literal["prompts", "seeds", "folds"]
_KNOWN_KEYS = {
    "baseline",
    "models",
    "win_rates",
    "reward_model",
    "samples",
    "prompts",
    "samples_per_prompt",
    "seed",
    "level",
    "warnings",
    "before",
}
# Where a model's figure keeps its interval: score_mean has score_low and score_high beside it.
_INTERVALS = {
    "score_mean": "score",
    "kl_k1_sequence": "kl",
    "retention_nats": "retention",
    "forgotten_nats": "forgotten",
}


@dataclass(frozen=True)
class Estimate:
    """A figure with what is known of its uncertainty."""

    value: float
    low: float | None = None
    high: float | None = None
    n: float | None = None  # prompts (or pairs) behind one seed's figure
    over: Over = "prompts"  # what the interval covers
    level: float = 0.95
    dots: tuple[tuple[str, float], ...] = ()  # each seed's label and figure

    @property
    def has_interval(self) -> bool:
        """Whether both ends are known."""
        return self.low is not None and self.high is not None


@dataclass(frozen=True)
class WinRow:
    """One comparison of two models by one judge, over all seeds."""

    a: str
    b: str
    judge: str
    rate: Estimate
    wins: float | None
    losses: float | None
    ties: float | None
    score_difference: Estimate | None
    per_seed: tuple[tuple[str, Json], ...]  # label and the row as evaluation.json has it

    @property
    def key(self) -> str:
        """For `data-figure`: `win_rates.ppo.sft.gold`."""
        return f"win_rates.{self.a}.{self.b}.{self.judge}"

    @property
    def p_value(self) -> float | None:
        """Of the paired test where one seed was evaluated, corrected for the comparisons made."""
        if len(self.per_seed) > 1:
            return None
        row = self.per_seed[0][1]
        adjusted = number(row.get("p_adjusted"))
        return adjusted if adjusted is not None else number(row.get("p_value"))


@dataclass(frozen=True)
class Evaluation:
    """What the evaluations of one family found."""

    family: Family
    baseline: str
    models: list[str]
    wins: list[WinRow]
    metrics: dict[str, dict[str, Estimate]]  # metric -> model -> figure
    other: list[tuple[str, Json]]  # seed label and what else evaluation.json holds
    before: str = ""  # the model that what was forgotten is counted from

    @property
    def key_rows(self) -> list[WinRow]:
        """The deciding judge's comparisons with the baseline, best first, the start last."""
        against = [row for row in self.wins if row.b == self.baseline] or self.wins
        judges = sorted((row.judge for row in against), key=lambda j: not j.startswith("gold"))
        judge = judges[0] if judges else ""
        rows_of_judge = [row for row in against if row.judge == judge]
        return sorted(rows_of_judge, key=lambda row: (is_start(row.a), -row.rate.value))


def evaluate_family(family: Family) -> Evaluation | None:
    """Gather a family's evaluations; None where no run has one."""
    runs = [run for run in family.one_per_seed if run.evaluation]
    if not runs:
        return None
    found = [(seed_label(run), run.evaluation) for run in runs]
    models: list[str] = []
    for _, evaluation in found:
        models += [name for name in mapping(evaluation.get("models")) if name not in models]
    return Evaluation(
        family=family,
        baseline=text(found[0][1].get("baseline")) or (models[0] if models else ""),
        models=in_order(models),
        wins=_win_rows(found),
        metrics=_model_metrics(found, models),
        other=[(label, rest) for label, evaluation in found if (rest := _rest(evaluation))],
        before=text(found[0][1].get("before")),
    )


def seed_label(run: RunData) -> str:
    """`seed 3`, of a cross-validation `seed 3, fold 1/5`; else the directory's name."""
    seed = f"seed {run.seed}" if run.seed is not None else run.name
    return f"{seed}, fold {run.fold}" if run.fold else seed


def estimate_of(value: object, parent: Json | None = None) -> Estimate | None:
    """A figure in either of the forms runs write: a number, or value with low, high and n.

    Args:
        value: the number or the object.
        parent: where a bare number's `low`, `high` and `n` lie beside it.
    """
    if isinstance(value, dict):
        names = ("value", "accuracy", "rate", "mean")
        main = next((value[name] for name in names if name in value), None)
        return estimate_of(main, value) if not isinstance(main, dict) else estimate_of(main)
    plain = number(value)
    if plain is None:
        return None
    beside = parent or {}
    return Estimate(
        plain,
        number(beside.get("low")),
        number(beside.get("high")),
        number(beside.get("n")),
        level=number(beside.get("level")) or 0.95,
    )


def over_seeds(
    found: Sequence[tuple[str, Estimate]], share: bool = False, over: Over = "seeds"
) -> Estimate | None:
    """One seed's figure as it is; several as their mean with a t-interval over seeds.

    Figures that are all equal have no spread that a t-interval could tell from none: then what is
    known of each, over prompts, is what is known of all.

    Args:
        found: label and figure of each seed.
        share: it lies in [0, 1], and so does the interval.
        over: what the runs are.
    """
    if len(found) < 2:
        return found[0][1] if found else None
    each = [estimate for _, estimate in found]
    counts = {estimate.n for estimate in each}
    n = counts.pop() if len(counts) == 1 else None
    dots = tuple((label, estimate.value) for label, estimate in found)
    if len({estimate.value for estimate in each}) == 1:
        lows = [estimate.low for estimate in each if estimate.low is not None]
        highs = [estimate.high for estimate in each if estimate.high is not None]
        known = len(lows) == len(highs) == len(each)
        low, high = (min(lows), max(highs)) if known else (None, None)
        return Estimate(each[0].value, low, high, n, dots=dots)
    interval = seeds_interval([estimate.value for estimate in each], share=share)
    return Estimate(interval.value, interval.low, interval.high, n, over, dots=dots)


def _win_rows(found: Sequence[tuple[str, Json]]) -> list[WinRow]:
    groups: dict[tuple[str, str, str], list[tuple[str, Json, Estimate]]] = {}
    for label, evaluation in found:
        for row in rows(evaluation.get("win_rates")):
            rate = estimate_of(row.get("rate"), row)
            if rate is None:
                continue
            key = (text(row.get("a")), text(row.get("b")), text(row.get("judge")) or "judge")
            groups.setdefault(key, []).append((label, row, rate))
    made = []
    for (a, b, judge), group in groups.items():
        rate = over_seeds([(label, rate) for label, _, rate in group], share=True)
        if rate is None:
            continue
        wins, losses, ties = (
            _sum(row.get(name) for _, row, _ in group) for name in ("wins", "losses", "ties")
        )
        gaps = [
            (label, gap)
            for label, row, _ in group
            if (gap := estimate_of(row.get("score_difference"), _score_interval(row)))
        ]
        per_seed = tuple((label, row) for label, row, _ in group)
        made.append(WinRow(a, b, judge, rate, wins, losses, ties, over_seeds(gaps), per_seed))
    return made


def _score_interval(row: Json) -> Json:
    return {"low": row.get("score_low"), "high": row.get("score_high"), "n": row.get("n")}


def _sum(values: Iterable[object]) -> float | None:
    numbers = [number(value) for value in values]
    return None if None in numbers else sum(value for value in numbers if value is not None)


def _model_metrics(
    found: Sequence[tuple[str, Json]], models: Sequence[str]
) -> dict[str, dict[str, Estimate]]:
    collected: dict[str, dict[str, list[tuple[str, Estimate]]]] = {}
    for label, evaluation in found:
        of_models = mapping(evaluation.get("models"))
        for model in models:
            figures = mapping(of_models.get(model))
            for name, value in figures.items():
                if name.endswith(("_low", "_high")):
                    continue
                stem = _INTERVALS.get(name, name)
                ends = {end: figures.get(f"{stem}_{end}") for end in ("low", "high")}
                if (estimate := estimate_of(value, ends)) is not None:
                    per_model = collected.setdefault(name, {})
                    per_model.setdefault(model, []).append((label, estimate))
    return {
        name: {
            model: estimate
            for model, values in per_model.items()
            if (estimate := over_seeds(values, name in SHARES)) is not None
        }
        for name, per_model in collected.items()
    }


def _rest(evaluation: Json) -> Json:
    return {key: value for key, value in evaluation.items() if key not in _KNOWN_KEYS}
