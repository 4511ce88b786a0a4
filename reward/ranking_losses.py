"""Losses of K-wise rankings: Plackett-Luce, and all pairs of a ranking with the right weights.

Scores are (B, K), one row per prompt, padded to the most answers. `order` is (B, M), M <= K:
column numbers, the best first, as in `reward.training_rows.ranking_rows`, and -1 where no more
places are known. `mask` (B, K) is 1 on real answers. A real answer that `order` does not name is
worse than all that it does name, in an order unknown (a top-M ranking); an answer about which
nothing is known is left out by the mask. An order cannot say that two answers are equal:
`check_rankings` refuses one that names an answer twice. Ranks can, and pairs are made of those.

With two answers both losses are Bradley-Terry's, `preference_loss` of the difference, bit for bit.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from reward.loss_inputs import precise, real, same_shape

Weighting = Literal["answer", "ranking"]


def plackett_luce_loss(scores: Tensor, order: Tensor, mask: Tensor | None = None) -> Tensor:
    """-log likelihood of the rankings: each place is a choice among those not yet placed.

    The sum over places i of log sum_j exp(s_j - s_i), j over i and all that are worse; Luce (1959),
    Plackett (1975), Applied Statistics 24; ListMLE, Xia et al. (2008). Its size grows with the
    number of places. Needs B x M x K numbers of memory.

    Args:
        scores: (B, K).
        order: (B, M) column numbers, the best first; -1 where no more places are known.
        mask: (B, K), 1 on real answers; all without it.

    Returns:
        (B,) losses, 0 where no place is known.

    Raises:
        ValueError: shapes do not fit. Values are `check_rankings`'s to check.
    """
    difference, worse = _differences(scores, order, mask)
    # Below every score: adds nothing to a sum that has a term, and costs nothing without one, as
    # the last place and unknown ones.
    rest = difference.masked_fill(~worse, torch.finfo(difference.dtype).min).logsumexp(dim=-1)
    return -nn.functional.logsigmoid(-rest).sum(dim=-1)


def ranking_pairs_loss(
    scores: Tensor,
    ranks: Tensor,
    mask: Tensor | None = None,
    weighting: Weighting = "answer",
) -> Tensor:
    """Bradley-Terry's loss of every better against every worse answer of a ranking, weighted.

    Pairs of one ranking say much the same, so they may not count like pairs of many prompts.
    Answers of one rank are not compared.

    Args:
        scores: (B, K).
        ranks: (B, K), 1 the best; `order_ranks` makes them of an order.
        mask: (B, K), 1 on real answers; all without it.
        weighting: "answer" weighs each pair by 1/(K-1) for K real answers: an answer is in at most
            K-1 pairs, so it counts once however many were ranked; the weights of
            `reward.training_rows.ranking_pairs`. "ranking" takes the mean over the ranking's pairs,
            C(K, 2) of a full one, so that each ranking counts once: Ouyang et al. (2022), arXiv
            2203.02155, eq. 1.

    Returns:
        (B,) losses, 0 where there is no pair.

    Raises:
        ValueError: shapes do not fit, or the weighting is unknown.
    """
    if weighting not in get_args(Weighting):
        raise ValueError(f"weighting is {weighting!r}; expected one of {get_args(Weighting)}")
    there = real(mask, scores, "scores")
    same_shape("ranks", ranks, "scores", scores)
    better, scores = better_worse(ranks, there), precise(scores)
    difference = (scores[:, :, None] - scores[:, None, :]).masked_fill(~better, 0.0)
    losses = -nn.functional.logsigmoid(difference)
    total = losses.masked_fill(~better, 0.0).sum(dim=(1, 2))
    if weighting == "answer":
        return total / (there.sum(dim=-1) - 1).clamp(min=1)
    return total / better.sum(dim=(1, 2)).clamp(min=1)


def better_worse(ranks: Tensor, mask: Tensor) -> Tensor:
    """Which answer is better than which, (B, K, K) bool: [b, i, j] where i is better than j.

    Args:
        ranks: (B, K), 1 the best; equal ranks are ties.
        mask: (B, K) bool, True on real answers.
    """
    there = mask[:, :, None] & mask[:, None, :]
    return (ranks[:, :, None] < ranks[:, None, :]) & there


def order_ranks(order: Tensor, scores: Tensor) -> Tensor:
    """The rank of each answer in an order, (B, K) int64, 1 the best; unnamed ones share the last.

    Args:
        order: (B, M) column numbers, the best first; -1 where no more places are known.
        scores: (B, K), whose columns they are.

    Raises:
        ValueError: shapes do not fit.
    """
    if scores.dim() != 2 or order.dim() != 2 or len(order) != len(scores):
        raise ValueError(
            f"scores and order have the shapes {tuple(scores.shape)} and {tuple(order.shape)}; "
            "expected (B, K) and (B, M), M at most K"
        )
    places, answers = order.shape[1], scores.shape[1]
    ranks = torch.full((len(scores), answers + 1), places + 1, device=scores.device)
    numbers = torch.arange(1, places + 1, device=scores.device).expand(len(order), places)
    return ranks.scatter(1, torch.where(order >= 0, order, answers), numbers)[:, :answers]


def group_scores(scores: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of answers in one row as a padded matrix, one row per prompt.

    Args:
        scores: (N,) or (N, H), the answers of one prompt side by side.
        sizes: (B,) int, answers of each prompt; they sum to N.

    Returns:
        (B, K) or (B, K, H) scores, 0 in the padding, and the (B, K) bool mask of real ones.

    Raises:
        ValueError: the sizes do not sum to N.
    """
    sizes = sizes.to(scores.device)
    columns = torch.arange(int(sizes.max()) if len(sizes) else 0, device=scores.device)
    mask = columns < sizes[:, None]  # (B, K)
    if int(sizes.sum()) != len(scores):
        raise ValueError(
            f"sizes sum to {int(sizes.sum())}; expected {len(scores)}, the number of scores"
        )
    padded = scores.new_zeros(*mask.shape, *scores.shape[1:])
    return padded.index_put((mask,), scores), mask


