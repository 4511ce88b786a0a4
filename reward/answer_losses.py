"""Losses of single answers: ratings in several attributes, and rewards of single steps."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from reward.loss_inputs import masked_mean, precise, real, same_shape

Kind = Literal["mse", "huber"]
How = Literal["min", "prod", "last", "mean"]


def rating_loss(
    predictions: Tensor, targets: Tensor, kind: Kind = "mse", delta: float = 1.0
) -> Tensor:
    """Regression on ratings, the mean over the attributes that are known.

    "mse" is (f - y)^2; "huber" is (f - y)^2 / 2 up to |f - y| = `delta` and delta (|f - y| -
    delta/2) beyond it, so that a slip of the pen pulls no harder than `delta` (Huber 1964).

    Args:
        predictions: (B, A).
        targets: (B, A), NaN where nobody rated the attribute.
        kind: "mse" or "huber".
        delta: of "huber", in points of the scale, above 0.

    Returns:
        (B,) losses, 0 where nothing is known.

    Raises:
        ValueError: a shape differs, the kind is unknown or `delta` is not above 0.
    """
    same_shape("targets", targets, "predictions", predictions)
    if kind not in get_args(Kind):
        raise ValueError(f"kind is {kind!r}; expected one of {get_args(Kind)}")
    if not delta > 0:
        raise ValueError(f"delta is {delta}; expected a number above 0, in points of the scale")
    predictions = precise(predictions)
    known = ~targets.isnan()
    # Zeros before the loss, not after it: the gradient of a NaN is NaN.
    error = (predictions - targets.to(predictions.dtype)).masked_fill(~known, 0.0)
    if kind == "mse":
        return masked_mean(error**2, known)
    losses = nn.functional.huber_loss(error, torch.zeros_like(error), reduction="none", delta=delta)
    return masked_mean(losses, known)


def ordinal_loss(predictions: Tensor, targets: Tensor, cuts: Tensor) -> Tensor:
    """-log likelihood of ratings on a scale with steps of unknown size, the mean over attributes.

    The cumulative logit model, McCullagh (1980), JRSS B 42: P(y <= c) = sigmoid(t_c - f) for
    thresholds t_0 < t_1 < ...

    Args:
        predictions: (B, A) f, in log-odds.
        targets: (B, A) 0 to C - 1, NaN where nobody rated the attribute.
        cuts: (C - 1,) or one row per attribute (A, C - 1), any real numbers, learnable: the first
            is t_0, the others are logs of the distances between neighbours.

    Returns:
        (B,) losses, 0 where nothing is known, NaN with a rating that is no step of the scale.

    Raises:
        ValueError: a shape does not fit.
    """
    same_shape("targets", targets, "predictions", predictions)
    predictions = precise(predictions)
    attributes = predictions.shape[-1]
    if cuts.dim() not in (1, 2) or (cuts.dim() == 2 and len(cuts) != attributes):
        raise ValueError(
            f"cuts has the shape {tuple(cuts.shape)}; expected (C - 1,) or ({attributes}, C - 1)"
        )
    raw = cuts.to(predictions.dtype).expand(attributes, -1)  # (A, C - 1)
    gaps = raw[:, 1:].exp()
    thresholds = torch.cat([raw[:, :1], gaps], dim=-1).cumsum(dim=-1)
    known = ~targets.isnan()
    rating = targets.masked_fill(~known, 0.0).long()
    last = raw.shape[-1]
    wrong = known & ((rating != targets) | (rating < 0) | (rating > last))

    def pick(table: Tensor, index: Tensor) -> Tensor:
        """table[a, index[b, a]], (B, A)."""
        return table.T.gather(0, index.clamp(0, len(table.T) - 1))

    # With x = t_c - f and y = t_(c-1) - f: sigmoid(x) - sigmoid(y) = sigmoid(x) sigmoid(-y)
    # (1 - exp(y - x)), whose logarithm loses nothing however far out f lies.
    upper = nn.functional.logsigmoid(pick(thresholds, rating) - predictions)
    lower = nn.functional.logsigmoid(predictions - pick(thresholds, rating - 1))
    loglik = upper.masked_fill(rating == last, 0.0) + lower.masked_fill(rating == 0, 0.0)
    if last > 1:
        between = pick((-(-gaps).expm1()).log(), rating - 1)
        loglik = loglik + between.masked_fill((rating == 0) | (rating == last), 0.0)
    return masked_mean(-loglik.masked_fill(wrong, float("nan")), known)


def combine_attributes(scores: Tensor, weights: Tensor, *, learned: bool = False) -> Tensor:
    """One reward from several attributes, sum_a w_a s_a.

    Args:
        scores: (B, A).
        weights: (A,). Given ones are taken as they are, negative ones too (of verbosity, say).
        learned: the weights are any real numbers, and w their softmax: 0 or more, sum 1.

    Returns:
        (B,).

    Raises:
        ValueError: the number of weights is another than that of attributes.
    """
    if weights.shape != scores.shape[-1:]:
        raise ValueError(
            f"weights has the shape {tuple(weights.shape)}; expected {tuple(scores.shape[-1:])}, "
            "one for each attribute of scores"
        )
    scores = precise(scores)
    weights = weights.to(scores.dtype)
    return scores @ (weights.softmax(dim=-1) if learned else weights)


def step_loss(step_scores: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cross-entropy of each step's label with sigmoid(score), the mean over an answer's steps.

    Process rewards, Lightman et al. (2023), arXiv 2305.20050, section 2.6.

    Args:
        step_scores: (B, S) log-odds that the step is right.
        labels: (B, S) 1 right, 0 wrong, or P(right), such as a share of roll-outs that succeed.
        mask: (B, S), 1 on steps with a label; all without it.

    Returns:
        (B,) losses, 0 where no step has a label.

    Raises:
        ValueError: a shape differs.
    """
    same_shape("labels", labels, "step_scores", step_scores)
    kept = real(mask, step_scores, "step_scores")
    scores = precise(step_scores).masked_fill(~kept, 0.0)
    losses = -nn.functional.logsigmoid(scores) + (1 - labels.to(scores.dtype)) * scores
    return masked_mean(losses, kept)


