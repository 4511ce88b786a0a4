"""From rankings, ratings, thumbs and corrections to the rows that trainers read.

Rows are TRL's formats with an explicit prompt; a conversational prompt gets conversational answers.
What two or more people say of the same thing is one row where it can be: ratings are averaged,
thumbs decided by majority. Pairs are `reward.preferences`'s. Nothing here reads a store or a file.

| from        | row                                       | for                           |
|-------------|-------------------------------------------|-------------------------------|
| rankings    | `prompt`, `responses`, `order`            | a K-wise (Plackett-Luce) loss |
|             | `prompt`, `chosen`, `rejected`, `weight`  | reward models, DPO            |
| ratings     | `prompt`, `completion`, `scores`          | regression                    |
|             | `prompt`, `chosen`, `rejected` (`margin`) | reward models, DPO            |
| thumbs      | `prompt`, `completion`, `label`           | KTO                           |
| corrections | `prompt`, `completion`                    | SFT                           |
|             | `prompt`, `chosen`, `rejected`            | reward models, DPO            |
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any, Literal, TypeAlias, TypeVar

from feedback.schema import Correction, Message, Ranking, Rating, Text, Thumb

Row: TypeAlias = dict[str, Any]  # columns of a dataset
J = TypeVar("J", Rating, Thumb)


def ranking_rows(rankings: Iterable[Ranking]) -> list[Row]:
    """One row per ranking: K `responses` and their `order`, indices with the best first."""
    return [
        {
            "prompt": ranking.prompt,
            "responses": [_answer(text, ranking.prompt) for text in ranking.responses],
            "order": list(ranking.order),
        }
        for ranking in rankings
    ]


def ranking_pairs(
    rankings: Iterable[Ranking], pairs: Literal["all", "best-worst"] = "all"
) -> list[Row]:
    """Preference rows of rankings, best against worst or every better against every worse answer.

    Args:
        rankings: orders of K answers each.
        pairs: "all" gives K(K-1)/2 rows, each with `weight` 1/(K-1): an answer is in K-1 of them,
            so that each answer counts once however many were ranked (InstructGPT, Ouyang et al.
            2022, section 3.5, weighs by 1/C(K,2), which is one per ranking instead). "best-worst"
            gives one row of weight 1.

    Equal answers make no pair.
    """
    rows = []
    for ranking in rankings:
        texts = [ranking.responses[i] for i in ranking.order]
        ends = [(texts[0], texts[-1])]
        chosen_pairs = list(combinations(texts, 2)) if pairs == "all" else ends
        weight = 1 / (len(texts) - 1) if pairs == "all" else 1.0
        rows += [
            _preference(ranking.prompt, better, worse) | {"weight": weight}
            for better, worse in chosen_pairs
            if better != worse
        ]
    return rows


def regression_rows(ratings: Iterable[Rating]) -> list[Row]:
    """One row per rated answer: `scores` is the mean of each aspect over the people who gave it."""
    rows = []
    for group in _by_answer(ratings):
        first = group[0]
        rows.append(
            {
                "prompt": first.prompt,
                "completion": _answer(first.response, first.prompt),
                "scores": _mean_scores(group),
            }
        )
    return rows


def rating_pairs(
    ratings: Iterable[Rating],
    least: float = 1.0,
    weights: Mapping[str, float] | None = None,
    *,
    same_annotator: bool = False,
    margin: bool = False,
) -> list[Row]:
    """Preference rows of two answers to one prompt whose ratings differ by enough.

    An answer's score is the weighted mean of its aspects, each averaged over people. Two answers
    are compared on the aspects that both have; without a common one they make no row.

    Args:
        ratings: scores of 1 to 7 per aspect.
        least: the smallest difference that counts, in points of the scale; above 0.
        weights: of the aspects, 0 or more; an aspect that is not named counts 0. Default: all 1.
        same_annotator: compare only what one and the same person said, and average the differences
            over people. People use scales differently; with this on, a mild rater's 6 for one
            answer does not beat a severe one's 4 for another.
        margin: add `margin`, the difference. TRL's RewardTrainer subtracts it inside the loss
            whenever the column is there.

    Raises:
        ValueError: `least` is not above 0, or a weight is negative.
    """
    if not least > 0:
        raise ValueError(f"least is {least}; expected a number above 0, in points of the scale")
    for aspect, value in (weights or {}).items():
        if not value >= 0:
            raise ValueError(f"the weight of {aspect!r} is {value}; expected 0 or more")
    rows = []
    for answers in _by_prompt(_by_answer(ratings)):
        for first, second in combinations(answers, 2):
            difference = _difference(first, second, weights, same_annotator)
            if difference is None or abs(difference) < least:
                continue
            better, worse = (first, second) if difference > 0 else (second, first)
            row = _preference(first[0].prompt, better[0].response, worse[0].response)
            rows.append(row | ({"margin": abs(difference)} if margin else {}))
    return rows


def unpaired_rows(thumbs: Iterable[Thumb], aggregate: bool = True) -> list[Row]:
    """KTO's rows, `prompt`, `completion`, `label`.

    Args:
        thumbs: up or down, by one or more people.
        aggregate: one row per answer by majority, ties left out; off, one row per thumb.
    """
    groups = _by_answer(thumbs) if aggregate else [[thumb] for thumb in thumbs]
    rows = []
    for group in groups:
        balance = sum(1 if thumb.good else -1 for thumb in group)
        if balance:
            first = group[0]
            answer = _answer(first.response, first.prompt)
            rows.append({"prompt": first.prompt, "completion": answer, "label": balance > 0})
    return rows


def sft_rows(corrections: Iterable[Correction]) -> list[Row]:
    """`prompt` and `completion`, the answer as a person would have it; repeats once."""
    kept = {_key(c.prompt, c.corrected): c for c in corrections}
    return [
        {"prompt": c.prompt, "completion": _answer(c.corrected, c.prompt)} for c in kept.values()
    ]


def correction_pairs(corrections: Iterable[Correction]) -> list[Row]:
    """Preference rows, the corrected answer chosen over the one shown; repeats once.

    A correction of nothing (a demonstration) or one that changes nothing makes none.
    """
    kept = {_key(c.prompt, c.response, c.corrected): c for c in corrections}
    return [
        _preference(c.prompt, c.corrected, c.response)
        for c in kept.values()
        if c.response not in ("", c.corrected)
    ]


def _by_answer(judgements: Iterable[J]) -> list[list[J]]:
    """Judgements of the same answer to the same prompt together, first seen first."""
    groups: dict[str, list[J]] = {}
    for item in judgements:
        groups.setdefault(_key(item.prompt, item.response), []).append(item)
    return list(groups.values())


def _by_prompt(groups: Iterable[list[Rating]]) -> Iterator[list[list[Rating]]]:
    prompts: dict[str, list[list[Rating]]] = {}
    for group in groups:
        prompts.setdefault(_key(group[0].prompt), []).append(group)
    yield from prompts.values()


def _mean_scores(ratings: Iterable[Rating]) -> dict[str, float]:
    given: dict[str, list[int]] = {}
    for rating in ratings:
        for aspect, score in rating.scores.items():
            given.setdefault(aspect, []).append(score)
    return {aspect: sum(scores) / len(scores) for aspect, scores in given.items()}


def _difference(
    first: list[Rating],
    second: list[Rating],
    weights: Mapping[str, float] | None,
    same_annotator: bool,
) -> float | None:
    """How much better the first answer is rated than the second; None if they do not compare."""
    if not same_annotator:
        return _weighted_difference(_mean_scores(first), _mean_scores(second), weights)
    people = {rating.annotator for rating in first} & {rating.annotator for rating in second}
    found = []
    for person in sorted(people):
        own = [_mean_scores(r for r in group if r.annotator == person) for group in (first, second)]
        if (difference := _weighted_difference(own[0], own[1], weights)) is not None:
            found.append(difference)
    return sum(found) / len(found) if found else None


def _weighted_difference(
    first: Mapping[str, float], second: Mapping[str, float], weights: Mapping[str, float] | None
) -> float | None:
    common = {
        aspect: 1.0 if weights is None else weights.get(aspect, 0.0)
        for aspect in first
        if aspect in second
    }
    total = sum(common.values())
    if not total:
        return None
    return sum(w * (first[aspect] - second[aspect]) for aspect, w in common.items()) / total


def _preference(prompt: Text, chosen: str, rejected: str) -> Row:
    return {
        "prompt": prompt,
        "chosen": _answer(chosen, prompt),
        "rejected": _answer(rejected, prompt),
    }


def _key(*texts: Text) -> str:
    return json.dumps(texts, sort_keys=True)


def _answer(text: str, prompt: Text) -> str | list[Message]:
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
