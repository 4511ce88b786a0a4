"""How good a reward model is on held-out preferences: pure numbers on reward margins.

A margin is r(prompt, chosen) - r(prompt, rejected) in nats: the Bradley-Terry model reads it as
log-odds, P(chosen preferred) = sigmoid(margin). Rescaled rewards (divided by their standard
deviation, say) keep accuracy and lose the meaning of log-loss and calibration.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from scipy import stats

from feedback.errors import DataError
from reward.statistics import Interval, share_interval, wilson_interval

Numbers = Sequence[float] | np.ndarray
LengthRule = Literal["longer wins", "shorter wins"]


@dataclass(frozen=True)
class ReliabilityBin:
    """Pairs of similar confidence: how sure the model was, and how often it was right."""

    low: float  # lowest and highest confidence inside
    high: float
    confidence: float  # mean of max(p, 1 - p)
    accuracy: float
    accuracy_low: float  # Wilson interval, 95%
    accuracy_high: float
    n: int

    def as_dict(self) -> dict[str, float | int]:
        """Plain numbers for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class CalibrationError:
    """Expected calibration error, beside what a calibrated model would show on as many pairs."""

    ece: float
    expected: float  # mean ECE if the stated confidences were true: noise, not miscalibration
    p_value: float  # share of such simulations with at least this ECE
    bins: list[ReliabilityBin]


def correctness(margins: Numbers) -> np.ndarray:
    """1 where chosen scores higher, 0 where lower, 0.5 where equal; (n,)."""
    return (1 + np.sign(_margins(margins))) / 2


def accuracy(
    margins: Numbers, clusters: Sequence[Hashable] | None = None, level: float = 0.95
) -> Interval:
    """Share of pairs in which the chosen answer scores higher (a tie counts half).

    Args:
        margins: (n,) r(chosen) - r(rejected).
        clusters: (n,) labels of pairs that are not independent (same prompt).
        level: confidence level of the Wilson interval.
    """
    return share_interval(correctness(margins), clusters, level)


def log_loss(margins: Numbers) -> float:
    """Mean of -log sigmoid(margin), in nats; 0.693 is a coin.

    The negative log-likelihood of Bradley and Terry (1952), Biometrika 39.
    """
    return float(np.logaddexp(0.0, -_margins(margins)).mean())


def reliability_bins(margins: Numbers, bins: int = 10) -> list[ReliabilityBin]:
    """Equal-mass bins over the confidence max(p, 1 - p).

    Which answer was written down first is arbitrary, so every pair counts in both orders: as
    (p, right?) and as (1 - p, wrong?). That symmetrised set, cut into 2K equal-mass bins around
    0.5, has the same error in every bin as its upper half in K bins over the confidence, which is
    what is returned. Equal confidences always share a bin, so there may be fewer than `bins`.

    Args:
        margins: (n,) r(chosen) - r(rejected).
        bins: number of bins asked for (K).
    """
    m = _margins(margins)
    confidence, correct = _confidence(m), correctness(m)
    place = _bin_of(confidence, bins)
    found = []
    for index in np.unique(place):
        inside = place == index
        share = wilson_interval(float(correct[inside].sum()), int(inside.sum()))
        found.append(
            ReliabilityBin(
                low=float(confidence[inside].min()),
                high=float(confidence[inside].max()),
                confidence=float(confidence[inside].mean()),
                accuracy=share.value,
                accuracy_low=share.low,
                accuracy_high=share.high,
                n=int(inside.sum()),
            )
        )
    return found


