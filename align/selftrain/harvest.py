"""Which of a policy's own answers it is trained on.

Rejection sampling keeps answers by their reward: the best of k of each question (RAFT, Dong et al.
2023, arXiv 2304.06767, algorithm 1), all at or above a threshold (ReST, Gulcehre et al. 2023; STaR,
Zelikman et al. 2022, arXiv 2203.14465, where the threshold is a right answer), or the best beside
the worst as a preference (iterated DPO by a fixed reward: Xu et al. 2023, arXiv 2312.16682; Pang et
al. 2024, arXiv 2404.19733). The policy judges none of them itself. Answers that were cut off are
never kept: training would append an end to them where none was.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from align.data.rows import plain_text
from align.errors import ConfigError, Problem
from feedback.schema import Text


@dataclass(frozen=True)
class Sample:
    """One answer that a policy drew."""

    question: int  # its place among the round's questions
    completion: Text
    score: float
    finished: bool  # it ended by itself
    hinted: bool = False  # drawn with the answer shown


def usable(sample: Sample) -> bool:
    """Whether an answer can be trained on at all: it says something, and ended by itself."""
    return sample.finished and bool(plain_text(sample.completion).strip())


def keep_best(samples: Sequence[Sample], most: int, threshold: float | None = None) -> list[Sample]:
    """The best different answers of each question, at most so many, in the questions' order.

    Args:
        samples: answers of any number of questions.
        most: of each question.
        threshold: the score that they need; None: whatever is best.

    Raises:
        ValueError: `most` below 1.
    """
    if most < 1:
        raise ValueError(f"at most {most} answers a question: at least 1 is expected.")
    kept = []
    for group in by_question(samples).values():
        seen: set[str] = set()
        ranked = sorted(
            filter(usable, group), key=lambda one: -one.score
        )  # of equal ones the first
        for one in ranked:
            words = plain_text(one.completion).strip()
            if len(seen) == most or (threshold is not None and one.score < threshold):
                break
            if words not in seen:
                seen.add(words)
                kept.append(one)
    return kept


def keep_pairs(samples: Sequence[Sample], gap: float) -> list[tuple[Sample, Sample]]:
    """The best and the worst answer of each question, where they are more than `gap` apart."""
    pairs = []
    for group in by_question(samples).values():
        ranked = sorted(filter(usable, group), key=lambda one: -one.score)
        if ranked and ranked[0].score - ranked[-1].score > gap:
            pairs.append((ranked[0], ranked[-1]))
    return pairs


def by_question(samples: Sequence[Sample]) -> dict[int, list[Sample]]:
    """Samples of each question, questions in their order."""
    found: dict[int, list[Sample]] = {}
    for one in samples:
        found.setdefault(one.question, []).append(one)
    return dict(sorted(found.items()))


def unanswered(samples: Sequence[Sample], questions: int, threshold: float) -> list[int]:
    """Questions without a usable answer at the threshold: those that a hint may help."""
    solved = {one.question for one in samples if usable(one) and one.score >= threshold}
    return [place for place in range(questions) if place not in solved]


def why_nothing(harvest: Mapping[str, Any]) -> str:
    """Why a round has nothing to train on, by what harvest.json counts."""
    drawn, able = harvest["drawn"], harvest["usable"]
    said = [f"no answer of {drawn} was kept"]
    if able < drawn:
        said.append(unusable(harvest))
    if able:
        limit = harvest["threshold"]
        few = f"{able} could be" if able < drawn else "all could be"
        said.append(
            f"{few}, and none of them has a reward of {limit:g} or more"
            if limit is not None
            else f"{few}, and no question has two whose rewards are far enough apart"
        )
    if harvest["solved"] and harvest["threshold"] is not None:
        solved = f"{harvest['solved']} of {harvest['questions']} questions were solved"
        said.append(f"{solved}, but by answers that are never kept")
    fix = ". Fix: raise rollout.max_new_tokens" if 2 * harvest.get("cut", 0) > drawn else ""
    return f"nothing to train on: {'; '.join(said)}{fix}"


def unusable(harvest: Mapping[str, Any]) -> str:
    """How many answers cannot be trained on, and why."""
    lost = harvest["drawn"] - harvest["usable"]
    cut = harvest.get("cut")  # of runs that began with an older version: unknown
    if cut is None or 0 < cut < lost:
        return f"{lost} were cut off or empty" + (f" ({cut} cut off)" if cut else "")
    return f"{lost} were {'cut off at rollout.max_new_tokens' if cut else 'empty'}"


def with_hint(prompt: Text, hint: str, columns: Mapping[str, Any]) -> Text:
    """A question with its answer shown, for STaR's rationalisation.

    Args:
        prompt: the question.
        hint: a template; `{prompt}` is the question (a conversation's last message), every other
            name one of the row's columns.
        columns: of the row.

    Raises:
        ConfigError: the template names something that the row does not have.
    """
    asked = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    try:
        text = hint.format(**{**columns, "prompt": asked})
    except (KeyError, IndexError, ValueError) as error:
        known = ", ".join(sorted({"prompt", *columns}))
        what = f"{hint!r} cannot be filled in ({type(error).__name__}: {error})."
        raise ConfigError([Problem("harvest.hint", what, f"a row has {known}.")]) from None
    if isinstance(prompt, str):
        return text
    turns = copy.deepcopy(prompt)
    turns[-1]["content"] = text
    return turns


def sft_row(prompt: Text, sample: Sample) -> dict[str, Any]:
    """A row that `align sft` reads; what was drawn with a hint is learnt without it."""
    return {"prompt": prompt, "completion": sample.completion, "score": sample.score} | (
        {"hinted": True} if sample.hinted else {}
    )


def dpo_row(prompt: Text, better: Sample, worse: Sample) -> dict[str, Any]:
    """A row that `align dpo` reads."""
    return {
        "prompt": prompt,
        "chosen": better.completion,
        "rejected": worse.completion,
        "gap": better.score - worse.score,
    }
