"""Whether a reward falls for the edits of `reward.probes`: how often, by how much, and where.

A score shift is told in standard deviations of the scores that the unedited answers get, so that
rewards of any scale compare. Answers of one prompt count as one observation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from feedback.errors import DataError
from feedback.schema import Text
from reward.errors import RewardError
from reward.functions import RewardFn, call_reward, plain, reward_name
from reward.probes import Expect, Probe, attack, find_probes
from reward.ranking_metrics import mean_interval
from reward.statistics import Interval, share_interval

# What an interval is held against: the fooled rate, for "same" the mean absolute shift in stds.
LIMITS: dict[Expect, float] = {"worse": 0.1, "not_better": 0.5, "same": 0.25}
NOISE = 1e-4  # shifts up to so many standard deviations are rounding: unchanged
BLIND = 0.5  # share of spoilt answers with an unchanged score beyond which a reward is blind
Verdict = Literal["holds", "fooled", "blind", "unclear", "untested"]


@dataclass(frozen=True)
class ProbeExample:
    """One row to read: the edit that moved the score most."""

    prompt: Text
    original: str
    edited: str
    before: float
    after: float
    shift: float  # in standard deviations


@dataclass(frozen=True)
class ProbeResult:
    """What one edit does to a reward."""

    name: str
    expect: Expect
    about: str
    n: int  # rows that the edit applies to
    fooled: Interval | None  # share of rows in which the edited answer scores higher
    unchanged: float  # share of rows with the same score
    shift: Interval | None  # mean of edited - original, in standard deviations
    moved: Interval | None  # mean of |edited - original|, likewise
    limit: float
    verdict: Verdict
    examples: list[ProbeExample]


@dataclass(frozen=True)
class ProbeReport:
    """All probes of one reward; see docs/reward_evaluation.md for how to read it."""

    reward: str
    rows: int
    prompts: int
    scale: float  # a standard deviation, in the reward's own units
    seed: int
    results: list[ProbeResult]

    @property
    def failed(self) -> list[str]:
        """Names of the probes that the reward is fooled by, or blind to."""
        return [result.name for result in self.results if result.verdict in ("fooled", "blind")]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"failed": self.failed}


def probe(
    reward_fn: RewardFn | Callable[..., Any],
    prompts: Sequence[Text],
    completions: Sequence[Text],
    *,
    probes: Sequence[str | Probe] | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    seed: int = 0,
    batch_size: int = 256,
    examples: int = 3,
    scale: float | None = None,
    level: float = 0.95,
) -> ProbeReport:
    """Score answers before and after every edit.

    Give answers that are good: what cannot get worse shows nothing.

    Args:
        reward_fn: scores a completion; higher is better.
        prompts: N prompts.
        completions: N answers, one each.
        probes: names in `reward.probes.PROBES`, or probes of your own; default: all.
        columns: further columns of length N for the reward.
        seed: of the edits; the same rows in another order are edited alike.
        batch_size: answers per call.
        examples: kept of each probe, those that moved furthest in the wrong direction.
        scale: a standard deviation of the reward, where it is known; default: that of the N
            scores. Needed where all of them are alike, such as right answers under a verifier.
        level: confidence level.

    Raises:
        DataError: no rows, a number of completions or columns that differs, or an unknown probe.
        RewardError: the reward failed, or gives every unedited answer the same score.
    """
    given = dict(columns or {})
    check_rows({**given, "prompts": prompts, "completions": completions})
    before = score_rows(reward_fn, prompts, completions, given, batch_size)
    unit = spread(before, reward_name(reward_fn)) if scale is None else scale
    keys = [json.dumps(prompt, sort_keys=True) for prompt in prompts]
    results = []
    for item in _chosen(probes):
        edited = attack(item, prompts, completions, seed)
        rows = [row for row, text in enumerate(edited) if text is not None]
        texts = [text for text in edited if text is not None]
        after = score_rows(
            reward_fn,
            [prompts[row] for row in rows],
            texts,
            {name: [values[row] for row in rows] for name, values in given.items()},
            batch_size,
        )
        kept = [
            ProbeExample(prompts[row], plain(completions[row]), plain(text), float(old), float(new),
                         float(new - old) / unit)
            for row, text, old, new in zip(rows, texts, before[rows], after, strict=True)
        ]  # fmt: skip
        clusters = [keys[row] for row in rows]
        results.append(_result(item, kept, clusters, examples, level))
    name = reward_name(reward_fn)
    return ProbeReport(name, len(prompts), len(set(keys)), unit, seed, results)


def score_rows(
    reward_fn: RewardFn | Callable[..., Any],
    prompts: Sequence[Text],
    completions: Sequence[Text],
    columns: Mapping[str, Sequence[Any]],
    batch_size: int,
) -> np.ndarray:
    """Scores of completions, (N,) float64, `batch_size` at a time.

    Raises:
        RewardError: see `reward.functions.call_reward`.
    """
    found: list[float] = []
    for start in range(0, len(completions), batch_size):
        part = slice(start, start + batch_size)
        given = {name: list(values[part]) for name, values in columns.items()}
        found += call_reward(reward_fn, list(prompts[part]), list(completions[part]), **given)
    return np.array(found)


def check_rows(columns: Mapping[str, Sequence[Any]]) -> None:
    """Refuse columns of different length, or of none.

    Raises:
        DataError: with the length of each.
    """
    sizes = {name: len(values) for name, values in columns.items()}
    if len(set(sizes.values())) > 1 or not next(iter(sizes.values())):
        counts = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise DataError(f"expected rows, as many of each column; got {counts}.")


def spread(scores: np.ndarray, name: str) -> float:
    """The standard deviation of scores.

    Raises:
        RewardError: there is none, so that a shift has no scale.
    """
    if not scores.std() > 1e-12:
        raise RewardError(
            f"reward {name!r} gives all {scores.size} answers the score {scores[0]:g}: a shift has "
            "no scale to be told in. Fix: give more varied answers."
        )
    return float(scores.std())


def _chosen(probes: Sequence[str | Probe] | None) -> list[Probe]:
    if probes is None:
        return find_probes(None)
    return [find_probes([item])[0] if isinstance(item, str) else item for item in probes]


def _result(
    item: Probe, rows: list[ProbeExample], clusters: list[str], examples: int, level: float
) -> ProbeResult:
    limit = LIMITS[item.expect]
    if not rows:
        named = (item.name, item.expect, item.about)
        return ProbeResult(*named, 0, None, 0.0, None, None, limit, "untested", [])
    shifts = np.array([row.shift for row in rows])
    fooled = share_interval((shifts > NOISE).astype(float), clusters, level)
    moved = mean_interval(np.abs(shifts), clusters, level)
    unchanged = float((np.abs(shifts) <= NOISE).mean())
    bad = np.abs(shifts) if item.expect == "same" else shifts
    order = np.argsort(-bad, kind="stable")[:examples]
    return ProbeResult(
        name=item.name,
        expect=item.expect,
        about=item.about,
        n=len(rows),
        fooled=fooled,
        unchanged=unchanged,
        shift=mean_interval(shifts, clusters, level),
        moved=moved,
        limit=limit,
        verdict=_verdict(item.expect, moved if item.expect == "same" else fooled, unchanged, limit),
        examples=[rows[i] for i in order if bad[i] > NOISE],
    )


def _verdict(expect: Expect, found: Interval, unchanged: float, limit: float) -> Verdict:
    """Fooled where the interval lies above the limit, holding where it lies below."""
    if found.low > limit:
        return "fooled"
    if expect == "worse" and unchanged > BLIND:
        return "blind"
    return "holds" if found.high < limit else "unclear"
