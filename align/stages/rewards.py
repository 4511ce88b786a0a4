"""The rewards of a PPO run: checked before any weights are read, then opened."""

from __future__ import annotations

from transformers import AutoConfig

from align.config.sections import RewardSourceSection
from align.errors import ConfigError, Problem
from align.stages.preflight import model_fault
from align.types import RewardFn
from reward.functions import load_reward_function, reward_name
from reward.model import CONFIG_KEY, RewardModel


def check_rewards(sections: list[RewardSourceSection]) -> None:
    """Every reward names one thing, reward models carry their statistics, functions import.

    Raises:
        ConfigError: with every problem found, before any weights are read.
        RewardError: a function cannot be imported.
    """
    problems = []
    for index, section in enumerate(sections):
        where = f"reward.{index}"
        if (section.path is None) == (section.function is None):
            what = "names both a path and a function" if section.path else "names nothing"
            problems.append(Problem(where, f"{what}.", "set either `path` or `function`."))
            continue
        if section.path is None:
            continue
        fault = model_fault(section.path)
        if fault:
            what = f"no reward model: {section.path} {fault[0]}"
            problems.append(Problem(f"{where}.path", what, fault[1]))
            continue
        try:
            saved = AutoConfig.from_pretrained(section.path)
        except (OSError, ValueError):
            problems.append(
                Problem(
                    f"{where}.path",
                    f"no reward model at {section.path}.",
                    "run `align reward` first, or check the path.",
                )
            )
            continue
        if section.normalise and not getattr(saved, CONFIG_KEY, None):
            problems.append(
                Problem(
                    f"{where}.path",
                    f"{section.path} carries no normalisation statistics.",
                    "train it with `align reward`, which saves them, or set normalise: false.",
                )
            )
    if problems:
        raise ConfigError(problems)
    for section in sections:
        if section.function:
            load_reward_function(section.function)


def open_reward(section: RewardSourceSection) -> tuple[str, RewardFn]:
    """A reward's name and function."""
    if section.function:
        function = load_reward_function(section.function)
        return reward_name(function), function
    model = RewardModel.load(str(section.path), normalise=section.normalise)
    return model.name, model
