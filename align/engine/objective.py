"""The loss of a reward model on any kind of judgement, from values; no trainer is imported.

Every head has its own column of scores and its own losses: an example counts in a head as often as
the bootstrap drew it there. The terms beside the loss (embeddings, text, length) are per example,
and the same for all heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from align.engine.head import score_tokens
from align.engine.reward_batches import ObjectiveKind
from align.engine.scorer import Scores
from reward.debias import length_correlation_term
from reward.losses import (
    centring_term,
    class_weights,
    contrastive_term,
    davidson_loss,
    decided,
    focal_weights,
    generative_term,
    group_scores,
    pair_loss,
    plackett_luce_loss,
    ranking_pairs_loss,
    rao_kupper_loss,
    rating_loss,
    step_loss,
)
from reward.preferences import SOFT_LABEL

Batch = dict[str, Tensor]
TIES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "rao-kupper": rao_kupper_loss,
    "davidson": davidson_loss,
}
WIN, TIE = 0, 1  # classes of `class_weights`


@dataclass(frozen=True)
class TextHead:
    """A language model's head without its backbone, as `score_tokens` reads it."""

    head: nn.Module
    config: Any

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.head


@dataclass(frozen=True)
class Objective:
    """What is minimised; see `align.config.objective.ObjectiveSection` for the fields."""

    kind: ObjectiveKind = "pairs"
    loss: str = "bradley-terry"
    label_smoothing: float = 0.0
    focal: float = 0.0
    win_weight: float = 1.0
    tie_weight: float = 1.0
    centring: float = 0.0
    contrastive: float = 0.0
    generative: float = 0.0
    length: float = 0.0
    text_head: TextHead | None = None  # for `generative`

    def __call__(self, found: Scores, batch: Batch, tie: Tensor | None = None) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            found: of a `Scorer`, on the batch of a `RewardCollator`.
            batch: that batch.
            tie: the learnt parameter of a loss that knows ties.
        """
        return self.losses(found, batch, tie).mean() + self.terms(found, batch)

    def losses(self, found: Scores, batch: Batch, tie: Tensor | None = None) -> Tensor:
        """Weighted losses, (B, heads); of ratings (B, 1)."""
        scores = found.scores
        if self.kind == "ratings":
            each = rating_loss(scores, batch["scores"].to(scores), kind=self.loss)[:, None]  # type: ignore[arg-type]
            return each * batch["weight"][:, None]
        columns = [self._column(scores[:, h], batch, tie) for h in range(scores.shape[1])]
        return torch.stack(columns, dim=1) * batch["weight"][:, None] * batch["draws"]

    def _column(self, scores: Tensor, batch: Batch, tie: Tensor | None) -> Tensor:
        """Losses of one head, (B,)."""
        counts = batch["counts"]
        if self.kind == "pairs":
            return self._pairs(scores[0::2] - scores[1::2], batch, tie)
        table, real = group_scores(scores, counts)
        if self.kind == "steps":
            labels, _ = group_scores(batch["step_labels"].to(scores), counts)
            return step_loss(table, labels.nan_to_num(), real & ~labels.isnan())
        ranks, _ = group_scores(batch["ranks"], counts)
        if self.loss == "plackett-luce":
            order = ranks.masked_fill(~real, torch.iinfo(ranks.dtype).max).argsort(dim=1)
            return plackett_luce_loss(table, order.masked_fill(~real, -1), real)
        weighting = "answer" if self.loss == "pairs-of-answers" else "ranking"
        return ranking_pairs_loss(table, ranks, real, weighting)  # type: ignore[arg-type]

    def _pairs(self, margins: Tensor, batch: Batch, tie: Tensor | None) -> Tensor:
        soft = batch[SOFT_LABEL].to(margins)
        if self.loss in TIES:
            assert tie is not None
            win = decided(soft)
            weights = torch.where(win, self.win_weight, self.tie_weight)
            return weights * TIES[self.loss](margins, win.long(), tie)
        certain = bool((soft == 1).all())
        if certain:
            apart = batch["margin"].to(margins)
            losses = pair_loss(margins, margin=apart, label_smoothing=self.label_smoothing)
        else:
            losses = pair_loss(margins, soft_labels=soft)
        if not self.focal:
            return losses
        return losses * focal_weights(margins, self.focal, None if certain else soft)

    def terms(self, found: Scores, batch: Batch) -> Tensor:
        """What is added to the mean loss, a scalar."""
        total = found.scores.new_zeros(())
        scores, states = found.scores, found.states
        if self.centring and self.kind == "pairs":
            for head in range(scores.shape[1]):
                column = scores[:, head]
                term = centring_term(column[0::2], column[1::2], self.centring).mean()
                total = total + term / scores.shape[1]
        if self.contrastive:
            total = total + self.contrastive * contrastive_term(states[0::2], states[1::2]).mean()
        if self.length:
            lengths = batch["answer"].sum(dim=1).to(scores)
            groups = None
            if self.kind != "ratings":  # what a prompt does to all its answers' lengths is no bias
                groups = torch.arange(len(batch["counts"])).to(batch["counts"])
                groups = groups.repeat_interleave(batch["counts"])
            mean = scores.mean(dim=1)
            total = total + self.length * length_correlation_term(mean, lengths, groups)
        if self.generative:
            total = total + self.generative * self._text(found, batch).mean()
        return total

    def _text(self, found: Scores, batch: Batch) -> Tensor:
        """The chosen answers' mean negative log-likelihood per token, (B,)."""
        assert found.text is not None
        assert self.text_head is not None
        chosen = chosen_text(batch)
        targets = batch["input_ids"][chosen]
        if isinstance(self.text_head.head, nn.Module):  # frozen, and no part of the model
            self.text_head.head.to(found.text.device)
        logprobs, _ = score_tokens(self.text_head, found.text, targets)  # type: ignore[arg-type]
        table, real = group_scores(logprobs, chosen.sum(dim=1)[0::2])
        return generative_term(table, real)


def chosen_text(batch: Batch) -> Tensor:
    """The tokens of the chosen answers, (N, T) bool."""
    chosen = batch["answer"].bool().clone()
    chosen[1::2] = False
    return chosen


def balanced(soft_labels: Tensor, beta: float) -> tuple[float, float]:
    """Weights of wins and ties whose effective numbers come to the same (`class_weights`).

    Args:
        soft_labels: (N,) of all training pairs.
        beta: 0 weighs all pairs alike, 1 both classes alike.
    """
    weights = class_weights(torch.where(decided(soft_labels), WIN, TIE), beta).tolist()
    return weights[WIN], weights[TIE] if len(weights) > TIE else 1.0