def calibration_error(
    margins: Numbers, bins: int = 10, simulations: int = 1000, seed: int = 0
) -> CalibrationError:
    """Expected calibration error: mean |accuracy - confidence| over bins, weighted by their size.

    Guo et al. (2017), arXiv 1706.04599, eq. 3, with the bins of `reliability_bins`. Binned ECE
    is never 0 on finite data: `expected` simulates outcomes from the stated confidences
    (consistency resampling, Broecker and Smith 2007) and says how much of it is noise.

    Args:
        margins: (n,) r(chosen) - r(rejected).
        bins: number of bins.
        simulations: for `expected` and `p_value`.
        seed: of the simulations.
    """
    m = _margins(margins)
    confidence = _confidence(m)
    place = _bin_of(confidence, bins)
    observed = float(_gap(place, correctness(m) - confidence))
    generator = np.random.default_rng(seed)
    simulated = np.array(
        [
            _gap(place, (generator.random(m.size) < confidence) - confidence)
            for _ in range(simulations)
        ]
    )
    p_value = (1 + int((simulated >= observed).sum())) / (1 + simulations)
    return CalibrationError(
        ece=observed,
        expected=float(simulated.mean()),
        p_value=p_value,
        bins=reliability_bins(m, bins),
    )


def binned_error(margins: Numbers, bins: int = 10) -> float:
    """The ECE of `calibration_error` alone, for resampling."""
    m = _margins(margins)
    confidence = _confidence(m)
    return _gap(_bin_of(confidence, bins), correctness(m) - confidence)


def auc(chosen: Numbers, rejected: Numbers) -> float:
    """Chance that any chosen answer outscores any rejected one, prompts mixed (ties half).

    Bradley-Terry training leaves an offset per prompt free, so this can be low although accuracy
    within prompts is high. It says whether scores compare *across* prompts, which PPO assumes when
    it whitens rewards over a batch. Mann and Whitney (1947).
    """
    high, low = _margins(chosen), _margins(rejected)
    ranks = stats.rankdata(np.concatenate([high, low]))[: high.size].sum()
    return float((ranks - high.size * (high.size + 1) / 2) / (high.size * low.size))


def length_margins(chosen: Numbers, rejected: Numbers, rule: LengthRule) -> np.ndarray:
    """Margins of a "reward model" that looks at length only; (n,), 0 for equal lengths."""
    difference = _margins(chosen) - _margins(rejected)
    return difference if rule == "longer wins" else -difference


def fit_length_rule(chosen: Numbers, rejected: Numbers) -> LengthRule:
    """The better of "longer wins" and "shorter wins" on training pairs (a draw: longer).

    Args:
        chosen: (n,) lengths of the chosen answers.
        rejected: (n,) lengths of the rejected ones.
    """
    better = np.sign(_margins(chosen) - _margins(rejected)).sum() >= 0
    return "longer wins" if better else "shorter wins"


def length_correlation(margins: Numbers, chosen: Numbers, rejected: Numbers) -> float:
    """Spearman correlation of reward margin and length difference; NaN if either is constant.

    Every pair counts in both orders (as in `reliability_bins`), so that 0 means no relation
    whatever share of the chosen answers is longer.
    """
    m, difference = _margins(margins), _margins(chosen) - _margins(rejected)
    both = np.concatenate([m, -m]), np.concatenate([difference, -difference])
    if not (m.any() and difference.any()):
        return float("nan")
    return float(stats.spearmanr(*both).statistic)


def _confidence(m: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.abs(m)))


def _bin_of(confidence: np.ndarray, bins: int) -> np.ndarray:
    """Bin of each confidence, cut at quantiles; equal values fall into the same bin."""
    if bins < 1:
        raise DataError(f"calibration needs at least one bin; got {bins}.")
    cuts = np.quantile(confidence, np.arange(1, bins) / bins)
    return np.searchsorted(np.unique(cuts), confidence, side="right")


def _gap(place: np.ndarray, excess: np.ndarray) -> float:
    """Sum over bins of |sum of (correct - confidence)|, per row."""
    return float(np.abs(np.bincount(place, weights=excess)).sum() / excess.size)


def _margins(values: Numbers) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise DataError(f"expected a list of margins; got shape {array.shape}.")
    if not np.isfinite(array).all():
        row = int(np.argmin(np.isfinite(array)))
        raise DataError(f"the margin of pair {row} is {array[row]}; finite numbers are expected.")
    return array
