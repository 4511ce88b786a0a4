"""Laplace's approximation of a reward model's last layer: exact, d x d, in closed form.

The trunk is fixed; the head w of a reward r(x) = w . f(x) + b has a Gaussian posterior around what
training found (MacKay 1992, Neural Computation 4; Daxberger et al. 2021, arXiv 2106.14806). Under
Bradley and Terry's likelihood of n pairs with feature differences z = f(chosen) - f(rejected),

    -log posterior(w) = sum log(1 + exp(-w . z)) + precision / 2 |w|^2 + const,
    Hessian           = sum p (1 - p) z z^T + precision I,          p = sigmoid(w . z).

A soft label changes the gradient and not the Hessian. Heads are treated one by one, as a mixture.

Bradley and Terry fix differences only: a constant added to all scores changes no likelihood. So
the standard deviation of *one* score needs a point of reference f0, and is that of the margin
against an answer there: sqrt((f - f0)^T S (f - f0)). By default f0 is the mean of the training
features; the mean over samples of the policy that PPO starts from is a good choice too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy import optimize
from torch import Tensor

from reward.errors import ModelError
from reward.places import check_weights, saving, weights_digest
from reward.posterior import Features, RewardPosterior, check_features

FILE = "laplace.safetensors"
FORMAT = "align-laplace-1"


@dataclass(frozen=True, eq=False)
class LastLayerLaplace(RewardPosterior):
    """A Gaussian over each of K heads, N(weight, factor factor^T); features are (B, H)."""

    weight: Tensor  # (K, H) float64, the heads that training found
    bias: Tensor  # (K,) float64
    factor: Tensor  # (K, H, H) float64, a square root of each head's covariance
    reference: Tensor  # (H,) float64, where a single score's deviation is 0
    precision: tuple[float, ...]  # of each head's prior
    pairs: int  # that it was fitted on

    @classmethod
    def fit(
        cls,
        weight: Tensor,
        bias: Tensor,
        chosen: Features,
        rejected: Features,
        *,
        precision: float | None = None,
        reference: Tensor | None = None,
    ) -> LastLayerLaplace:
        """The posterior given pairs.

        Args:
            weight: (K, H), from `reward.score.head_parameters`.
            bias: (K,).
            chosen: (n, H) features of the better answers.
            rejected: (n, H) features of the others.
            precision: of the prior N(0, I / precision); None: what makes the pairs likeliest
                (`fit_precision`), for each head.
            reference: (H,); None: the mean over all 2n answers.

        Raises:
            ModelError: no pairs, or a precision that is not positive.
            RewardError: features of another width.
        """
        weight, bias = weight.detach().double(), bias.detach().double()
        check_features(chosen, weight.shape[1])
        check_features(rejected, weight.shape[1])
        if not len(chosen) or len(chosen) != len(rejected):
            raise ModelError(
                f"{len(chosen)} chosen and {len(rejected)} rejected answers make no pairs. Fix: "
                "give at least one pair, both answers of each."
            )
        if precision is not None and not precision > 0:
            raise ModelError(f"a prior's precision is positive; got {precision}.")
        differences = chosen.double() - rejected.double()
        if reference is None:
            reference = (chosen.double().mean(dim=0) + rejected.double().mean(dim=0)) / 2
        factors, found = [], []
        for head in weight:
            fit = torch.nn.functional.logsigmoid(differences @ head).sum().item()
            hessian = bradley_terry_hessian(differences, head)
            factor, own = covariance_factor(hessian, head, fit, precision)
            factors.append(factor)
            found.append(own)
        return cls(
            weight, bias, torch.stack(factors), reference.double(), tuple(found), len(chosen)
        )

    @property
    def covariance(self) -> Tensor:
        """Of each head's weights, (K, H, H)."""
        return self.factor @ self.factor.mT

    def mean(self, features: Features) -> Tensor:
        """The trained model's own score, the mean of its heads; (B,)."""
        return self._heads(features).mean(dim=0)

    def std(self, features: Features) -> Tensor:
        """Deviation of the score's distance from that of the reference point, (B,)."""
        check_features(features, self.weight.shape[1])
        return self._deviation(features.double() - self.reference)

    def margin_std(self, chosen: Features, rejected: Features) -> Tensor:
        """sqrt(z^T S z) for the difference z of the two answers' features, (B,)."""
        check_features(chosen, self.weight.shape[1])
        check_features(rejected, self.weight.shape[1])
        return self._deviation(chosen.double() - rejected.double())

    def sample(self, features: Features, n: int, seed: int = 0) -> Tensor:
        """Scores by n heads drawn from the posterior, (n, B); the same heads for all rows."""
        check_features(features, self.weight.shape[1])
        draw = torch.Generator().manual_seed(seed)
        noise = torch.randn(n, self.weight.shape[1], generator=draw, dtype=torch.float64)
        which = torch.randint(len(self.weight), (n,), generator=draw)
        moved = (self.weight - self.weight.mean(dim=0))[which]
        for head, factor in enumerate(self.factor):
            moved[which == head] += noise[which == head] @ factor.T
        return self.mean(features) + moved @ (features.double() - self.reference).T

    def save(self, folder: Path) -> Path:
        """Write `laplace.safetensors` into a folder of the model's directory; returns the file.

        Raises:
            ModelError: the folder cannot be written.
        """
        tensors = {
            "weight": self.weight,
            "bias": self.bias,
            "factor": self.factor,
            "reference": self.reference,
            "precision": torch.tensor(self.precision, dtype=torch.float64),
            "pairs": torch.tensor(self.pairs),
        }
        ready = {name: tensor.contiguous() for name, tensor in tensors.items()}
        said = {"format": FORMAT, "weights": weights_digest(folder.parent) or ""}
        with saving(folder / FILE) as place:
            save_file(ready, place, metadata=said)
        return folder / FILE

    @classmethod
    def load(cls, folder: Path, head: tuple[Tensor, Tensor] | None = None) -> LastLayerLaplace:
        """Read what `save` wrote.

        Args:
            folder: that holds `laplace.safetensors`.
            head: weight and bias of the model that it is used with.

        Raises:
            ModelError: there is none, it is damaged, or it was fitted to another head or other
                weights than lie in the folder above.
        """
        fix = "Fix: align reward calibrate MODEL --data FILE --laplace."
        file = folder / FILE
        if not file.is_file():
            raise ModelError(f"there is no Laplace posterior at {file}. {fix}")
        try:
            with safe_open(file, framework="pt") as saved:
                said = saved.metadata() or {}
                kind = said.get("format")
                names = saved.keys()
                found = {name: saved.get_tensor(name) for name in names}
            if kind != FORMAT:
                raise ModelError(f"{file} is of format {kind!r}; {FORMAT!r} is expected. {fix}")
            posterior = cls(
                found["weight"],
                found["bias"],
                found["factor"],
                found["reference"],
                tuple(found["precision"].tolist()),
                int(found["pairs"]),
            )
        except (SafetensorError, KeyError) as error:
            raise ModelError(f"{file} is damaged ({error}). {fix}") from error
        if head is not None and not (
            head[0].shape == posterior.weight.shape
            and torch.allclose(head[0], posterior.weight, rtol=1e-2, atol=1e-4)  # bf16's rounding
        ):
            raise ModelError(f"{file} was fitted to another head than the model has. {fix}")
        check_weights(file, said.get("weights") or None, fix)
        return posterior

    def _heads(self, features: Features) -> Tensor:
        """(K, B)."""
        check_features(features, self.weight.shape[1])
        return self.weight @ features.double().T + self.bias[:, None]

    def _deviation(self, moved: Tensor) -> Tensor:
        """Deviation of w . moved over the mixture of heads, (B, H) to (B,)."""
        within = (moved @ self.factor).square().sum(dim=2).mean(dim=0)
        between = (self.weight @ moved.T).var(dim=0, unbiased=False)
        return (within + between).sqrt()


