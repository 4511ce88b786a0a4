"""A reward without its taste for length: residualised after training, or trained not to have one.

`fit_length` estimates how a reward rises with length on reference samples; `DebiasedReward` takes
that off. `length_correlation` and `length_correlation_term` are for a training loss, as in ODIN
(Chen et al. 2024, arXiv 2402.07319). Where length is worth something, both take that away too:
compare accuracies before and after.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from feedback.schema import Text
from reward.call import RewardCall, call_together
from reward.errors import RewardError
from reward.functions import RewardFn, load_reward_function, reward_name
from reward.length_fit import LengthState, fit_length, lengths_of

__all__ = [
    "DebiasedReward",
    "LengthState",
    "fit_length",
    "length_correlation",
    "length_correlation_term",
    "lengths_of",
]


class DebiasedReward:
    """A `RewardFn`: another reward less what it gives for length alone."""

    def __init__(
        self,
        reward: RewardFn | Callable[..., Any] | str,
        state: LengthState | str | Path,
        *,
        kwargs: Mapping[str, Any] | None = None,
        normalise: bool = False,
    ):
        """Open the reward and the state.

        Args:
            reward: a reward function, `module:function`, or a reward model's directory.
            state: what `fit_length` returned, or the file that it was saved in.
            kwargs: fixed arguments of a `module:function`.
            normalise: scores of a reward model by its statistics. As at the fit: a state belongs
                to one scale.

        Raises:
            RewardError: there is no such function, directory or state, or the state was fitted on
                another scale than the reward's.
        """
        self.state = state if isinstance(state, LengthState) else LengthState.load(state)
        self.model: Path | None = None  # not read yet: a configuration is checked without weights
        self.normalise = normalise
        if not isinstance(reward, str):
            self.reward: Callable[..., Any] | None = reward
        elif ":" in reward and not Path(reward).exists():
            self.reward = load_reward_function(reward, kwargs=kwargs)
        else:
            self.reward, self.model = None, Path(reward)
            if not (self.model / "config.json").is_file():
                raise RewardError(
                    f"there is no reward model at {reward}. Fix: give the `model/` folder of an "
                    "`align reward` run, or module:function."
                )
        folder = self.model or Path()
        _check_scale(self.state, self.reward, self.model if normalise else None)
        own = folder.parent.name if folder.name == "model" else folder.name
        self.__name__ = f"{own if self.reward is None else reward_name(self.reward)}_debiased"

    def opened(self) -> Callable[..., Any]:
        """The reward that length is taken off; a model is loaded when it is first wanted.

        Raises:
            ModelError: it cannot be loaded.
        """
        if self.reward is None:
            from reward.process import load_reward

            assert self.model is not None
            self.reward = load_reward(self.model, normalise=self.normalise)
        return self.reward

    def __call__(
        self,
        prompts: list[Text],
        completions: list[Text],
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One float per completion, None where the reward says None.

        The mean that was taken off goes to `log_metric`.
        """
        given = {"prompts": prompts, "completions": completions, **columns}
        reward = self.opened()
        scores = call_together([RewardCall(reward_name(reward), reward, given)])[0].values
        taken = self.state(lengths_of(completions, self.state.unit))
        said = [float(t) for t, score in zip(taken, scores, strict=True) if score is not None]
        if log_metric is not None and said:
            log_metric(f"{self.__name__}/length_share", sum(said) / len(said))
        return [None if s is None else s - float(t) for s, t in zip(scores, taken, strict=True)]


def length_correlation(
    scores: Tensor, lengths: Tensor, groups: Tensor | None = None, eps: float = 1e-3
) -> Tensor:
    """Pearson correlation of scores and lengths in a batch, a scalar in [-1, 1]; differentiable.

    Args:
        scores: (B,) with gradient.
        lengths: (B,) in tokens, say; no gradient.
        groups: (B,) int64; given, both are centred within groups of equal number, such as the two
            answers of a pair.
        eps: a standard deviation below this counts as this, so that a batch of equal scores or
            lengths gives 0 and finite gradients.
    """
    x, y = scores.float(), lengths.detach().to(scores.device).float()
    x, y = _centred_tensor(x, groups), _centred_tensor(y, groups)
    scale = torch.sqrt(x.square().mean() + eps**2) * torch.sqrt(y.square().mean() + eps**2)
    return (x * y).mean() / scale


def length_correlation_term(
    scores: Tensor, lengths: Tensor, groups: Tensor | None = None, eps: float = 1e-3
) -> Tensor:
    """|correlation| of scores and lengths, a scalar to add to a reward loss with some weight.

    The first part of ODIN's length loss (Chen et al. 2024, arXiv 2402.07319, section 3.2), on the
    one head that is kept. Over the rows of this batch alone: a few dozen rows at least, or the
    correlation is noise. Takes what `length_correlation` takes.
    """
    return length_correlation(scores, lengths, groups, eps).abs()


def _centred_tensor(values: Tensor, groups: Tensor | None) -> Tensor:
    if groups is None:
        return values - values.mean()
    _, codes = torch.unique(groups.to(values.device), return_inverse=True)
    count = int(codes.max()) + 1 if len(codes) else 0
    sums = torch.zeros(count, device=values.device).index_add(0, codes, values)
    sizes = torch.bincount(codes, minlength=count).clamp(min=1)
    return values - (sums / sizes)[codes]


def _check_scale(state: LengthState, reward: Callable[..., Any] | None, model: Path | None) -> None:
    """Refuse a state that was fitted on another scale.

    Args:
        state: what was fitted.
        reward: a reward in memory, if it is.
        model: or the directory of a model whose scores will be normalised.

    Raises:
        RewardError: with both scales.
    """
    within = getattr(reward, "model", None)  # where a process reward keeps its statistics
    found: Any = getattr(reward, "normalisation", getattr(within, "normalisation", None))
    scale = None
    if found is not None:
        from reward.model import Normalisation

        scale = (found.mean, found.std) if isinstance(found, Normalisation) else None
    if model is not None:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        notes = config.get("align_reward") or {}
        if "mean" not in notes:
            return  # loading it says that it has no statistics
        scale = (float(notes["mean"]), float(notes["std"]))
    if scale == state.scale or (
        scale is not None
        and state.scale is not None
        and all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(scale, state.scale, strict=True))
    ):
        return
    shown = [
        "raw scores" if one is None else f"scores normalised by mean {one[0]:.4g}, std {one[1]:.4g}"
        for one in (state.scale, scale)
    ]
    raise RewardError(
        f"the length state was fitted on {shown[0]}, and the reward gives {shown[1]}. Fix: fit it "
        "on the scores that it is taken off (normalise of both; fit_length's normalisation)."
    )
