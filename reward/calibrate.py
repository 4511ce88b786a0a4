"""Calibration: what a reward model's margins are worth as probabilities.

A margin read as log-odds is often too sure of itself, more so the longer the model was trained. A
fit on held-out pairs mends that and changes no ranking: `temperature` divides all margins by one
number (Platt 1999 without its offset, which swapping the answers forbids; Guo et al. 2017,
arXiv 1706.04599), `isotonic` fits any rising curve (Zadrozny and Elkan 2002) and wants a thousand
pairs. Which answer was written down first is arbitrary, so every fit has P(-m) = 1 - P(m).

Leaves out where margins come from. How calibrated they are: `reward.metrics.calibration_error`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from scipy import optimize, special

from feedback.errors import DataError
from reward.errors import ModelError
from reward.places import check_weights, saving, weights_digest

FILE = "calibration.json"
Method = Literal["temperature", "isotonic"]
Numbers = Sequence[float] | np.ndarray


class Calibration(ABC):
    """From margins to probabilities that the first answer is preferred."""

    method: ClassVar[Method]

    @abstractmethod
    def apply(self, margins: Numbers) -> np.ndarray:
        """P(first answer preferred), strictly between 0 and 1; (n,) margins to (n,)."""

    def margins(self, margins: Numbers) -> np.ndarray:
        """Calibrated log-odds, what `reward.metrics` reads; (n,) to (n,)."""
        return special.logit(self.apply(margins))


@dataclass(frozen=True)
class Temperature(Calibration):
    """sigmoid(margin / temperature)."""

    temperature: float
    method = "temperature"

    def apply(self, margins: Numbers) -> np.ndarray:
        """Probabilities, (n,)."""
        return special.expit(self.margins(margins))

    def margins(self, margins: Numbers) -> np.ndarray:
        """Margins over the temperature, (n,)."""
        return np.asarray(margins, dtype=np.float64) / self.temperature


@dataclass(frozen=True)
class Isotonic(Calibration):
    """A rising, symmetric curve through `knots`, straight between them and level beyond."""

    knots: tuple[float, ...]  # margins, rising
    values: tuple[float, ...]  # probabilities there
    method = "isotonic"

    def apply(self, margins: Numbers) -> np.ndarray:
        """Probabilities, (n,)."""
        return np.interp(np.asarray(margins, dtype=np.float64), self.knots, self.values)


KINDS: dict[str, type[Calibration]] = {"temperature": Temperature, "isotonic": Isotonic}


def fit_temperature(margins: Numbers, labels: Numbers | None = None) -> Temperature:
    """The temperature with the least log-loss.

    Args:
        margins: (n,) r(first) - r(second) of pairs that the model was not trained on.
        labels: (n,) P(first is better), 0 to 1; None: the first answer is the better one in all.

    Raises:
        DataError: no finite temperature: all pairs are ranked right (more pairs are
            needed), or the margins say nothing of the labels.
    """
    m, y = _pairs(margins, labels)

    # d loss / d scale = mean m (sigmoid(scale m) - y): its signs at 0 and at infinity decide.
    if not (m * (0.5 - y)).mean() < 0:
        raise DataError(
            f"the margins of {m.size} pairs do not point towards the better answers (accuracy "
            f"{((m > 0) * y + (m < 0) * (1 - y)).mean():.3f}), so no positive temperature fits. "
            "Fix: check that chosen and rejected are not swapped, or train the model further."
        )
    if not (np.abs(m) * np.where(m > 0, 1 - y, y)).mean() > 0:
        raise DataError(
            f"all {m.size} pairs are ranked right, so the likeliest temperature is 0. Fix: give "
            "more held-out pairs, none of which the model was trained on; or fit isotonic "
            "(--method isotonic), which needs no wrong one."
        )
    typical = float(np.abs(m[m != 0]).mean())  # a scale of 1 / typical gives margins of about 1
    log = optimize.brentq(
        lambda log: float((m * (special.expit(np.exp(log) / typical * m) - y)).mean()),
        -30.0,
        30.0,
    )
    return Temperature(float(typical / np.exp(log)))


def fit_isotonic(margins: Numbers, labels: Numbers | None = None) -> Isotonic:
    """The rising curve nearest to the labels, of each pair in both orders; arguments as above.

    No n pairs prove a certainty: probabilities keep 1 / (n + 2) from 0 and 1 (Laplace's rule).
    """
    m, y = _pairs(margins, labels)
    both, wanted = np.concatenate([m, -m]), np.concatenate([y, 1 - y])
    knots, place, counts = np.unique(both, return_inverse=True, return_counts=True)
    means = np.bincount(place, weights=wanted) / counts
    values = optimize.isotonic_regression(means, weights=counts).x
    # Symmetric but for rounding, which around 0 would call even pairs right or wrong.
    values = 0.5 + (values - values[::-1]) / 2
    # Only the ends of level stretches matter to a line through the knots.
    level = np.zeros(values.size, dtype=bool)
    level[1:-1] = (values[1:-1] == values[:-2]) & (values[1:-1] == values[2:])
    least = 1 / (m.size + 2)
    kept = np.clip(values[~level], least, 1 - least)
    return Isotonic(tuple(knots[~level].tolist()), tuple(kept.tolist()))


FITS: dict[str, Callable[..., Calibration]] = {
    "temperature": fit_temperature,
    "isotonic": fit_isotonic,
}


def fit_calibration(method: Method, margins: Numbers, labels: Numbers | None = None) -> Calibration:
    """Fit by the method's name; arguments as of `fit_temperature`."""
    if method not in FITS:
        raise ValueError(f"method must be one of {', '.join(FITS)}, not {method!r}.")
    return FITS[method](margins, labels)


def save_calibration(
    folder: Path, calibration: Calibration, measured: dict[str, Any] | None = None
) -> Path:
    """Write `calibration.json` into a folder; returns the file.

    Args:
        folder: in the model's directory, so that it is tied to the weights; made if need be.
        calibration: what is saved.
        measured: how good it was on held-out pairs, for reports.

    Raises:
        ModelError: the folder cannot be written.
    """
    state = {
        "method": calibration.method,
        "state": asdict(calibration),  # type: ignore[call-overload]
        "weights": weights_digest(folder.parent),
        "measured": measured,
    }
    with saving(folder / FILE) as place:
        place.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    return folder / FILE


def load_calibration(folder: Path) -> Calibration:
    """Read what `save_calibration` wrote.

    Raises:
        ModelError: there is none, it is damaged, or it was fitted to other weights than lie in the
            folder above.
    """
    file = folder / FILE
    fix = "Fix: align reward calibrate MODEL --data FILE."
    if not file.is_file():
        raise ModelError(f"there is no calibration at {file}. {fix}")
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        state = {k: tuple(v) if isinstance(v, list) else v for k, v in saved["state"].items()}
        found, digest = KINDS[saved["method"]](**state), saved.get("weights")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file} is damaged ({type(error).__name__}: {error}). {fix}") from error
    check_weights(file, digest, fix)
    return found


def _pairs(margins: Numbers, labels: Numbers | None) -> tuple[np.ndarray, np.ndarray]:
    m = np.asarray(margins, dtype=np.float64)
    y = np.ones_like(m) if labels is None else np.asarray(labels, dtype=np.float64)
    if m.ndim != 1 or not m.size or m.shape != y.shape:
        raise DataError(
            f"margins of shape {m.shape} and labels of shape {y.shape} are no pairs; two lists of "
            "one length are expected."
        )
    if not (np.isfinite(m).all() and ((y >= 0) & (y <= 1)).all()):
        raise DataError("margins must be finite numbers, and labels lie in [0, 1].")
    return m, y
