"""Which of two models answers the same prompts better, with an interval and a paired test.

The verdicts of a comparing judge in the two positions are averaged, which cancels a preference for
a position, and that preference is measured. Several samples of a prompt are averaged before
anything is counted, so that intervals and tests are over prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from align.errors import DataError
from align.evaluate.generate import Completions, Progress
from align.evaluate.judge import (
    Judge,
    ScoringJudge,
    compare_completions,
    score_completions,
)
from align.evaluate.significance import holm, paired_difference, share_interval, sign_test


@dataclass(frozen=True)
class PositionBias:
    """What a comparing judge preferred when only the order changed."""

    pairs: int  # pairs of completions, each asked twice
    consistent: float  # share of pairs with the same verdict on the answers in both orders
    first_rate: float  # share of verdicts for the first position, ties half; 0.5 is fair
    p_value: float  # sign test over prompts: does either position win more often?


@dataclass(frozen=True)
class WinRate:
    """Model `a` against model `b` over n prompts."""

    a: str
    b: str
    judge: str
    n: int  # prompts
    wins: int  # prompts on which a's samples win more than half
    losses: int
    ties: int
    rate: float  # mean outcome of a over prompts: win 1, tie 0.5, loss 0
    low: float  # Wilson interval at the effective number of prompts
    high: float
    n_effective: float
    level: float
    p_value: float  # exact sign test on wins and losses
    p_adjusted: float  # the same after Holm's correction over all comparisons of the evaluation
    samples: int  # completions per prompt and model
    score_difference: float | None = None  # mean over prompts of score(a) - score(b)
    score_low: float | None = None  # bootstrap interval over prompts
    score_high: float | None = None
    score_p_value: float | None = None  # paired permutation test
    position: PositionBias | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for evaluation.json."""
        return asdict(self)


def win_rates(
    judge: Judge,
    completions: Mapping[str, Completions],
    pairs: Sequence[tuple[str, str]],
    columns: Mapping[str, list[Any]] | None = None,
    *,
    scores: Mapping[str, np.ndarray] | None = None,
    level: float = 0.95,
    seed: int = 0,
    run_dir: Path | None = None,
    progress: Progress | None = None,
) -> list[WinRate]:
    """Compare models pair by pair; Holm's correction runs over all the pairs given.

    Args:
        judge: scores or compares.
        completions: by model, on the same prompts.
        pairs: (a, b) names; the rate is that of a.
        columns: further dataset columns, handed to the judge.
        scores: (P, G) by model, where a scoring judge has been asked already.
        level: confidence level.
        seed: of bootstrap and permutation.
        run_dir: where verdicts are kept.
        progress: called with (what, prompts done, prompts in all).

    Raises:
        DataError: a pair names an unknown model, or the models answered different prompts.
        RewardError: the judge failed.
    """
    check_pairs(completions, pairs)
    rates = []
    for a, b in pairs:
        if isinstance(judge, ScoringJudge):
            found = dict(scores or {})
            for name in (a, b):
                if name not in found:
                    found[name] = score_completions(
                        judge, name, completions[name], columns, run_dir=run_dir, progress=progress
                    )
            scores = found
            rate = win_rate_from_scores(
                found[a],
                found[b],
                a=a,
                b=b,
                judge=judge.name,
                tie_margin=judge.tie_margin,
                level=level,
                seed=seed,
            )
        else:
            a_first, b_first = compare_completions(
                judge,
                (a, b),
                completions[a],
                completions[b],
                columns,
                run_dir=run_dir,
                progress=progress,
            )
            rate = win_rate_from_verdicts(a_first, b_first, a=a, b=b, judge=judge.name, level=level)
        rates.append(rate)
    adjusted = holm([rate.p_value for rate in rates])
    return [replace(rate, p_adjusted=p) for rate, p in zip(rates, adjusted, strict=True)]


def check_pairs(completions: Mapping[str, Completions], pairs: Sequence[tuple[str, str]]) -> None:
    """Refuse pairs that cannot be compared.

    Raises:
        DataError: an unknown model, a model against itself, different prompts or sample counts.
    """
    for a, b in pairs:
        unknown = [name for name in (a, b) if name not in completions]
        if unknown or a == b:
            raise DataError(
                f"cannot compare {a!r} with {b!r}; name two of {', '.join(completions)}."
            )
        one, two = completions[a], completions[b]
        if one.prompts != two.prompts or one.samples != two.samples:
            raise DataError(
                f"{a} answered {len(one.prompts)} prompts x {one.samples} and {b} "
                f"{len(two.prompts)} x {two.samples}; a win rate needs the same prompts and as "
                "many samples of each."
            )