def check_rankings(order: Tensor, mask: Tensor) -> None:
    """Refuse orders that mean nothing; collators call it, on the CPU, once per batch.

    Args:
        order: (B, M).
        mask: (B, K).

    Raises:
        ValueError: the first ranking that names an answer twice (a tie cannot be said), one that is
            not there, or a place after an unknown one.
    """
    known, mask = order >= 0, mask.bool()
    width = mask.shape[1]
    named = nn.functional.one_hot(torch.where(known, order, width).clamp(max=width), width + 1)
    problems = {
        f"has a number of {width} or more, or below -1": (order >= width) | (order < -1),
        "names an answer twice; an order has no ties, leave one of two equal answers out": (
            named.sum(dim=1)[:, :width] > 1
        ),
        "names an answer that the mask leaves out": (named.sum(dim=1)[:, :width] > 0) & ~mask,
        "knows a place after an unknown one (-1)": known[:, 1:] & ~known[:, :-1],
    }
    for problem, bad in problems.items():
        if bool(bad.any()):
            row = int(bad.any(dim=1).nonzero()[0])
            raise ValueError(f"order {row}, {order[row].tolist()}, {problem}")


def _differences(scores: Tensor, order: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """s_k - s_i for place i and answer k, (B, M, K), and where k is worse than i."""
    ranks, there = order_ranks(order, scores), real(mask, scores, "scores")
    scores, known, index = precise(scores), order >= 0, order.clamp(min=0).long()
    places = torch.arange(1, order.shape[1] + 1, device=scores.device)
    worse = known[:, :, None] & there[:, None, :] & (ranks[:, None, :] > places[:, None])
    return scores[:, None, :] - scores.gather(1, index)[:, :, None], worse
