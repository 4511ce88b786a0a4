"""The rewards of a PPO run: checked before any weights are read, then opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoConfig

from align.config.sections import RewardSourceSection
from align.errors import ConfigError, Problem
from align.ppo.rewards import RESERVED, RewardScorer
from align.stages.dryrun import context_of
from align.stages.preflight import model_fault
from align.types import RewardFn
from reward.combine import RewardTerm, Schedule
from reward.ensemble import EnsembleReward
from reward.functions import load_reward_function, reward_name
from reward.model import scores_steps, statistics_of, steps_of
from reward.posterior_reward import kind_fault, load_posterior_reward
from reward.process import load_reward

CLOSING = 8  # tokens that a chat template may put after an answer


def check_rewards(sections: Sequence[RewardSourceSection]) -> None:
    """Every reward names one thing, reward models carry what is asked of them, functions import.

    Raises:
        ConfigError: with every problem found, before any weights are read.
        RewardError: a function cannot be imported, or its `kwargs` do not fit.
    """
    problems = []
    for index, section in enumerate(sections):
        where = f"reward.{index}"
        named = {"path": section.path, "ensemble": section.ensemble, "function": section.function}
        given = [key for key, value in named.items() if value is not None]
        if len(given) != 1:
            what = f"names {' and '.join(given)}." if given else "names nothing."
            fix = "set one of `path`, `ensemble` or `function`."
            problems.append(Problem(where, what, fix))
            continue
        if section.kwargs and section.function is None:
            what = f"is for a function, but `{given[0]}` names reward models."
            problems.append(Problem(f"{where}.kwargs", what, "remove it."))
        found = []
        for path in models_of(section):
            found += model_problems(f"{where}.{given[0]}", path, section.normalise is True)
        problems += found or posterior_problems(where, section)
    problems += sum_problems(sections)
    if problems:
        raise ConfigError(problems)
    for section in sections:
        if section.function:
            load_reward_function(section.function, kwargs=section.kwargs)


def model_problems(
    where: str,
    path: str,
    statistics: bool,
    *,
    steps: bool = True,
    otherwise: str = "set normalise: false",
) -> list[Problem]:
    """What is wrong with a reward model's directory, read without its weights.

    Args:
        where: the key that names it.
        path: directory or hub id.
        statistics: whether it must carry its normalisation.
        steps: whether a process reward model will do.
        otherwise: what does without the normalisation.
    """
    fault = model_fault(path)
    if fault:
        return [Problem(where, f"no reward model: {path} {fault[0]}", fault[1])]
    try:
        saved = AutoConfig.from_pretrained(path)
    except (OSError, ValueError):
        fix = "run `align reward` first, or check the path."
        return [Problem(where, f"no reward model at {path}.", fix)]
    how = steps_of(saved)
    if how is not None and not steps:
        what, _, fix = scores_steps(how).partition(" Fix: ")
        return [Problem(where, f"{path} {what}", fix)]
    if statistics and statistics_of(saved) is None:
        fix = f"train it with `align reward`, which saves them, or {otherwise}."
        return [Problem(where, f"{path} carries no normalisation statistics.", fix)]
    return []


def posterior_problems(where: str, section: RewardSourceSection) -> list[Problem]:
    """A posterior that the reward does not have, seen without weights; the models are there.

    Args:
        where: the reward, such as `reward.0`.
        section: it.
    """
    kind = section.posterior
    key = f"{where}.posterior"
    given = section.model_fields_set
    if kind is None and section.ensemble is None:
        idle = [name for name in ("mode", "pessimism", "samples") if name in given]
        if idle:
            what = "is of a posterior or an ensemble, and this reward has neither."
            fix = "remove it, or set `posterior` (heads, laplace, dropout) or `ensemble`."
            return [Problem(f"{where}.{name}", what, fix) for name in idle]
    if section.dropout is not None and kind != "dropout":
        what = f"is the rate of `posterior: dropout`, and the posterior is {kind or 'unset'}."
        return [Problem(f"{where}.dropout", what, "remove it, or set posterior: dropout.")]
    if kind is None:
        return []
    wanted = "ensemble" if kind == "ensemble" else "path"
    if getattr(section, wanted) is None:
        what = f"{kind} is of the reward model(s) in `{wanted}`, which is not set."
        return [Problem(key, what, f"set `{wanted}`, or remove it.")]
    if section.mode == "worst" and kind == "laplace":
        what = "worst needs finitely many members, and laplace has none."
        return [Problem(f"{where}.mode", what, "use lower_bound.")]
    if kind == "ensemble":
        return []
    path = str(section.path)
    saved = AutoConfig.from_pretrained(path)
    fault = kind_fault(saved, kind, folder=Path(path), rate=section.dropout)
    if fault is None:
        return []
    what, _, fix = fault.partition(" Fix: ")
    return [Problem(key, f"{kind} does not fit {path}: {what}", fix)]


def sum_problems(sections: Sequence[RewardSourceSection]) -> list[Problem]:
    """Names that metrics could not tell apart, and a sum of nothing."""
    problems = []
    names = [section.name for section in sections]
    for index, name in enumerate(names):
        where = f"reward.{index}.name"
        if name is not None and name in names[:index]:
            what = f"{name!r} is another reward's name too."
            problems.append(Problem(where, what, "give each its own."))
        if name in RESERVED:
            what = f"the metric reward/{name} exists already."
            problems.append(Problem(where, what, "choose another name."))
    if all(section.gold for section in sections):
        what = "every reward is `gold`, which is logged only; nothing is left to train on."
        problems.append(Problem("reward", what, "add one without `gold: true`."))
    return problems


def models_of(section: RewardSourceSection) -> list[str]:
    """The reward models that a section reads; none for a function."""
    return [section.path] if section.path is not None else list(section.ensemble or ())


def common_context(context: int | None, sections: Sequence[RewardSourceSection]) -> int | None:
    """The policy's context, or what a reward model reads where that is less, in tokens.

    A reward model refuses a longer text, and hours into a run is late to hear of it.
    """
    known = [context_of(path) for section in sections for path in models_of(section)]
    found = [length - CLOSING for length in known if length is not None]
    return min([*found, *([] if context is None else [context])], default=None)


def open_reward(section: RewardSourceSection) -> tuple[str, RewardFn]:
    """A reward's name and function."""
    if section.function:
        function = load_reward_function(section.function, kwargs=section.kwargs)
        return section.name or reward_name(function), function
    own = section.normalise is True
    if section.ensemble:
        name = section.name or "ensemble"
        mode, pessimism = section.mode, section.pessimism
        return name, EnsembleReward(
            section.ensemble, mode=mode, pessimism=pessimism, normalise=own, name=name
        )
    if section.posterior is not None and section.posterior != "ensemble":
        reward = load_posterior_reward(
            str(section.path),
            section.posterior,
            mode=section.mode,
            pessimism=section.pessimism,
            normalise=own,
            rate=section.dropout,
            samples=section.samples,
            name=section.name,
        )
        return reward.__name__, reward
    model = load_reward(str(section.path), normalise=own)
    return section.name or model.__name__, model


def open_rewards(sections: Sequence[RewardSourceSection]) -> RewardScorer:
    """All rewards of a run as one scorer.

    Raises:
        ModelError: a reward model cannot be loaded.
        RewardError: a function cannot be imported.
        ConfigError: two rewards have one name.
    """
    terms = []
    for section in sections:
        name, function = open_reward(section)
        moves = section.schedule
        terms.append(
            RewardTerm(
                name,
                function,
                weight=section.weight,
                schedule=Schedule(moves.kind, moves.to, moves.updates, moves.start)
                if moves
                else None,
                normalise="none" if isinstance(section.normalise, bool) else section.normalise,
                clip=section.clip,
                gold=section.gold,
                # A model computes here and now; only functions wait for something else.
                timeout=section.timeout if section.function else None,
                retries=section.retries if section.function else 0,
            )
        )
    return RewardScorer(terms)
