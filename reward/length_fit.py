"""How a reward rises with length, fitted on samples of the policy that it will score."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from scipy.optimize import isotonic_regression

from feedback.schema import Text
from reward.errors import RewardError
from reward.functions import plain
from reward.metrics import Numbers

if TYPE_CHECKING:
    from reward.model import Normalisation

Method = Literal["linear", "isotonic", "spline"]
Unit = Literal["characters", "words"]
SWEEPS = 50  # of the isotonic fit within prompts, most
SAMPLES_AT_LEAST = 8


@dataclass(frozen=True)
class LengthState:
    """A fitted curve: what a reward gives for length alone, 0 on average over reference samples.

    Between knots it is a line. Beyond them a linear fit goes on and the others stay level.
    """

    method: Method
    unit: Unit
    log: bool  # knots are log(1 + length)
    knots: tuple[float, ...]  # (M,) rising
    values: tuple[float, ...]  # (M,) in the reward's own units
    samples: int
    within: bool  # fitted within prompts
    before: float  # Pearson correlation of reward and log(1 + length), or length
    after: float  # the same of what is left
    scale: tuple[float, float] | None = None  # mean, std that normalised the rewards; None: raw

    def __call__(self, lengths: Numbers) -> np.ndarray:
        """The curve at some lengths, (N,)."""
        x = _feature(lengths, self.log)
        if self.method == "linear":
            slope = (self.values[1] - self.values[0]) / (self.knots[1] - self.knots[0])
            return self.values[0] + slope * (x - self.knots[0])
        return np.interp(x, self.knots, self.values)

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> LengthState:
        """Read what `save` wrote.

        Raises:
            RewardError: the file is missing or holds something else.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            knots, values = tuple(found.pop("knots")), tuple(found.pop("values"))
            mean_std = found.pop("scale", None)
            scale = None if mean_std is None else (float(mean_std[0]), float(mean_std[1]))
            state = cls(knots=knots, values=values, scale=scale, **found)
        except (OSError, ValueError, TypeError, AttributeError, LookupError) as error:
            raise RewardError(
                f"{path}: is no length state ({error}). Fix: write one with "
                "reward.debias.fit_length(...).save(path)."
            ) from error
        if len(knots) != len(values) or len(knots) < 2 or state.method not in get_args(Method):
            raise RewardError(f"{path}: is a damaged length state. Fix: fit it again.")
        return state


def fit_length(
    scores: Numbers,
    lengths: Numbers,
    groups: Sequence[Hashable | Text] | None = None,
    *,
    method: Method = "linear",
    unit: Unit = "characters",
    log: bool = True,
    knots: int = 6,
    normalisation: Normalisation | None = None,
) -> LengthState:
    """Fit what a reward gives for length on samples of the policy that it will score.

    Args:
        scores: (N,) rewards.
        lengths: (N,) lengths of the completions, as `lengths_of` counts them.
        groups: (N,) prompts, texts or conversations. Given, only differences between answers of
            one prompt are fitted, so that prompts which ask for long answers and are scored high
            for another reason teach nothing. Prompts with one answer then teach nothing at all.
        method: "linear"; "isotonic", monotone in the direction of the correlation; or "spline",
            broken lines between quantiles, which may rise and fall.
        unit: what `lengths` counts, kept in the state.
        log: fit log(1 + length), in which lengths are spread more evenly.
        knots: of the spline.
        normalisation: the statistics that the scores were normalised by (`normalisation` of the
            reward model); None for raw scores. Kept in the state, which then only goes with a
            reward of that scale.

    Raises:
        RewardError: fewer than 8 samples, numbers that differ or are not finite, or lengths that
            are all alike.
    """
    y, x = np.asarray(scores, dtype=np.float64), _feature(lengths, log)
    labels = np.zeros(len(y), dtype=int) if groups is None else _codes(groups)
    if not len(y) == len(x) == len(labels) or len(y) < SAMPLES_AT_LEAST:
        raise RewardError(
            f"a length fit needs at least {SAMPLES_AT_LEAST} samples, as many lengths as scores; "
            f"got {len(y)} scores, {len(x)} lengths and {len(labels)} groups."
        )
    if not (np.isfinite(y).all() and np.isfinite(x).all()):
        raise RewardError("a length fit needs finite scores and lengths of 0 or more.")
    if method not in get_args(Method):
        raise RewardError(f"method is {' or '.join(get_args(Method))}, not {method!r}.")
    inside, below = _centred(x, labels), _centred(y, labels)
    if not inside.any():
        where = " within prompts" if groups is not None else ""
        raise RewardError(f"all lengths are alike{where}: there is nothing to fit.")
    if method == "isotonic":
        places, heights = _isotonic(x, y, labels, rising=float(inside @ below) >= 0)
    else:
        places = np.array([x.min(), x.max()])
        if method == "spline":
            places = np.unique(np.quantile(x, np.linspace(0, 1, max(2, knots))))
        basis = np.stack([np.interp(x, places, unit_row) for unit_row in np.eye(len(places))], 1)
        centred = np.stack([_centred(column, labels) for column in basis.T], 1)
        heights = np.linalg.lstsq(centred, below, rcond=None)[0]
    heights = heights - np.interp(x, places, heights).mean()
    rest = y - np.interp(x, places, heights)
    return LengthState(
        method=method,
        unit=unit,
        log=log,
        knots=tuple(float(value) for value in places),
        values=tuple(float(value) for value in heights),
        samples=len(y),
        within=groups is not None,
        before=_pearson(inside, below),
        after=_pearson(inside, _centred(rest, labels)),
        scale=None if normalisation is None else (normalisation.mean, normalisation.std),
    )


def lengths_of(completions: Sequence[Text], unit: Unit = "characters") -> np.ndarray:
    """Lengths of completions, (N,)."""
    texts = [plain(completion) for completion in completions]
    return np.array([len(t) if unit == "characters" else len(t.split()) for t in texts], float)


def _feature(lengths: Numbers, log: bool) -> np.ndarray:
    array = np.asarray(lengths, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return np.log1p(array) if log else array


def _codes(groups: Sequence[Hashable | Text]) -> np.ndarray:
    codes: dict[Hashable, int] = {}
    keys = [json.dumps(one, sort_keys=True) if isinstance(one, list) else one for one in groups]
    return np.array([codes.setdefault(key, len(codes)) for key in keys], dtype=int)


def _centred(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Values less the mean of their group."""
    return values - (np.bincount(labels, weights=values) / np.bincount(labels))[labels]


def _isotonic(
    x: np.ndarray, y: np.ndarray, labels: np.ndarray, *, rising: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Monotone curve plus one level per group, fitted in turns (backfitting; least squares)."""
    places, index = np.unique(x, return_inverse=True)
    weights = np.bincount(index).astype(float)
    levels = np.zeros(len(y))
    heights = np.zeros(len(places))
    for _ in range(SWEEPS):
        means = np.bincount(index, weights=y - levels) / weights
        fitted = isotonic_regression(means, weights=weights, increasing=rising).x
        rest = y - fitted[index]
        levels = rest - _centred(rest, labels)
        done = np.allclose(fitted, heights, rtol=0, atol=1e-9 * (1 + np.abs(y).max()))
        heights = fitted
        if done:
            break
    return places, heights


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 1e-12 else 0.0
