"""Strategies by name, and what YAML makes of them.

    bald                                                 a name of `feedback.acquisition.STRATEGIES`
    {kind: bal_pm, beta: 0.05}                           with its options
    {kind: mix, parts: [{kind: bald, weight: 3}, density]}
    {kind: epsilon, of: bald, epsilon: 0.1}
    {kind: diversify, of: uncertainty, similarity: 0.95, on: prompts, labelled: true}
    {kind: stratify, of: bald, shares: {en: 0.5, de: 0.5}}
    {kind: per_cost, of: bald}

They nest. Near-duplicates are passed over in any case (`acquisition.similarity`), and a budget goes
outermost by itself (`acquisition.budget`). Every problem is found before anything loads.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from align.errors import DataError, Problem
from feedback.acquisition import (
    STRATEGIES,
    Diversify,
    Epsilon,
    Mix,
    Scorer,
    Strategy,
    Stratify,
    per_cost,
)

MADE: dict[str, Callable[..., Strategy]] = {
    "epsilon": Epsilon,
    "diversify": Diversify,
    "stratify": Stratify,
    "per_cost": per_cost,
}
NO_MODEL = ("random", "typical", "k_center", "k_means", "density")  # what `first` may be made of
COMMITTEE = ("bald", "vote_entropy", "bal_pm", "power_bald")


def build_strategy(
    given: str | Mapping[str, Any], where: str, problems: list[Problem], *, model: bool = True
) -> Strategy | None:
    """A strategy of a name or a mapping; None where it cannot be made, and `problems` say why.

    Args:
        given: from YAML.
        where: the key, for problems.
        problems: grows.
        model: there will be a reward model; without one, prompts alone can be chosen by.
    """
    if isinstance(given, str):
        given = {"kind": given}
    options = dict(given)
    kind = options.pop("kind", None)
    known = [*STRATEGIES, "mix", *MADE]
    if not isinstance(kind, str) or kind not in known:
        near = difflib.get_close_matches(str(kind), known, n=1)
        fix = f"did you mean {near[0]}?" if near else f"one of {', '.join(known)}."
        problems.append(Problem(where, f"{kind!r} is no strategy.", fix))
        return None
    if kind == "mix":
        return _mix(options, where, problems, model)
    if kind in MADE:
        of = options.pop("of", None)
        if of is None:
            problems.append(Problem(where, f"{kind} is made of another strategy.", "add `of:`."))
            return None
        inner = build_strategy(of, f"{where}.of", problems, model=model)
        if inner is None:
            return None
        if kind in ("epsilon", "per_cost") and not isinstance(inner, Scorer):
            what = f"{kind} weighs scores of single items, and {_name(of)} chooses a batch."
            problems.append(Problem(f"{where}.of", what, "use bald or uncertainty, say."))
            return None
        return _make(MADE[kind], (inner,), options, where, problems)
    if not model:
        if kind not in NO_MODEL:
            what = f"{kind} needs a model, and before the first labels there is none."
            problems.append(Problem(where, what, f"one of {', '.join(NO_MODEL)}."))
            return None
        if kind == "k_center":
            options.setdefault("on", "prompts")  # there are no states yet
    return _make(STRATEGIES[kind], (), options, where, problems)


def _mix(
    options: dict[str, Any], where: str, problems: list[Problem], model: bool
) -> Strategy | None:
    given = options.pop("parts", None)
    if not isinstance(given, list) or not given:
        what = "a mix has `parts`, a list of strategies."
        problems.append(Problem(where, what, "for example [{kind: bald, weight: 3}, density]."))
        return None
    parts: list[tuple[Any, float]] = []
    for place, one in enumerate(given):
        own = {"kind": one} if isinstance(one, str) else dict(one)
        weight = own.pop("weight", 1.0)
        if not isinstance(weight, int | float):
            problems.append(Problem(f"{where}.parts.{place}.weight", f"{weight!r} is no number."))
            continue
        built = build_strategy(own, f"{where}.parts.{place}", problems, model=model)
        if built is not None:
            parts.append((built, float(weight)))
    if len(parts) < len(given):
        return None
    return _make(Mix, (parts,), options, where, problems)


def _make(
    maker: Callable[..., Strategy],
    first: tuple[Any, ...],
    options: Mapping[str, Any],
    where: str,
    problems: list[Problem],
) -> Strategy | None:
    names = list(inspect.signature(maker).parameters)[len(first) :]
    odd = [name for name in options if name not in names]
    for name in odd:
        fix = f"it takes {', '.join(names)}." if names else "it takes none."
        problems.append(Problem(f"{where}.{name}", "is no option of this strategy.", fix))
    if odd:
        return None
    try:
        return maker(*first, **options)
    except (DataError, TypeError) as error:
        problems.append(Problem(where, str(error)))
        return None


def _name(given: Any) -> str:
    return str(given.get("kind")) if isinstance(given, Mapping) else str(given)
