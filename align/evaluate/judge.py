"""Judges: what a judge is, and asking one so that a crash, an error or a position does no harm.

A judge either scores one completion at a time (a reward function, a reward model) or compares two.
A comparing judge is asked in both positions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from align.errors import RewardError
from align.evaluate.cache import BatchCache, cache_file, cache_key
from align.evaluate.generate import Completions, Progress, check_columns, repeat
from align.types import Text
from reward.functions import RewardFn, call_reward, reward_name

Verdict = Literal["first", "second", "tie"]
OUTCOME: dict[str, float] = {"first": 1.0, "tie": 0.5, "second": 0.0}


class CompareFn(Protocol):
    """A judge of two answers; it need not know that it will be asked in both positions."""

    def __call__(
        self, prompts: list[Text], first: list[Text], second: list[Text], **columns: Any
    ) -> Sequence[Verdict]:
        """Return "first", "second" or "tie" for each prompt."""
        ...


@dataclass(frozen=True)
class ScoringJudge:
    """Prefers the higher score; differences up to `tie_margin` are ties.

    `identity` names the judge's version (a model's fingerprint): with it, scores are kept in the
    run directory and a crashed evaluation does not ask again; without it nothing is kept.
    """

    score: RewardFn | Callable[..., Any]
    name: str
    tie_margin: float = 0.0
    identity: str | None = None


@dataclass(frozen=True)
class ComparingJudge:
    """Is shown two answers and names the better; `identity` as in `ScoringJudge`."""

    compare: CompareFn | Callable[..., Any]
    name: str
    identity: str | None = None


Judge = ScoringJudge | ComparingJudge


def as_judge(
    function: Callable[..., Any],
    name: str | None = None,
    tie_margin: float = 0.0,
    identity: str | None = None,
) -> Judge:
    """Wrap a function: one with parameters `first` and `second` compares, any other scores."""
    name = name or reward_name(function)
    try:
        parameters: set[str] = set(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # some callables written in C have no signature
        parameters = set()
    if {"first", "second"} <= parameters:
        return ComparingJudge(function, name, identity)
    return ScoringJudge(function, name, tie_margin, identity)


def score_completions(
    judge: ScoringJudge,
    name: str,
    completions: Completions,
    columns: Mapping[str, list[Any]] | None = None,
    *,
    batch_size: int = 256,
    run_dir: Path | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Scores of one model's completions, (P, G).

    Args:
        judge: what scores them.
        name: the model's name.
        completions: G samples of P prompts.
        columns: further dataset columns of length P, handed to the judge.
        batch_size: completions per call.
        run_dir: where finished batches are kept, if the judge has an identity.
        progress: called with (what, prompts done, P).

    Raises:
        RewardError: see `reward.functions.call_reward`.
        DataError: a column of another length.
    """

    def ask(prompts: list[Text], texts: list[list[Text]], extra: dict[str, Any]) -> list[float]:
        return call_reward(judge.score, prompts, texts[0], **extra)

    rows = _in_batches(ask, judge, (name,), (completions,), columns, batch_size, run_dir, progress)
    return np.array(rows, dtype=np.float64).reshape(len(completions.prompts), completions.samples)


def compare_completions(
    judge: ComparingJudge,
    names: tuple[str, str],
    a: Completions,
    b: Completions,
    columns: Mapping[str, list[Any]] | None = None,
    *,
    batch_size: int = 64,
    run_dir: Path | None = None,
    progress: Progress | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Verdicts on two models' completions, sample g of one against sample g of the other.

    Args:
        judge: what compares them.
        names: the models' names.
        a: completions of the first model.
        b: completions of the second, as many.
        columns: further dataset columns of length P, handed to the judge.
        batch_size: pairs per call.
        run_dir: where finished batches are kept, if the judge has an identity.
        progress: called with (what, prompts done, P).

    Returns:
        the share of a (1, 0.5 or 0) with a shown first, and with b shown first, each (P, G).

    Raises:
        RewardError: the judge raised, or did not return one verdict per pair.
        DataError: a column of another length.
    """

    def ask(
        prompts: list[Text], texts: list[list[Text]], extra: dict[str, Any]
    ) -> list[list[float]]:
        forward = _ask(judge, prompts, texts[0], texts[1], extra)
        backward = _ask(judge, prompts, texts[1], texts[0], extra)
        return [[one, 1.0 - two] for one, two in zip(forward, backward, strict=True)]

    rows = _in_batches(ask, judge, names, (a, b), columns, batch_size, run_dir, progress)
    verdicts = np.array(rows, dtype=np.float64).reshape(len(a.prompts), a.samples, 2)
    return verdicts[..., 0], verdicts[..., 1]


def _in_batches(
    ask: Callable[[list[Text], list[list[Text]], dict[str, Any]], list[Any]],
    judge: Judge,
    names: tuple[str, ...],
    completions: tuple[Completions, ...],
    columns: Mapping[str, list[Any]] | None,
    batch_size: int,
    run_dir: Path | None,
    progress: Progress | None,
) -> list[Any]:
    """`ask` over all completions, finished batches from the cache: one result per completion."""
    shape = completions[0]
    check_columns(shape.prompts, columns or {})
    prompts = repeat(shape.prompts, shape.samples)
    texts = [each.texts for each in completions]
    wide = {key: repeat(values, shape.samples) for key, values in (columns or {}).items()}
    key = cache_key("judge", judge.identity, judge.name, prompts, texts, wide, batch_size)
    keep = run_dir if judge.identity else None
    cache = BatchCache(cache_file(keep, "judge", judge.name, *names), key)
    found: list[Any] = []
    for start in range(0, len(prompts), batch_size):
        part = slice(start, start + batch_size)
        rows = cache.get(start)
        if rows is None:
            extra = {key: values[part] for key, values in wide.items()}
            rows = ask(prompts[part], [each[part] for each in texts], extra)
            cache.put(start, rows)
        found += rows
        if progress is not None:
            done = min(start + batch_size, len(prompts)) // shape.samples
            progress(f"{judge.name}: {' vs '.join(names)}", done, len(shape.prompts))
    return found


def _ask(
    judge: ComparingJudge,
    prompts: list[Text],
    first: list[Text],
    second: list[Text],
    columns: dict[str, list[Any]],
) -> list[float]:
    try:
        verdicts = list(judge.compare(prompts=prompts, first=first, second=second, **columns))
    except Exception as error:
        raise RewardError(
            f"judge {judge.name!r} raised {type(error).__name__}: {error} "
            f"(on {len(prompts)} pairs)."
        ) from error
    if len(verdicts) != len(prompts):
        raise RewardError(
            f"judge {judge.name!r} returned {len(verdicts)} verdicts, but {len(prompts)} pairs "
            "were given; return one of 'first', 'second', 'tie' per pair."
        )
    for row, verdict in enumerate(verdicts):
        if verdict not in OUTCOME:
            raise RewardError(
                f"judge {judge.name!r} returned {verdict!r} for pair {row}; expected 'first', "
                "'second' or 'tie'."
            )
    return [OUTCOME[verdict] for verdict in verdicts]
