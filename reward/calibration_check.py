"""Whether a calibration helps: fitted on one half of the prompts, measured on the other.

ECE cannot be negative and noise alone makes it positive, so resampled ECEs lie above the one found.
The interval is the basic bootstrap's, which turns that round: [2 e - q_high, 2 e - q_low], at least
0, over prompts (Davison and Hinkley 1997, section 5.2). At 0, the edge of what an ECE can be, that
fails: so it reaches down to 0 where a test of calibration does not refuse 0, and it always holds
the ECE found. `expected` is what a calibrated model would show on as many pairs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from feedback.errors import DataError
from reward.calibrate import Calibration, Method, Numbers, fit_calibration
from reward.metrics import binned_error, calibration_error, log_loss
from reward.statistics import Interval, check_level


@dataclass(frozen=True)
class HeldOut:
    """Calibration on pairs that no fit has seen."""

    ece: Interval
    expected: float  # mean ECE of a calibrated model on as many pairs
    p_value: float  # of calibration: share of such models with at least this ECE
    log_loss: Interval
    reliability: list[dict[str, float | int]]  # bins of the diagram

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class CalibrationCheck:
    """What a fit on one half did to the other."""

    method: Method
    fitted: int  # pairs that it was fitted on
    pairs: int  # pairs that it was measured on
    prompts: int  # among these
    before: HeldOut
    after: HeldOut

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def check_calibration(
    margins: Numbers,
    method: Method = "temperature",
    *,
    groups: Sequence[Hashable] | None = None,
    fraction: float = 0.5,
    seed: int = 0,
    bins: int = 10,
    resamples: int = 500,
    level: float = 0.95,
) -> tuple[Calibration, CalibrationCheck]:
    """Fit on a part of the prompts, measure before and after on the rest.

    Args:
        margins: (n,) raw r(chosen) - r(rejected) of pairs that the model was not trained on.
        method: `temperature` or `isotonic`.
        groups: (n,) labels; pairs with equal ones (same prompt) stay together.
        fraction: of the prompts that the fit sees.
        seed: of split, simulations and resampling.
        bins: of ECE and diagram.
        resamples: of the intervals.
        level: of the intervals.

    Returns:
        The calibration that was measured, and the measurement.

    Raises:
        DataError: a part is empty, or no calibration fits.
    """
    m = np.asarray(margins, dtype=np.float64)
    labels = list(range(m.size)) if groups is None else list(groups)
    if len(labels) != m.size:
        raise DataError(f"{m.size} margins came with {len(labels)} group labels.")
    fit = chosen_for_fit(labels, fraction, seed)
    calibration = fit_calibration(method, m[fit])
    rest = [label for label, seen in zip(labels, fit, strict=True) if not seen]
    measure = _Measure(rest, bins, resamples, seed, level)
    return calibration, CalibrationCheck(
        method=method,
        fitted=int(fit.sum()),
        pairs=len(rest),
        prompts=len(set(rest)),
        before=measure(m[~fit]),
        after=measure(calibration.margins(m[~fit])),
    )


def chosen_for_fit(labels: Sequence[Hashable], fraction: float, seed: int) -> np.ndarray:
    """Which pairs a fit sees, (n,) bool: whole groups, whatever the order of the pairs.

    Raises:
        DataError: nothing is left on one of the sides.
    """

    def rank(label: Hashable) -> bytes:
        text = json.dumps([seed, label], default=repr)
        return hashlib.blake2b(text.encode(), digest_size=16).digest()

    order = sorted(set(labels), key=rank)
    count = round(fraction * len(order))
    if not 0 < count < len(order):
        raise DataError(
            f"a fraction of {fraction} of {len(order)} prompts leaves nothing on one side. Fix: "
            "give more prompts, or a fraction nearer to one half."
        )
    seen = set(order[:count])
    return np.array([label in seen for label in labels])


class _Measure:
    """The same held-out pairs, resampled alike before and after."""

    def __init__(self, labels: list[Hashable], bins: int, resamples: int, seed: int, level: float):
        self.bins, self.seed, self.level = bins, seed, check_level(level)
        members: dict[Hashable, list[int]] = {}
        for row, label in enumerate(labels):
            members.setdefault(label, []).append(row)
        self.members = [np.array(rows) for rows in members.values()]
        draw = np.random.default_rng(seed)
        self.draws = draw.integers(len(self.members), size=(resamples, len(self.members)))

    def __call__(self, margins: np.ndarray) -> HeldOut:
        found = calibration_error(margins, self.bins, seed=self.seed)
        ece = self._interval(margins, self._ece)
        if found.p_value > (1 - self.level) / 2:
            ece = replace(ece, low=0.0)
        return HeldOut(
            ece=ece,
            expected=found.expected,
            p_value=found.p_value,
            log_loss=self._interval(margins, log_loss),
            reliability=[entry.as_dict() for entry in found.bins],
        )

    def _ece(self, margins: np.ndarray) -> float:
        return binned_error(margins, self.bins)

    def _interval(self, margins: np.ndarray, figure: Callable[[np.ndarray], float]) -> Interval:
        value = figure(margins)
        drawn = [
            figure(margins[np.concatenate([self.members[g] for g in draw])]) for draw in self.draws
        ]
        tail = (1 - self.level) / 2
        low, high = np.quantile(drawn, [tail, 1 - tail])
        return Interval(
            value,
            min(value, max(0.0, float(2 * value - high))),
            max(value, float(2 * value - low)),
            float(len(self.members)),
            self.level,
        )
