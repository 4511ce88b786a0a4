"""How far an answer lies from what a reward model was trained on: Mahalanobis distance.

Far from its training data a reward model guesses, and says nothing of it (Lee et al. 2018,
arXiv 1807.03888, of classifiers). The relative distance (Ren et al. 2021, arXiv 2106.09022) takes
off the distance to a background: there the same data without their class labels, for generated text
a general corpus (Ren et al. 2022, arXiv 2209.15558), which is what is meant here, since a reward
model has no classes. What is odd in every text alike cancels.
The covariance is shrunk (Ledoit and Wolf 2004), so that it can be inverted with fewer rows than
features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from scipy import special, stats
from torch import Tensor

from feedback.errors import DataError
from reward.errors import ModelError
from reward.metrics import auc
from reward.places import check_weights, saving, weights_digest
from reward.posterior import Features, check_features
from reward.statistics import Interval, check_level

FILE = "outliers.safetensors"


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A cloud of features: its mean and a root of its inverse covariance."""

    mean: Tensor  # (H,) float64
    whitening: Tensor  # (H, H) float64; (f - mean) @ whitening has covariance I

    @classmethod
    def fit(cls, features: Features) -> Gaussian:
        """Mean and shrunk covariance of (n, H) features.

        Raises:
            DataError: fewer than two rows, or features that never differ.
        """
        check_features(features)
        rows = features.double()
        if len(rows) < 2:
            raise DataError(f"a covariance needs at least 2 rows of features; got {len(rows)}.")
        covariance, _ = ledoit_wolf(rows)
        spread, axes = torch.linalg.eigh(covariance)
        if not spread[-1] > 0:
            raise DataError("all rows of features are the same; they have no covariance.")
        least = spread[-1] * torch.finfo(torch.float64).eps * len(spread)
        return cls(rows.mean(dim=0), (axes * spread.clamp(min=least).rsqrt()).contiguous())

    def distance(self, features: Features) -> Tensor:
        """Squared Mahalanobis distance, (B, H) to (B,) float64."""
        check_features(features, len(self.mean))
        return ((features.double() - self.mean) @ self.whitening).square().sum(dim=1)


@dataclass(frozen=True, eq=False)
class OutlierScore:
    """Squared distance to the training features, less that to a background if there is one."""

    training: Gaussian
    background: Gaussian | None = None

    @classmethod
    def fit(cls, training: Features, background: Features | None = None) -> OutlierScore:
        """Fit to pooled features.

        Args:
            training: (n, H), of answers that the reward model was trained on.
            background: (m, H), of text of all kinds; makes the score the relative distance.

        Raises:
            DataError: too few rows, or constant features.
        """
        behind = None if background is None else Gaussian.fit(background)
        return cls(Gaussian.fit(training), behind)

    def __call__(self, features: Features) -> Tensor:
        """The score, (B, H) to (B,) float64; higher is further from the training data."""
        distance = self.training.distance(features)
        return (
            distance if self.background is None else distance - self.background.distance(features)
        )

    def save(self, folder: Path) -> Path:
        """Write `outliers.safetensors` into a folder of the model's directory; returns the file.

        Raises:
            ModelError: the folder cannot be written.
        """
        parts = {"training": self.training, "background": self.background}
        tensors = {
            f"{name}.{key}": tensor.contiguous()
            for name, part in parts.items()
            if part is not None
            for key, tensor in vars(part).items()
        }
        with saving(folder / FILE) as place:
            save_file(tensors, place, metadata={"weights": weights_digest(folder.parent) or ""})
        return folder / FILE

    @classmethod
    def load(cls, folder: Path) -> OutlierScore:
        """Read what `save` wrote.

        Raises:
            ModelError: there is none, it is damaged, or it was fitted to features of other weights
                than lie in the folder above.
        """
        file = folder / FILE
        if not file.is_file():
            raise ModelError(f"there is no outlier score at {file}. Fix: fit and save one first.")
        try:
            with safe_open(file, framework="pt") as opened:
                digest = (opened.metadata() or {}).get("weights") or None
            saved = load_file(file)
            training, background = (
                Gaussian(saved[f"{name}.mean"], saved[f"{name}.whitening"])
                if name == "training" or f"{name}.mean" in saved
                else None
                for name in ("training", "background")
            )
        except (SafetensorError, KeyError) as error:
            raise ModelError(f"{file} is damaged ({error}). Fix: fit and save it again.") from error
        assert training is not None
        check_weights(file, digest, "Fix: fit and save it again.")
        return cls(training, background)


def ledoit_wolf(rows: Tensor) -> tuple[Tensor, float]:
    """Covariance shrunk towards a multiple of the identity, and by how much (0 to 1).

    Ledoit and Wolf (2004), Journal of Multivariate Analysis 88, lemmas 3.2 to 3.4; as
    scikit-learn's `ledoit_wolf`.

    Args:
        rows: (n, H).

    Returns:
        (H, H), and the shrinkage.
    """
    n, width = rows.shape
    centred = rows - rows.mean(dim=0)
    sample = centred.T @ centred / n
    size = sample.diagonal().mean()
    squares = centred.square()
    noise = ((squares.T @ squares / n - sample.square()).sum() / (n * width)).item()
    spread = (sample.square().sum() / width - size.square()).item()
    shrinkage = 0.0 if spread <= 0 else min(max(noise, 0.0), spread) / spread
    shrunk = (1 - shrinkage) * sample
    shrunk.diagonal().add_(shrinkage * size)
    return shrunk, shrinkage


def auroc(
    scores: Sequence[float] | np.ndarray | Tensor,
    positive: Sequence[bool] | np.ndarray | Tensor,
    level: float = 0.95,
) -> Interval:
    """Chance that a positive row scores above a negative one (ties half), with its interval.

    Variance after DeLong et al. (1988), Biometrics 44; the interval is taken on the logit. Do high
    `OutlierScore`s mark texts from elsewhere, do wide margins mark errors?

    Args:
        scores: (n,).
        positive: (n,) which rows ought to score high. Rows are taken as independent.
        level: of the interval.

    Raises:
        DataError: there are no positive rows, or no negative ones, or the lengths differ.
    """
    values, marked = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    if values.ndim != 1 or values.shape != marked.shape:
        raise DataError(
            f"AUROC reads two lists of one length; got shapes {values.shape} and {marked.shape}."
        )
    high, low = values[marked], values[~marked]
    if not high.size or not low.size:
        raise DataError(
            f"AUROC compares positive with negative rows; got {high.size} and {low.size}."
        )
    value = auc(high, low)
    ranks = stats.rankdata(np.concatenate([high, low]))
    above = (ranks[: high.size] - stats.rankdata(high)) / low.size  # of each positive row
    below = 1 - (ranks[high.size :] - stats.rankdata(low)) / high.size
    spreads = [part.var(ddof=1) / part.size if part.size > 1 else 0.25 for part in (above, below)]
    deviation = math.sqrt(sum(spreads))
    z = float(stats.norm.ppf(0.5 + check_level(level) / 2))
    if not 0 < value < 1:  # separated: the logit is infinite, the rule of three is not
        least = 3 / min(high.size, low.size)
        start, end = (max(0.0, 1 - least), 1.0) if value == 1 else (0.0, min(1.0, least))
        return Interval(value, start, end, float(values.size), level)
    centre, half = math.log(value / (1 - value)), z * deviation / (value * (1 - value))
    low_end, high_end = special.expit([centre - half, centre + half])
    return Interval(value, float(low_end), float(high_end), float(values.size), level)