def win_rate_from_scores(
    scores_a: np.ndarray,
    scores_b: np.ndarray,
    *,
    a: str,
    b: str,
    judge: str,
    tie_margin: float = 0.0,
    level: float = 0.95,
    seed: int = 0,
) -> WinRate:
    """Win rate from scores of the same prompts.

    A prompt's outcome is the mean over all pairs of one sample of each model, which wastes no
    sample (the statistic of Mann and Whitney 1947, per prompt).

    Args:
        scores_a: (P, G) scores of a's G samples of each of P prompts.
        scores_b: (P, G') the same for b.
        a: name of the first model.
        b: name of the second.
        judge: name of the judge.
        tie_margin: score differences up to this size are ties.
        level: confidence level.
        seed: of bootstrap and permutation.

    Raises:
        DataError: shapes that do not fit, no prompts, NaN, or a negative tie margin.
    """
    first, second = _grid(scores_a, a), _grid(scores_b, b)
    if len(first) != len(second):
        raise DataError(f"{a} has scores for {len(first)} prompts, {b} for {len(second)}.")
    if not tie_margin >= 0:
        raise DataError(f"a tie margin is not negative; got {tie_margin}.")
    gaps = first[:, :, None] - second[:, None, :]  # (P, G, G')
    outcomes = np.where(np.abs(gaps) <= tie_margin, 0.5, (gaps > 0).astype(float)).mean(axis=(1, 2))
    result = _summarise(outcomes, a, b, judge, first.shape[1], level)
    difference = paired_difference(first.mean(axis=1), second.mean(axis=1), level, seed=seed)
    return replace(
        result,
        score_difference=difference.interval.value,
        score_low=difference.interval.low,
        score_high=difference.interval.high,
        score_p_value=difference.p_value,
    )


def win_rate_from_verdicts(
    a_first: np.ndarray,
    b_first: np.ndarray,
    *,
    a: str,
    b: str,
    judge: str,
    level: float = 0.95,
) -> WinRate:
    """Win rate from verdicts in both positions.

    The verdicts on a pair are averaged: win and loss make a tie, win and tie three quarters. Asking
    in both orders follows Zheng et al. (2023), arXiv 2306.05685, section 3.4.

    Args:
        a_first: (P, G) verdicts with a's answer in the first place, as the share of a
            (1, 0.5 or 0, see `OUTCOME`).
        b_first: (P, G) verdicts on the same pairs with b's answer first, again as the share of a.
        a: name of the first model.
        b: name of the second.
        judge: name of the judge.
        level: confidence level.

    Raises:
        DataError: shapes that differ, or no prompts.
    """
    one, two = _grid(a_first, "a first"), _grid(b_first, "b first")
    if one.shape != two.shape:
        raise DataError(f"verdicts in the two positions differ in shape: {one.shape}, {two.shape}.")
    result = _summarise(((one + two) / 2).mean(axis=1), a, b, judge, one.shape[1], level)
    lean = one + (1 - two) - 1  # (P, G): 1 first place won twice, -1 second place won twice
    by_prompt = lean.sum(axis=1)
    position = PositionBias(
        pairs=int(one.size),
        consistent=float((one == two).mean()),
        first_rate=float((1 + lean.mean()) / 2),
        p_value=sign_test(int((by_prompt > 0).sum()), int((by_prompt < 0).sum())),
    )
    return replace(result, position=position)


def _summarise(
    outcomes: np.ndarray, a: str, b: str, judge: str, samples: int, level: float
) -> WinRate:
    """`outcomes` is (P,): a's share of each prompt."""
    share = share_interval(outcomes, level=level)
    # Means of several samples are sums of halves and quarters: equal to 0.5 but for rounding.
    wins, losses = int((outcomes > 0.5 + 1e-9).sum()), int((outcomes < 0.5 - 1e-9).sum())
    p_value = sign_test(wins, losses)
    return WinRate(
        a=a,
        b=b,
        judge=judge,
        n=len(outcomes),
        wins=wins,
        losses=losses,
        ties=len(outcomes) - wins - losses,
        rate=share.value,
        low=share.low,
        high=share.high,
        n_effective=share.n,
        level=level,
        p_value=p_value,
        p_adjusted=p_value,
        samples=samples,
    )


def _grid(values: np.ndarray, name: str) -> np.ndarray:
    grid = np.asarray(values, dtype=np.float64)
    if grid.ndim != 2 or grid.size == 0:
        raise DataError(
            f"{name}: expected a (prompts, samples) table of numbers; got shape {grid.shape}."
        )
    if not np.isfinite(grid).all():
        row, column = np.argwhere(~np.isfinite(grid))[0]
        raise DataError(f"{name}: sample {column} of prompt {row} has a score that is not finite.")
    return grid
