"""Whether a judgement survives what should not matter: the order shown, spaces, other words.

`order_consistency` is for judges that compare two answers; `edit_consistency` and
`paraphrase_consistency` are for rewards that score one.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from feedback.errors import DataError
from feedback.schema import Text
from reward.errors import RewardError
from reward.functions import RewardFn, final, reward_name
from reward.probes import with_answer
from reward.probing import NOISE, check_rows, score_rows, spread
from reward.ranking_metrics import mean_interval
from reward.rewording import EDITS, Rewrite
from reward.statistics import Interval, share_interval, sign_test

Compare = Callable[..., Sequence[str]]  # judge(prompts, first, second) -> first, second or tie


@dataclass(frozen=True)
class OrderConsistency:
    """How a comparing judge behaves when its two answers change places."""

    judge: str
    n: int  # pairs
    consistent: Interval  # share of pairs judged alike in both orders
    first: float  # share of verdicts, ties left out, for the answer shown first; 0.5 is fair
    p_value: float  # sign test over prompts: does it lean to one place?
    changed: list[int]  # rows that were judged differently

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class EditConsistency:
    """How preferences between two answers fare when both are edited without changing a meaning."""

    name: str
    n: int  # pairs in which the edit changes something
    kept: Interval | None  # share whose preferred answer stays the same
    moved: Interval | None  # mean |change of score| of one answer, in standard deviations
    changed: list[int]  # rows whose preference turned


@dataclass(frozen=True)
class ParaphraseConsistency:
    """How much of the variance of scores lies between answers, not between their paraphrases."""

    answers: int
    texts: int  # originals and paraphrases
    reliability: float  # ICC(1): 1 wording does not matter, 0 it is all that matters
    moved: Interval  # mean |paraphrase - original|, in standard deviations over originals

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def order_consistency(
    compare: Compare,
    prompts: Sequence[Text],
    first: Sequence[Text],
    second: Sequence[Text],
    *,
    columns: Mapping[str, Sequence[Any]] | None = None,
    level: float = 0.95,
) -> OrderConsistency:
    """Ask a comparing judge about every pair in both orders (Zheng et al. 2023, section 3.3).

    Args:
        compare: `judge(prompts, first, second, **columns)`, which says first, second or tie for
            each pair, such as `reward.judge.PairwiseJudge(...).compare`.
        prompts: N prompts.
        first: N answers that are shown first, the first time.
        second: N answers to compare them with.
        columns: further columns of length N.
        level: confidence level.

    Raises:
        DataError: no pairs, or numbers that differ.
        RewardError: a verdict is missing, or is none of the three.
    """
    given = {name: list(values) for name, values in (columns or {}).items()}
    check_rows({**given, "prompts": prompts, "first": first, "second": second})
    one = _verdicts(compare, prompts, first, second, given)
    two = _verdicts(compare, prompts, second, first, given)
    back = {"first": "second", "second": "first", "tie": "tie"}
    alike = np.array([a == back[b] for a, b in zip(one, two, strict=True)])
    keys = _keys(prompts)
    worth = {"first": 1, "second": -1, "tie": 0}
    lean: dict[str, int] = {}
    for key, a, b in zip(keys, one, two, strict=True):
        lean[key] = lean.get(key, 0) + worth[a] + worth[b]
    decided = [verdict for verdict in (*one, *two) if verdict != "tie"]
    return OrderConsistency(
        judge=reward_name(compare),
        n=len(alike),
        consistent=share_interval(alike.astype(float), keys, level),
        first=decided.count("first") / len(decided) if decided else 0.5,
        p_value=sign_test(sum(v > 0 for v in lean.values()), sum(v < 0 for v in lean.values())),
        changed=[int(row) for row in np.flatnonzero(~alike)],
    )


def edit_consistency(
    reward_fn: RewardFn | Callable[..., Any],
    prompts: Sequence[Text],
    chosen: Sequence[Text],
    rejected: Sequence[Text],
    *,
    edits: Mapping[str, Rewrite] | None = None,
    seed: int = 0,
    batch_size: int = 256,
    columns: Mapping[str, Sequence[Any]] | None = None,
    level: float = 0.95,
) -> list[EditConsistency]:
    """Edit both answers of each pair and see whether the same one is still preferred.

    Args:
        reward_fn: scores a completion.
        prompts: N prompts.
        chosen: N answers.
        rejected: N answers to the same prompts.
        edits: rewriting functions by name, each `(text, draws) -> text`; default: those of
            `reward.rewording`.
        seed: of the draws.
        batch_size: answers per call.
        columns: further columns of length N.
        level: confidence level.

    Raises:
        DataError: no pairs, or numbers that differ.
        RewardError: the reward failed, or gives every answer the same score.
    """
    given = dict(columns or {})
    check_rows({**given, "prompts": prompts, "chosen": chosen, "rejected": rejected})
    twice = {name: [*values, *values] for name, values in given.items()}
    both = [*prompts, *prompts]
    texts = [*chosen, *rejected]
    before = score_rows(reward_fn, both, texts, twice, batch_size)
    unit = spread(before, reward_name(reward_fn))
    keys, n = _keys(prompts), len(prompts)
    found = []
    for name, edit in (EDITS if edits is None else edits).items():
        edited = [
            with_answer(text, edit(final(text), random.Random(f"{seed} {name} {final(text)}")))
            for text in texts
        ]
        rows = [i for i in range(n) if edited[i] != texts[i] or edited[n + i] != texts[n + i]]
        if not rows:
            found.append(EditConsistency(name, 0, None, None, []))
            continue
        part = [*rows, *(n + i for i in rows)]
        after = before.copy()
        after[part] = score_rows(
            reward_fn,
            [both[i] for i in part],
            [edited[i] for i in part],
            {column: [values[i] for i in part] for column, values in twice.items()},
            batch_size,
        )
        old, new = (_preferred(s[:n] - s[n:], unit)[rows] for s in (before, after))
        shift = (np.abs(after - before)[:n][rows] + np.abs(after - before)[n:][rows]) / 2 / unit
        clusters = [keys[i] for i in rows]
        found.append(
            EditConsistency(
                name,
                len(rows),
                share_interval((old == new).astype(float), clusters, level),
                mean_interval(shift, clusters, level),
                [row for row, turned in zip(rows, old != new, strict=True) if turned],
            )
        )
    return found


def paraphrase_consistency(
    reward_fn: RewardFn | Callable[..., Any],
    prompts: Sequence[Text],
    completions: Sequence[Text],
    paraphrases: Sequence[Sequence[Text]],
    *,
    batch_size: int = 256,
    columns: Mapping[str, Sequence[Any]] | None = None,
    level: float = 0.95,
) -> ParaphraseConsistency:
    """Score answers beside paraphrases of them that somebody wrote.

    The reliability is the intraclass correlation ICC(1) of Shrout and Fleiss (1979), Psychological
    Bulletin 86, with the mean number of texts for groups of different size.

    Args:
        reward_fn: scores a completion.
        prompts: N prompts.
        completions: N answers.
        paraphrases: of each answer, one or more.
        batch_size: answers per call.
        columns: further columns of length N.
        level: confidence level.

    Raises:
        DataError: fewer than two answers, one without a paraphrase, or numbers that differ.
        RewardError: the reward failed, or gives every answer the same score.
    """
    given = dict(columns or {})
    check_rows({**given, "prompts": prompts, "completions": completions, "more": paraphrases})
    bare = next((row for row, texts in enumerate(paraphrases) if not len(texts)), None)
    if bare is not None or len(prompts) < 2:
        what = "fewer than two answers" if bare is None else f"answer {bare} has no paraphrase"
        raise DataError(f"paraphrase consistency: {what}.")
    owner = [row for row, texts in enumerate(paraphrases) for _ in range(1 + len(texts))]
    texts = [text for row, more in enumerate(paraphrases) for text in (completions[row], *more)]
    spread_out = {name: [values[row] for row in owner] for name, values in given.items()}
    asked = [prompts[row] for row in owner]
    scores = score_rows(reward_fn, asked, texts, spread_out, batch_size)
    place = np.array(owner)
    sizes = np.bincount(place)
    starts = np.cumsum(sizes) - sizes
    originals = scores[starts]
    unit = spread(originals, reward_name(reward_fn))
    means = np.bincount(place, weights=scores) / sizes
    within = float(np.square(scores - means[place]).sum()) / (len(scores) - len(sizes))
    between = float(sizes @ np.square(means - scores.mean())) / (len(sizes) - 1)
    per = float(sizes.mean())
    moved = np.abs(scores - originals[place])
    moved = np.bincount(place, weights=moved) / (sizes - 1) / unit
    return ParaphraseConsistency(
        answers=len(sizes),
        texts=len(scores),
        reliability=(between - within) / (between + (per - 1) * within),
        moved=mean_interval(moved, _keys(prompts), level),
    )


def _verdicts(
    compare: Compare,
    prompts: Sequence[Text],
    first: Sequence[Text],
    second: Sequence[Text],
    columns: dict[str, list[Any]],
) -> list[str]:
    said = list(compare(list(prompts), list(first), list(second), **columns))
    wrong = next((v for v in said if v not in ("first", "second", "tie")), None)
    if wrong is not None or len(said) != len(prompts):
        what = f"said {wrong!r}" if wrong is not None else f"gave {len(said)} verdicts"
        raise RewardError(
            f"judge {reward_name(compare)!r} {what} for {len(prompts)} pairs; expected one of "
            "'first', 'second' and 'tie' each."
        )
    return said


def _preferred(margins: np.ndarray, unit: float) -> np.ndarray:
    """1, -1, or 0 where only rounding decides; (n,)."""
    return np.where(np.abs(margins) <= NOISE * unit, 0.0, np.sign(margins))


def _keys(prompts: Sequence[Text]) -> list[str]:
    return [json.dumps(prompt, sort_keys=True) for prompt in prompts]
