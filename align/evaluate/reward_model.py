"""How good a reward model is on held-out preferences, beside a baseline that only counts length.

Reward models like length, and so do people: an accuracy means little until one knows what "the
longer answer wins" scores on the same rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from align.errors import DataError
from align.evaluate.significance import sign_test
from align.evaluate.text import plain
from align.types import RewardFn, Text
from reward import metrics
from reward.functions import call_reward
from reward.preferences import SOFT_LABEL, is_tie

OWN_COLUMNS = {"prompt", "chosen", "rejected", "margin", "weight", SOFT_LABEL}
Row = Mapping[str, Any]


@dataclass(frozen=True)
class LengthBaseline:
    """What looking at length alone achieves on the same pairs."""

    rule: str  # "longer wins" or "shorter wins" (both, where the halves disagree)
    fitted_on: str  # which pairs the rule was chosen on
    unit: str
    accuracy: float
    low: float
    high: float
    p_value: float  # sign test over prompts: does the reward model beat it, or lose to it?


@dataclass(frozen=True)
class RewardModelReport:
    """Held-out quality of a reward model; see docs/evaluate.md for how to read it."""

    accuracy: float  # chosen scores higher; ties half
    low: float
    high: float
    n: int  # pairs
    prompts: int
    n_effective: float
    ties: int
    log_loss: float
    ece: float
    ece_expected: float  # what a calibrated model would show on as many pairs
    ece_p_value: float
    reliability: list[dict[str, float | int]]
    auc: float  # chosen above rejected with prompts mixed
    margin_mean: float
    margin_std: float
    length_correlation: float | None  # Spearman of margin and length difference
    length_baseline: LengthBaseline | None  # None where all pairs share one prompt
    against_length: dict[str, float] | None  # accuracy on the pairs that the length rule gets wrong

    def as_dict(self) -> dict[str, Any]:
        """Plain values for evaluation.json."""
        return asdict(self)


def evaluate_reward_model(
    rows: Iterable[Row],
    reward_fn: RewardFn | Callable[..., Any],
    *,
    fit_rows: Iterable[Row] | None = None,
    length: Callable[[Text], int] | None = None,
    unit: str = "characters",
    batch_size: int = 256,
    bins: int = 10,
    level: float = 0.95,
) -> RewardModelReport:
    """Measure a reward function on held-out preferences.

    Args:
        rows: kind "preference": `prompt`, `chosen`, `rejected`; further columns go to `reward_fn`.
        reward_fn: scores a completion. For log-loss and calibration its differences must be
            log-odds: give raw scores, not normalised ones.
        fit_rows: training or validation pairs that the length rule is chosen on. Without them it is
            cross-fitted: each half of the prompts is judged by the rule chosen on the other half.
        length: length of a completion; default: its characters.
        unit: what `length` counts.
        batch_size: pairs per call of the reward function.
        bins: of the reliability diagram.
        level: confidence level.

    Raises:
        DataError: no rows, or a row without prompt, chosen and rejected.
        RewardError: the reward function failed (see `reward.functions.call_reward`).
    """
    pairs = _checked(rows)
    chosen, rejected = _scores(pairs, reward_fn, batch_size)
    margins = chosen - rejected
    prompts = [json.dumps(row["prompt"], sort_keys=True) for row in pairs]
    share = metrics.accuracy(margins, prompts, level)
    calibration = metrics.calibration_error(margins, bins)

    measure = length or (lambda text: len(plain(text)))
    longs, shorts = _lengths(pairs, measure)
    baseline, against = _length_baseline(margins, longs, shorts, prompts, fit_rows, measure, level)
    correlation = metrics.length_correlation(margins, longs, shorts)
    return RewardModelReport(
        accuracy=share.value,
        low=share.low,
        high=share.high,
        n=len(pairs),
        prompts=len(set(prompts)),
        n_effective=share.n,
        ties=int((margins == 0).sum()),
        log_loss=metrics.log_loss(margins),
        ece=calibration.ece,
        ece_expected=calibration.expected,
        ece_p_value=calibration.p_value,
        reliability=[entry.as_dict() for entry in calibration.bins],
        auc=metrics.auc(chosen, rejected),
        margin_mean=float(margins.mean()),
        margin_std=float(margins.std()),
        length_correlation=None if np.isnan(correlation) else correlation,
        length_baseline=LengthBaseline(**baseline, unit=unit) if baseline else None,
        against_length=against,
    )


def _length_baseline(
    margins: np.ndarray,
    longs: np.ndarray,
    shorts: np.ndarray,
    prompts: list[str],
    fit_rows: Iterable[Row] | None,
    measure: Callable[[Text], int],
    level: float,
) -> tuple[dict[str, Any] | None, dict[str, float] | None]:
    """The baseline's figures, and the reward model's accuracy where the baseline is wrong."""
    if fit_rows is not None:
        rule = metrics.fit_length_rule(*_lengths(_checked(fit_rows), measure))
        by_length = metrics.length_margins(longs, shorts, rule)
        rules, fitted_on = [str(rule)], "training pairs"
    else:
        half = _halves(prompts)
        if not 0 < half.sum() < len(half):
            return None, None
        by_length = np.zeros(len(half))
        rules = []
        for side in (False, True):
            judged, fitted = half == side, half != side
            rule = metrics.fit_length_rule(longs[fitted], shorts[fitted])
            by_length[judged] = metrics.length_margins(longs[judged], shorts[judged], rule)
            rules.append(str(rule))
        fitted_on = "the other half of these prompts (cross-fitted)"
    share = metrics.accuracy(by_length, prompts, level)
    right, right_by_length = metrics.correctness(margins), metrics.correctness(by_length)
    ahead: dict[str, float] = {}
    for prompt, gain in zip(prompts, right - right_by_length, strict=True):
        ahead[prompt] = ahead.get(prompt, 0.0) + gain
    gains = np.array(list(ahead.values()))
    baseline = {
        "rule": " / ".join(dict.fromkeys(rules)),
        "fitted_on": fitted_on,
        "accuracy": share.value,
        "low": share.low,
        "high": share.high,
        "p_value": sign_test(int((gains > 0).sum()), int((gains < 0).sum())),
    }
    wrong = np.flatnonzero(right_by_length == 0)
    if not wrong.size:
        return baseline, None
    rest = metrics.accuracy(margins[wrong], [prompts[row] for row in wrong], level)
    against = {"accuracy": rest.value, "low": rest.low, "high": rest.high, "n": int(wrong.size)}
    return baseline, against


def _halves(prompts: list[str]) -> np.ndarray:
    """Which half each row's prompt belongs to, (n,) bool; independent of the order of rows."""
    ordered = sorted(set(prompts), key=lambda text: hashlib.sha256(text.encode()).digest())
    side = {prompt: bool(rank % 2) for rank, prompt in enumerate(ordered)}
    return np.array([side[prompt] for prompt in prompts])