def aggregate_steps(step_scores: Tensor, mask: Tensor | None = None, how: How = "min") -> Tensor:
    """An answer's reward from its steps: the logarithm of one probability.

    Args:
        step_scores: (B, S) log-odds that the step is right.
        mask: (B, S), 1 on real steps; all without it.
        how: "min" the worst step's P(right), "prod" that of all steps together (Lightman et al.
            2023, section 2.6), "last" the last real step's, "mean" their mean.

    Returns:
        (B,) log-probabilities: products of many steps stay apart. NaN without any step.

    Raises:
        ValueError: `how` is unknown or a shape differs.
    """
    if how not in get_args(How):
        raise ValueError(f"how is {how!r}; expected one of {get_args(How)}")
    kept = real(mask, step_scores, "step_scores")
    logs = nn.functional.logsigmoid(precise(step_scores).masked_fill(~kept, 0.0))
    if how == "min":
        found = logs.masked_fill(~kept, float("inf")).amin(dim=-1)
    elif how == "prod":
        found = logs.masked_fill(~kept, 0.0).sum(dim=-1)
    elif how == "last":
        places = torch.arange(kept.shape[-1], device=kept.device)
        last = torch.where(kept, places, -1).amax(dim=-1, keepdim=True)
        found = logs.gather(-1, last.clamp(min=0)).squeeze(-1)
    else:
        low = torch.finfo(logs.dtype).min
        count = kept.sum(dim=-1).to(logs.dtype)  # the logarithm of an integer is float32
        found = logs.masked_fill(~kept, low).logsumexp(dim=-1) - count.log()
    return found.masked_fill(~kept.any(dim=-1), float("nan"))