def bradley_terry_hessian(differences: Tensor, weight: Tensor, rows: int = 4096) -> Tensor:
    """Sum p (1 - p) z z^T, the Hessian of the negative log-likelihood at a head.

    Args:
        differences: (n, H) z, features of the chosen answers less those of the rejected.
        weight: (H,).
        rows: differences taken at once, for memory.

    Returns:
        (H, H).
    """
    total = differences.new_zeros(len(weight), len(weight))
    for part in differences.split(rows):
        p = torch.sigmoid(part @ weight)
        total += part.T @ (part * (p * (1 - p))[:, None])
    return total


def covariance_factor(
    hessian: Tensor, weight: Tensor, fit: float, precision: float | None = None
) -> tuple[Tensor, float]:
    """A square root of (Hessian + precision I)^-1, and the precision.

    Args:
        hessian: (H, H), of the negative log-likelihood at the head.
        weight: (H,) the head.
        fit: log-likelihood there.
        precision: of the prior; None: the one with the largest evidence.
    """
    curvature, axes = torch.linalg.eigh(hessian)
    curvature = curvature.clamp(min=0)  # rounding alone makes it negative
    if precision is None:
        precision = fit_precision(fit, weight, curvature)
    return (axes * (curvature + precision).rsqrt()).contiguous(), precision


def log_evidence(fit: float, weight: Tensor, curvature: Tensor, precision: float) -> float:
    """Laplace's approximation of the log marginal likelihood; exact for a Gaussian likelihood.

    log p(data | w) - precision / 2 |w|^2 + H / 2 log precision - 1 / 2 log det(Hessian)
    (MacKay 1992), which weighs how well w fits against how finely it had to be tuned.

    Args:
        fit: log p(data | w) at the head.
        weight: (H,) the head.
        curvature: (H,) eigenvalues of the likelihood's Hessian.
        precision: of the prior.
    """
    prior = -0.5 * precision * float(weight.square().sum())
    shrinkage = 0.5 * float((torch.log(curvature + precision) - math.log(precision)).sum())
    return fit + prior - shrinkage


def fit_precision(fit: float, weight: Tensor, curvature: Tensor) -> float:
    """The prior precision with the largest evidence, within 1e-6 to 1e6; arguments as above."""

    def loss(log: float) -> float:
        return -log_evidence(fit, weight, curvature, 10.0**log)

    start = min(range(-6, 7), key=loss)  # there may be several maxima
    found = optimize.minimize_scalar(
        loss,
        bounds=(max(start - 1.0, -6.0), min(start + 1.0, 6.0)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return float(10.0**found.x)
