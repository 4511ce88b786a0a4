"""How sure a reward model is: one interface for ensembles, heads, Laplace and dropout.

A posterior is a distribution over reward functions. It reads *features*, (B, F), one row for each
answer; what the columns are is the posterior's affair: the scores of K members or heads for an
`EnsemblePosterior`, pooled last hidden states for one over the last layer (`reward.laplace`,
`reward.dropout`). A sample is one reward function, which scores every row that it is given; so the
margin of two answers is uncertain only as far as the functions differ about the *difference*.

Leaves out where features come from: `RewardModel.heads_scores` and `features`, `adapter_scores`
below, `reward.dropout.dropout_scores`; and a reward made of all this: `reward.posterior_reward`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from reward.errors import ModelError, RewardError
from reward.score import score_ids

Features: TypeAlias = Tensor
"""(B, F), one row for each answer."""


class RewardPosterior(ABC):
    """A distribution over reward functions; all numbers are raw scores, in nats."""

    @abstractmethod
    def mean(self, features: Features) -> Tensor:
        """Mean score, (B,) float64."""

    @abstractmethod
    def std(self, features: Features) -> Tensor:
        """Standard deviation of the score, (B,) float64."""

    @abstractmethod
    def sample(self, features: Features, n: int, seed: int = 0) -> Tensor:
        """Scores by n reward functions drawn from the posterior, (n, B) float64.

        Args:
            features: (B, F).
            n: how many functions.
            seed: the same seed draws the same functions, whatever the features.
        """

    @abstractmethod
    def margin_std(self, chosen: Features, rejected: Features) -> Tensor:
        """Standard deviation of r(chosen) - r(rejected), (B,) float64.

        Not what `std` gives for each: what a function gives both answers alike cancels.

        Args:
            chosen: (B, F).
            rejected: (B, F), the other answers of the same pairs.
        """

    def margin_mean(self, chosen: Features, rejected: Features) -> Tensor:
        """Mean of r(chosen) - r(rejected), (B,) float64; arguments as of `margin_std`."""
        return self.mean(chosen) - self.mean(rejected)

    def doubt(self, chosen: Features, rejected: Features) -> Tensor:
        """Chance that a function drawn from the posterior prefers the other answer than the mean.

        Phi(-|margin_mean| / margin_std), (B,) float64 in [0, 1/2]: a wide margin may still be far
        from 0, so this marks errors where the width alone does not. Arguments as of `margin_std`.
        """
        size, spread = self.margin_mean(chosen, rejected).abs(), self.margin_std(chosen, rejected)
        even = (size == 0) & (spread == 0)
        return torch.special.ndtr(-(size / spread).masked_fill(even, 0.0))

    def lower_bound(self, features: Features, pessimism: float = 1.0) -> Tensor:
        """Mean less `pessimism` standard deviations, (B,) float64.

        Coste et al. (2023), arXiv 2310.02743, eq. 5, take the variance off; a standard deviation is
        in the units of the reward, so that one `pessimism` fits every scale.
        """
        return self.mean(features) - pessimism * self.std(features)

    def worst(self, features: Features) -> Tensor:
        """The least score that any of finitely many functions gives, (B,) float64.

        Raises:
            RewardError: there are infinitely many, and no least score.
        """
        raise RewardError(
            f"{type(self).__name__} has no worst score: its functions are infinitely many. "
            "Fix: use the lower bound."
        )


class EnsemblePosterior(RewardPosterior):
    """K equally likely reward functions; features are their scores, (B, K).

    The members of a deep ensemble (Lakshminarayanan et al. 2017, arXiv 1612.01474), adapters on one
    base, heads on one trunk or dropout masks. It has no state: what the functions say is all.
    """

    def mean(self, features: Features) -> Tensor:
        """Mean over members, (B,)."""
        return self._scores(features).mean(dim=1)

    def std(self, features: Features) -> Tensor:
        """Biased standard deviation over members, (B,)."""
        return self._scores(features).std(dim=1, unbiased=False)

    def sample(self, features: Features, n: int, seed: int = 0) -> Tensor:
        """Scores of n members, (n, B): whole rounds of all, the rest without repetition."""
        scores = self._scores(features)
        draw = torch.Generator().manual_seed(seed)
        members = scores.shape[1]
        rounds = [torch.randperm(members, generator=draw) for _ in range(-(-n // members))]
        order = torch.cat(rounds)[:n] if rounds else torch.zeros(0, dtype=torch.long)
        return scores.T[order]

    def margin_std(self, chosen: Features, rejected: Features) -> Tensor:
        """Biased standard deviation of each member's own margin, (B,)."""
        return self.std(self._scores(chosen) - self._scores(rejected))

    def worst(self, features: Features) -> Tensor:
        """The least of the members' scores, (B,)."""
        return self._scores(features).amin(dim=1)

    def _scores(self, features: Features) -> Tensor:
        check_features(features)
        if features.shape[1] < 2:
            raise RewardError(
                "an ensemble's features are (B, K) scores of at least 2 members; got "
                f"{tuple(features.shape)}. Fix: transpose (K, B), or add members."
            )
        return features.double()


def check_features(features: Features, width: int | None = None) -> None:
    """Refuse what is not (B, F), or not of the width that a posterior was fitted on.

    Raises:
        RewardError: with the shape found and the one expected.
    """
    if features.ndim != 2 or (width is not None and features.shape[1] != width):
        wanted = "(B, F)" if width is None else f"(B, {width})"
        raise RewardError(f"features have shape {tuple(features.shape)}; {wanted} is expected.")


def adapter_scores(
    model: nn.Module,
    rows: Sequence[Sequence[int]],
    adapters: Sequence[str],
    padding: int,
    batch_size: int = 32,
) -> Features:
    """Scores by each of several adapters on one base: a LoRA ensemble, (N, K).

    Args:
        model: a PEFT sequence-classification model that holds the adapters, each with its head.
        rows: token ids.
        adapters: their names; K.
        padding: the token that fills rows up.
        batch_size: rows scored at once.

    Raises:
        ModelError: the model holds no adapter of that name.
    """
    held = list(getattr(model, "peft_config", {}))
    missing = [name for name in adapters if name not in held]
    if missing:
        raise ModelError(
            f"the model holds no adapter {missing[0]!r}; it holds {', '.join(held) or 'none'}. "
            "Fix: load it with model.load_adapter(folder, adapter_name=...)."
        )
    before = model.active_adapter
    found = []
    try:
        for name in adapters:
            model.set_adapter(name)  # type: ignore[operator]
            found.append(score_ids(model, rows, padding, batch_size))
    finally:
        model.set_adapter(before)  # type: ignore[operator]
    return torch.stack(found, dim=1)
