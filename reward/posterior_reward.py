"""A reward that knows how sure it is: the mean, a pessimistic bound, or the worst of a posterior.

A policy that over-optimises finds answers on which reward models err, and there their posterior is
wide; taking its width off the reward closes that way (Coste et al. 2023, arXiv 2310.02743;
Eisenstein et al. 2023, arXiv 2312.09244: it helps, and does not help where all members err alike).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from transformers import PretrainedConfig

from feedback.schema import Text
from reward.dropout import DropoutPosterior, config_rates, dropout_scores
from reward.errors import ModelError, RewardError
from reward.laplace import FILE, LastLayerLaplace
from reward.model import Normalisation, RewardModel, head_count, scores_steps, steps_of
from reward.posterior import EnsemblePosterior, Features, RewardPosterior
from reward.score import head_parameters

Mode = Literal["mean", "lower_bound", "worst"]
Kind = Literal["heads", "laplace", "dropout"]
STATE = "uncertainty"  # the folder beside the weights for what is fitted after training


class ReadFeatures(Protocol):
    """Features of completions, (B, F), as the posterior beside it reads them."""

    def __call__(self, prompts: list[Text], completions: list[Text], **columns: Any) -> Features:
        """(B, F)."""
        ...


class PosteriorReward:
    """A `RewardFn` of a posterior; also reports `reward/disagreement` and `reward/lower_bound`."""

    def __init__(
        self,
        posterior: RewardPosterior,
        read: ReadFeatures,
        *,
        mode: Mode = "lower_bound",
        pessimism: float = 1.0,
        normalisation: Normalisation | None = None,
        name: str = "posterior",
    ):
        """Join a posterior with what it reads.

        Args:
            posterior: of raw scores, unless the features are normalised already.
            read: features of prompts and completions.
            mode: what is returned: the mean, mean - pessimism * std, or the least.
            pessimism: k of the lower bound.
            normalisation: brings mean and std to the scale of reference samples.
            name: in metrics and errors.

        Raises:
            RewardError: a negative pessimism, an unknown mode, or one the posterior does not have.
        """
        if mode not in ("mean", "lower_bound", "worst") or not pessimism >= 0:
            raise RewardError(
                f"{name!r}: mode is one of mean, lower_bound, worst and pessimism is at "
                f"least 0; got {mode!r} and {pessimism}."
            )
        if mode == "worst" and isinstance(posterior, LastLayerLaplace):
            raise RewardError(
                f"{name!r}: a Laplace posterior has no worst score: its functions are infinitely "
                "many. Fix: use mode lower_bound."
            )
        self.posterior, self.read, self.normalisation = posterior, read, normalisation
        self.mode, self.pessimism = mode, pessimism
        self.__name__ = name

    def __call__(
        self,
        prompts: list[Text],
        completions: list[Text],
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        """One float per completion, in the mode; disagreement and bound go to `log_metric`."""
        if not completions:
            return []
        features = self.read(prompts, completions, **columns)
        shift, scale = 0.0, 1.0
        if self.normalisation is not None:
            shift, scale = self.normalisation.mean, self.normalisation.std
        mean = (self.posterior.mean(features) - shift) / scale
        spread = self.posterior.std(features) / scale
        bound = mean - self.pessimism * spread
        if log_metric is not None:
            log_metric("reward/disagreement", float(spread.mean()))
            log_metric("reward/lower_bound", float(bound.mean()))
        if self.mode == "worst":
            return ((self.posterior.worst(features) - shift) / scale).tolist()
        return (mean if self.mode == "mean" else bound).tolist()


def posterior_of(
    model: RewardModel,
    kind: Kind,
    *,
    folder: Path | None = None,
    rate: float | None = None,
    samples: int = 16,
    seed: int = 0,
) -> tuple[RewardPosterior, ReadFeatures]:
    """A reward model's posterior, and what reads its features.

    Args:
        model: a loaded reward model.
        kind: `heads` on its trunk, `laplace` as saved beside it, or `dropout`.
        folder: the model's directory, for `laplace`.
        rate: of `dropout` on pooled features; None: the model's own dropout.
        samples: masks of `dropout`.
        seed: of the masks.

    Raises:
        ModelError: the model has no such posterior.
    """

    def features(prompts: list[Text], completions: list[Text], **columns: Any) -> Features:
        return model.features(prompts, completions)

    def heads(prompts: list[Text], completions: list[Text], **columns: Any) -> Features:
        return model.heads_scores(prompts, completions).T

    def masks(prompts: list[Text], completions: list[Text], **columns: Any) -> Features:
        rows, padding = model.rows(prompts, completions), model.tokenizer.pad_token_id or 0
        size = model.batch_size
        return dropout_scores(
            model.model, rows, padding, samples=samples, seed=seed, batch_size=size
        )

    if kind not in get_args(Kind):
        raise ModelError(f"a posterior is heads, laplace or dropout, not {kind!r}.")
    if fault := kind_fault(model.model.config, kind, folder=folder, rate=rate):
        raise ModelError(f"{model.name}: {fault}")
    if kind == "heads":
        return EnsemblePosterior(), heads
    if kind == "laplace":
        if folder is None:
            raise ModelError(f"{model.name}: name the folder that holds the Laplace posterior.")
        return LastLayerLaplace.load(folder / STATE, head_parameters(model.model)), features
    if rate is None:
        return EnsemblePosterior(), masks
    return DropoutPosterior(*head_parameters(model.model), rate, samples, seed), features


def load_posterior_reward(
    path: str | Path,
    kind: Kind,
    *,
    mode: Mode = "lower_bound",
    pessimism: float = 1.0,
    normalise: bool = True,
    rate: float | None = None,
    samples: int = 16,
    name: str | None = None,
) -> PosteriorReward:
    """A reward of one saved model and its posterior; arguments as of the parts.

    Raises:
        ModelError: no such model, no statistics that `normalise` wants, or no such posterior.
        RewardError: a mode that the posterior does not have.
    """
    model = RewardModel.load(path, normalise=normalise)
    posterior, read = posterior_of(model, kind, folder=Path(path), rate=rate, samples=samples)
    return PosteriorReward(
        posterior,
        read,
        mode=mode,
        pessimism=pessimism,
        normalisation=model.normalisation,
        name=name or model.name,
    )


def kind_fault(
    config: PretrainedConfig, kind: Kind, *, folder: Path | None = None, rate: float | None = None
) -> str | None:
    """Why a model has no such posterior, seen without its weights; None: it has one.

    Args:
        config: of the model.
        kind: of posterior.
        folder: the model's directory, where `laplace` lies.
        rate: of dropout on pooled features.
    """
    if (how := steps_of(config)) is not None:
        return f"it {scores_steps(how)}"
    if kind == "heads" and head_count(config) < 2:
        return (
            "it has one head, and nothing to disagree with. Fix: train it with several heads, or "
            "use laplace or dropout."
        )
    if kind == "laplace" and folder is not None and not (folder / STATE / FILE).is_file():
        return (
            f"there is no {STATE}/{FILE} beside its weights. Fix: "
            "align reward calibrate MODEL --data FILE --laplace."
        )
    if kind == "dropout" and rate is None and not config_rates(config):
        return (
            "its config names no dropout, so all samples would be the same. Fix: set the rate "
            "(`dropout`) at which pooled features are dropped, or use heads or laplace."
        )
    return None
