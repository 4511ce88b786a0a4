"""What people said of the pool's pairs: shares for training and measuring, rows, and their time.

A pair's answer is the share of its votes that prefer its first answer: 1, 0, or one half for a tie.
A ranking answers all pairs of its prompt. Everything is read from the store each time, so a label
that somebody changed or withdrew counts as it stands.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from align.active.pool import PairPool
from feedback.aggregate import aggregate
from feedback.schema import Comparison, Ranking, pair_id
from feedback.store import FeedbackStore
from reward.training_rows import ranking_pairs


@dataclass(frozen=True)
class Said:
    """What stands in the store now, of a pool's pairs."""

    shares: Mapping[str, float]  # by pair: the share of votes for its first answer
    votes: Mapping[str, int]  # by question (a pair or a ranking): answers and refusals
    rankings: tuple[Ranking, ...]
    times: Mapping[str, tuple[float, ...]]  # of all the store: seconds by "pair", "ranking 4"
    spent: float  # seconds of the pool's judgements, as far as they are known
    timed: int  # of how many
    judgements: int


def read_said(store: FeedbackStore, pool: PairPool) -> Said:
    """Read the store."""
    compared = [c for c in store.settled() if c.pair in pool.place]
    shares: dict[str, float] = {}
    rankings = [one for one in store.judgements() if isinstance(one, Ranking)]
    known = {pool.ranking_id(n) for n, g in enumerate(pool.groups) if len(g.answers) > 2}
    rankings = [one for one in rankings if one.item in known]
    for one in rankings:
        for better, worse in _pairs_of(one):
            name = pair_id(one.prompt, better, worse)
            if name in pool.place:
                shares[name] = 1.0 if _first(pool, name) == better else 0.0
    for verdict in aggregate(compared):  # what was said of a pair by itself comes before
        turned = verdict.response_a != _first(pool, verdict.pair)
        shares[verdict.pair] = 1 - verdict.share_a if turned else verdict.share_a
    everything = [
        one
        for one in store.standing()
        if one.judgement is None or isinstance(one.judgement, Comparison | Ranking)
    ]
    standing = [s for s in everything if s.item.id in known or s.item.id in pool.place]
    times: dict[str, list[float]] = {}
    spent, timed = 0.0, 0
    ours = {id(one) for one in standing}
    for place in everything:
        judged = place.judgement
        if not isinstance(judged, Comparison | Ranking) or judged.lead_time is None:
            continue
        seconds = judged.lead_time
        if not 0 < seconds < math.inf:
            continue
        kind = f"ranking {len(judged.responses)}" if isinstance(judged, Ranking) else "pair"
        times.setdefault(kind, []).append(seconds)
        if id(place) in ours:
            spent, timed = spent + seconds, timed + 1
    return Said(
        shares,
        Counter(s.item.id for s in standing if not s.adjudicated),
        tuple(rankings),
        {kind: tuple(found) for kind, found in times.items()},
        spent,
        timed,
        sum(s.judgement is not None for s in standing),
    )


def training_rows(pool: PairPool, said: Said, held: Collection[str]) -> list[dict[str, Any]]:
    """Preference rows of all answered pairs whose prompts are not held out; ties teach nothing.

    With rankings among them every row has a `weight`, so that an answer counts once however many
    it was ranked with (`reward.training_rows.ranking_pairs`).

    Args:
        pool: the pairs.
        said: what stands of them.
        held: ids of the pairs that are never trained on.
    """
    kept = [r for r in said.rankings if not _names(r) & set(held)]
    ranked = {name for ranking in kept for name in _names(ranking)}
    rows = []
    for name, share in said.shares.items():
        if name in held or name in ranked or share == 0.5:
            continue
        pair = pool.pairs[pool.place[name]]
        group = pool.groups[pair.group]
        if group.answers[pair.first].strip() == group.answers[pair.second].strip():
            continue  # no model could tell them apart
        places = (pair.first, pair.second) if share > 0.5 else (pair.second, pair.first)
        texts = [_as_given(group.prompt, group.answers[place]) for place in places]
        rows.append({"prompt": group.prompt, "chosen": texts[0], "rejected": texts[1]})
    if kept:
        rows = [row | {"weight": 1.0} for row in rows] + ranking_pairs(kept)
    return rows


def credit(shares: np.ndarray, p: np.ndarray) -> np.ndarray:
    """How right a model is on pairs, (n,) in [0, 1]: half for a tie of the people or of the model.

    Args:
        shares: (n,) of the votes for the first answer.
        p: (n,) the model's probability of it.
    """
    said, believed = np.sign(shares - 0.5), np.sign(p - 0.5)
    return np.where(said * believed == 0, 0.5, (said == believed).astype(np.float64))


def _names(ranking: Ranking) -> set[str]:
    return {pair_id(ranking.prompt, *both) for both in _pairs_of(ranking)}


def _pairs_of(ranking: Ranking) -> list[tuple[str, str]]:
    """(better, worse) of all pairs of a ranking."""
    texts = [ranking.responses[place] for place in ranking.order]
    return [(a, b) for n, a in enumerate(texts) for b in texts[n + 1 :] if a != b]


def _first(pool: PairPool, name: str) -> str:
    pair = pool.pairs[pool.place[name]]
    return pool.groups[pair.group].answers[pair.first]


def _as_given(prompt: Any, text: str) -> Any:
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