def _scores(
    pairs: list[Row], reward_fn: RewardFn | Callable[..., Any], batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the chosen and of the rejected answers, each (n,)."""
    names = [name for name in pairs[0] if name not in OWN_COLUMNS]
    scores: dict[str, list[float]] = {"chosen": [], "rejected": []}
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        columns = {name: [row.get(name) for row in batch] for name in names}
        prompts = [row["prompt"] for row in batch]
        for side, found in scores.items():
            found += call_reward(reward_fn, prompts, [row[side] for row in batch], **columns)
    return np.array(scores["chosen"]), np.array(scores["rejected"])


def _lengths(pairs: list[Row], measure: Callable[[Text], int]) -> tuple[np.ndarray, np.ndarray]:
    chosen = [measure(row["chosen"]) for row in pairs]
    rejected = [measure(row["rejected"]) for row in pairs]
    return np.array(chosen, dtype=float), np.array(rejected, dtype=float)


def _checked(rows: Iterable[Row]) -> list[Row]:
    pairs = list(rows)
    if not pairs:
        raise DataError("there are no preferences to measure a reward model on.")
    for index, row in enumerate(pairs):
        missing = {"prompt", "chosen", "rejected"} - set(row)
        if missing:
            raise DataError(
                f"preference row {index} has no {', '.join(sorted(missing))}; it has "
                f"{', '.join(sorted(row))}. Fix: load it with align.data.load_splits(..., "
                "'preference'), which makes the prompt explicit."
            )
    decided = [row for row in pairs if not is_tie(row)]  # a tie names no better answer
    if not decided:
        raise DataError(f"all {len(pairs)} preferences are ties: no answer is the better one.")
    return decided
