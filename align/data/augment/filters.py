"""Which of the rows that somebody or something made are worth keeping.

Heuristics that need no language: length, letters, repetition (Rae et al. 2021, "Scaling Language
Models: Methods, Analysis & Insights from Training Gopher", arXiv 2112.11446, appendix A1.1), open
code fences and slots that nothing filled; then near-duplicates of the rows that are there and of
each other (`align.data.dedup`, as Self-Instruct does by ROUGE-L, Wang et al. 2023, arXiv
2212.10560); and last, since it costs most, a reward. None of them knows whether a row is true.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import regex

from align.config.augment import QualitySection
from align.data.augment.fields import texts_of
from align.data.augment.protect import protected
from align.data.dedup import near_duplicates, row_texts
from align.data.rows import Row, normalise, plain_text
from align.errors import ConfigError, DataError, Problem, RewardError
from reward.functions import call_reward, load_reward_function

Score = Callable[[Sequence[Row]], Sequence[float]]
_SLOT = regex.compile(r"(?<![\w}\\^_])\{[A-Za-z_]\w+\}")  # not the braces of LaTeX
N = 3  # words of a repeated piece


def heuristic_problem(text: str, quality: QualitySection) -> str | None:
    """What is wrong with a text by its looks; None where nothing is."""
    size = len(text.strip())
    if size < quality.min_chars:
        return "too short"
    if size > quality.max_chars:
        return "too long"
    if _SLOT.search(_without_code(text)):
        return "an empty slot"
    if text.count("```") % 2:
        return "an open code fence"
    prose = _without_code(text)
    marks = [c for c in prose if not c.isspace()]
    if marks and sum(c.isalnum() for c in marks) < quality.letters * len(marks):
        return "hardly any letters"
    if repetition(prose) > quality.repetition:
        return "repetition"
    return None


def repetition(text: str) -> float:
    """The share of a text's words that stand in a 3-gram seen before in it, in [0, 1]."""
    words = text.casefold().split()
    if len(words) <= N:
        return 0.0
    seen, covered = set[tuple[str, ...]](), set[int]()
    for at in range(len(words) - N + 1):
        piece = tuple(words[at : at + N])
        if piece in seen:
            covered |= set(range(at, at + N))
        seen.add(piece)
    return len(covered) / len(words)


def filter_rows(
    made: Sequence[Row],
    existing: Sequence[Row],
    quality: QualitySection,
    score: Score | None = None,
    *,
    by_prompt: bool = False,
) -> tuple[list[Row], dict[str, int]]:
    """The made rows that pass, in order, and why others do not.

    Args:
        made: rows in canonical columns.
        existing: rows that none may nearly repeat.
        quality: the thresholds.
        score: the reward of rows with a completion, where `quality.least` is set.
        by_prompt: a row repeats another by its prompt alone, whatever the answers say.

    Returns:
        The rows, and a count for each reason.

    Raises:
        DataError: the reward failed.
    """
    reasons: Counter[str] = Counter()
    kept = []
    for row in made:
        said = texts_of(row.values, ("all",)).values()
        problems = [heuristic_problem(text, quality) for text in said]
        found = next((problem for problem in problems if problem), None)
        if found is None and not said:
            found = "empty"
        if found:
            reasons[found] += 1
        else:
            kept.append(row)
    names = ("prompt",) if by_prompt else None
    texts = [_fields(row, names) for row in (*existing, *kept)]
    again = near_duplicates(texts, quality.near_threshold)[len(existing) :]
    reasons["near-duplicate"] += sum(again)
    kept = [row for row, is_copy in zip(kept, again, strict=True) if not is_copy]
    if score is not None and quality.least is not None and kept:
        scores = score(kept)
        reasons["low reward"] += sum(value < quality.least for value in scores)
        kept = [row for row, value in zip(kept, scores, strict=True) if value >= quality.least]
    return kept, {reason: count for reason, count in reasons.items() if count}


def reward_score(quality: QualitySection) -> Score | None:
    """The reward that a quality section names, not loaded before it is asked.

    Raises:
        ConfigError: a function that cannot be imported, or a directory that is not there.
    """
    if quality.reward is None:
        return None
    spec = quality.reward
    is_function = ":" in spec and not Path(spec).exists()
    try:
        function: Any = load_reward_function(spec) if is_function else None
    except RewardError as error:
        raise ConfigError([Problem("quality.reward", str(error))]) from error
    if not is_function and not Path(spec).is_dir():
        fix = "name a reward model's directory, or module:function."
        raise ConfigError([Problem("quality.reward", f"{spec} is no directory.", fix)])

    def score(rows: Sequence[Row]) -> list[float]:
        from reward.process import load_reward

        reward = function or load_reward(spec)
        try:
            values = call_reward(
                reward,
                [row.values["prompt"] for row in rows],
                [row.values["completion"] for row in rows],
            )
        except RewardError as error:
            raise DataError(f"data.augment: quality.reward {spec}: {error}") from error
        return [float("-inf") if value is None else value for value in values]

    return score


def _fields(row: Row, names: Sequence[str] | None) -> tuple[str, ...]:
    if names is None:
        return row_texts(row)
    return tuple(normalise(plain_text(row.values[n])) for n in names if n in row.values)


def show(row: Row) -> str:
    """A row as a model is shown it."""
    parts = {name: row.values[name] for name in ("prompt", "completion") if name in row.values}
    return "\n".join(f"{name.capitalize()}: {plain_text(text)}" for name, text in parts.items())


def _without_code(text: str) -> str:
    spans = protected(text, ("code",))
    kept, at = list[str](), 0
    for start, end in spans:
        kept.append(text[at:start])
        at = end
    return " ".join([*kept, text[at:]])
