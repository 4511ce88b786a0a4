"""What a trained reward model is worth on held-out judgements, for run.json and the terminal."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from scipy import stats

from align.evaluate.reward_model import evaluate_reward_model
from reward.losses import preference_loss
from reward.model import RewardModel
from reward.preferences import SOFT_LABEL, is_tie
from reward.statistics import share_interval


def pair_results(rows: Dataset, fit_rows: Dataset, scorer: RewardModel) -> dict[str, Any]:
    """Accuracy, log-loss and calibration on held-out pairs beside a length-only rule.

    Pairs whose soft label is one half have no better answer: they are left out (`undecided` counts
    them), but for `soft_log_loss`, the cross-entropy of all pairs with their soft labels.
    """

    def score(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        return scorer.score(prompts, completions)

    pairs, labels = _decided(rows)
    results: dict[str, Any] = {"n": 0}
    if pairs:
        fitted = _decided(fit_rows)[0] or None
        results = evaluate_reward_model(pairs, score, fit_rows=fitted).as_dict()
    if labels is not None:
        chosen, rejected = (score(rows["prompt"], rows[name]) for name in ("chosen", "rejected"))
        margins = torch.tensor(chosen).double() - torch.tensor(rejected).double()
        loss = preference_loss(margins, torch.tensor(labels).double()).mean()
        results |= {"soft_log_loss": float(loss), "undecided": len(rows) - len(pairs)}
    return results


def in_words(results: dict[str, Any]) -> str:
    """The held-out figures on one line."""
    if "spearman" in results:
        return f"Spearman {results['spearman']}, error {results['mae']:.3f}, n = {results['n']}"
    undecided = f", {results['undecided']} ties left out" if results.get("undecided") else ""
    if not results["n"]:
        return f"no pair has a better answer{undecided}"
    interval = f"[{results['low']:.3f}, {results['high']:.3f}]"
    return f"accuracy {results['accuracy']:.3f} {interval}, n = {results['n']}{undecided}"


def _decided(rows: Dataset) -> tuple[list[dict[str, Any]], list[float] | None]:
    """Pairs that have a better answer, without the column of soft labels; and that column."""
    pairs = [
        {name: value for name, value in row.items() if name != SOFT_LABEL}
        for row in rows
        if not is_tie(row)
    ]
    return pairs, rows[SOFT_LABEL][:] if SOFT_LABEL in rows.column_names else None


def ranking_results(rows: Dataset, scorer: RewardModel) -> dict[str, Any]:
    """Share of right orders among better and worse answers to a prompt, and Kendall's tau-b.

    Pairs of one prompt are one cluster for the interval; tau is averaged over rankings.
    """
    right, clusters, taus = [], [], []
    for place, row in enumerate(rows):
        answers, ranks = row["responses"], np.asarray(row["ranks"])
        scores = np.asarray(scorer.score([row["prompt"]] * len(answers), answers))
        better = ranks[:, None] < ranks[None, :]
        outcome = (1 + np.sign(scores[:, None] - scores[None, :])) / 2
        right += outcome[better].tolist()
        clusters += [place] * int(better.sum())
        if len(set(scores)) > 1:
            taus.append(float(stats.kendalltau(scores, -ranks).statistic))
    share = share_interval(right, clusters)
    found = {"accuracy": share.value, "low": share.low, "high": share.high, "n": len(right)}
    return found | {"rankings": len(rows), "kendall_tau": float(np.mean(taus)) if taus else None}


def rating_results(rows: Dataset, scores: np.ndarray, aspects: dict[str, float]) -> dict[str, Any]:
    """Error and rank correlation of each aspect, and of their weighted sum.

    Args:
        rows: with `scores`.
        scores: (N, A) of the aspects' heads.
        aspects: weight of each, in the order of the columns.
    """
    found: dict[str, Any] = {"n": len(rows), "aspects": {}}
    table = np.array(
        [[_number(row["scores"].get(name)) for name in aspects] for row in rows], dtype=np.float64
    )
    for column, name in enumerate(aspects):
        found["aspects"][name] = _agreement(scores[:, column], table[:, column])
    whole = ~np.isnan(table).any(axis=1)
    weights = np.array(list(aspects.values()))
    return found | _agreement(scores[whole] @ weights, table[whole] @ weights)


def step_results(labels: list[np.ndarray], scores: list[np.ndarray]) -> dict[str, Any]:
    """Share of steps judged rightly at P(right) = 1/2; steps of an answer are one cluster.

    Args:
        labels: (S,) of each answer, NaN where unknown.
        scores: (S,) log-odds of each.
    """
    right, clusters = [], []
    for place, (label, score) in enumerate(zip(labels, scores, strict=True)):
        known = ~np.isnan(label)
        right += ((score[known] > 0) == (label[known] > 0.5)).astype(float).tolist()
        clusters += [place] * int(known.sum())
    share = share_interval(right, clusters)
    return {"accuracy": share.value, "low": share.low, "high": share.high, "n": len(right)}


def _agreement(scores: np.ndarray, given: np.ndarray) -> dict[str, Any]:
    """Mean absolute error, in points of the scale, and Spearman's correlation."""
    known = ~np.isnan(given)
    s, g = scores[known], given[known]
    if not len(s):
        return {"n": 0}
    varied = len(set(s)) > 1 and len(set(g)) > 1
    correlation = float(stats.spearmanr(s, g).statistic) if varied else None
    return {"mae": float(np.abs(s - g).mean()), "spearman": correlation, "n": len(s)}


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
