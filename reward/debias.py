"""A reward without its taste for length: residualised after training, or trained not to have one.

`fit_length` estimates how a reward rises with length on reference samples; `DebiasedReward` takes
that off. `length_correlation` and `length_correlation_term` are for a training loss, as in ODIN
(Chen et al. 2024, arXiv 2402.07319). Where length is worth something, both take that away too:
compare accuracies before and after.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from torch import Tensor

from feedback.schema import Text
from reward.errors import RewardError
from reward.functions import RewardFn, call_reward, load_reward_function, plain, reward_name
from reward.metrics import Numbers

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
            state = cls(knots=knots, values=values, **found)
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise RewardError(
                f"{path}: is no length state ({error}). Fix: write one with "
                "reward.debias.fit_length(...).save(path)."
            ) from error
        if len(knots) != len(values) or len(knots) < 2 or state.method not in get_args(Method):
            raise RewardError(f"{path}: is a damaged length state. Fix: fit it again.")
        return state


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
            RewardError: there is no such function, directory or state.
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
        own = folder.parent.name if folder.name == "model" else folder.name
        self.__name__ = f"{own if self.reward is None else reward_name(self.reward)}_debiased"

    def opened(self) -> Callable[..., Any]:
        """The reward that length is taken off; a model is loaded when it is first wanted.

        Raises:
            ModelError: it cannot be loaded.
        """
        if self.reward is None:
            from reward.model import RewardModel

            assert self.model is not None
            self.reward = RewardModel.load(self.model, normalise=self.normalise)
        return self.reward

    def __call__(
        self,
        prompts: list[Text],
        completions: list[Text],
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        """One float per completion; the mean that was taken off goes to `log_metric`."""
        scores = np.array(call_reward(self.opened(), prompts, completions, **columns))
        taken = self.state(lengths_of(completions, self.state.unit))
        if log_metric is not None and len(completions):
            log_metric(f"{self.__name__}/length_share", float(taken.mean()))
        return [float(value) for value in scores - taken]


def fit_length(
    scores: Numbers,
    lengths: Numbers,
    groups: Sequence[Hashable] | None = None,
    *,
    method: Method = "linear",
    unit: Unit = "characters",
    log: bool = True,
    knots: int = 6,
) -> LengthState:
    """Fit what a reward gives for length on samples of the policy that it will score.

    Args:
        scores: (N,) rewards.
        lengths: (N,) lengths of the completions, as `lengths_of` counts them.
        groups: (N,) prompts. Given, only differences between answers of one prompt are fitted, so
            that prompts which ask for long answers and are scored high for another reason teach
            nothing. Prompts with one answer then teach nothing at all.
        method: "linear"; "isotonic", monotone in the direction of the correlation; or "spline",
            broken lines between quantiles, which may rise and fall.
        unit: what `lengths` counts, kept in the state.
        log: fit log(1 + length), in which lengths are spread more evenly.
        knots: of the spline.

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
    )


def lengths_of(completions: Sequence[Text], unit: Unit = "characters") -> np.ndarray:
    """Lengths of completions, (N,)."""
    texts = [plain(completion) for completion in completions]
    return np.array([len(t) if unit == "characters" else len(t.split()) for t in texts], float)


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


def _feature(lengths: Numbers, log: bool) -> np.ndarray:
    array = np.asarray(lengths, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return np.log1p(array) if log else array


def _codes(groups: Sequence[Hashable]) -> np.ndarray:
    codes: dict[Hashable, int] = {}
    return np.array([codes.setdefault(group, len(codes)) for group in groups], dtype=int)


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


def _centred_tensor(values: Tensor, groups: Tensor | None) -> Tensor:
    if groups is None:
        return values - values.mean()
    _, codes = torch.unique(groups.to(values.device), return_inverse=True)
    count = int(codes.max()) + 1 if len(codes) else 0
    sums = torch.zeros(count, device=values.device).index_add(0, codes, values)
    sizes = torch.bincount(codes, minlength=count).clamp(min=1)
    return values - (sums / sizes)[codes]
