"""What an environment is: `reset()`, then `step()` after each of the model's turns.

    class Guess:
        def reset(self, number, **columns):
            self.number = number

        def step(self, completion):
            if completion.strip() == str(self.number):
                return Step(reward=1.0, done=True)
            return Step("No. Guess again.")

Methods may be `async`. `align.rollout.episodes` plays one environment per episode.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from align.errors import ConfigError, Problem
from align.types import Messages, Text

REWARD_COLUMN = "environment_reward"


@dataclass(frozen=True)
class Step:
    """What an environment answers to one turn of the model."""

    observation: Text | None = None  # text is a user's message; None only when done
    reward: float = 0.0  # of this turn; an episode's reward is their sum
    done: bool = False  # the episode ends here, and no observation is shown
    info: dict[str, Any] = field(default_factory=dict)  # for reward functions; the last one is kept


class Environment(Protocol):
    """One episode's world. May have `close()`, which is called at the end whatever happened."""

    def reset(self, **columns: Any) -> Text | Awaitable[Text | None] | None:
        """Begin an episode.

        Args:
            **columns: the row of the dataset, `prompt` included.

        Returns:
            An opening observation: text, which is put right after the prompt's last message,
            messages, which follow it, or None.
        """
        ...

    def step(self, completion: str) -> Step | Awaitable[Step]:
        """Answer the model's turn, given as text without special tokens."""
        ...


def environment_reward(
    prompts: Sequence[Text],
    completions: Sequence[Text],
    environment_reward: Sequence[float],
    **columns: Any,
) -> list[float]:
    """The environment's own reward as a reward function: the sum over an episode's turns.

    In YAML: `reward: [{function: "align.rollout.environment:environment_reward"}]`.
    """
    return [float(value) for value in environment_reward]


def load_environment(spec: str, folder: Path | None = None) -> Callable[[], Environment]:
    """Import `module:Class`; `folder` (default: the working directory) is searched first.

    What is named may be any callable without arguments that makes an environment.

    Raises:
        ConfigError: the spec is malformed, its module cannot be imported, or what it names is no
            environment.
    """
    where = "rollout.environment"
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        what = f"{spec!r} is not of the form 'module:Class'."
        raise ConfigError([Problem(where, what, "for example my_environments:Calculator.")])
    search = str((folder or Path.cwd()).resolve())
    if search not in sys.path:
        sys.path.insert(0, search)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        what = f"importing {module_name!r} failed with {type(error).__name__}: {error}."
        fix = f"it was looked for in {search} and on PYTHONPATH."
        raise ConfigError([Problem(where, what, fix)]) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        classes = [name for name, _ in inspect.getmembers(module, inspect.isclass)]
        what = f"{module_name!r} has no class {attribute!r}."
        raise ConfigError([Problem(where, what, f"it has {', '.join(classes) or 'none'}.")])
    if inspect.isclass(found):
        lacking = [name for name in ("reset", "step") if not callable(getattr(found, name, None))]
        if lacking:
            what = f"{spec} has no {' and no '.join(lacking)} method."
            raise ConfigError([Problem(where, what, "an environment has reset and step.")])
        required = [
            name
            for name, parameter in inspect.signature(found).parameters.items()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        if required:
            what = f"{spec} needs {', '.join(required)} to be made, but is made without arguments."
            raise ConfigError([Problem(where, what, "give them defaults, or name a function.")])
    return found


def as_messages(observation: Text) -> Messages:
    """An observation as messages: text is what a user says."""
    if isinstance(observation, str):
        return [{"role": "user", "content": observation}]
    return list(observation)


def opening(prompt: Messages, observation: Text | None) -> Messages:
    """A prompt with the observation that `reset` returned.

    Text is put right after the last message, as TRL's environments do, so that one environment
    serves both; where that message is not a user's, it is a user's message of its own.
    """
    if observation is None:
        return prompt
    if isinstance(observation, str) and prompt[-1]["role"] == "user":
        last = {**prompt[-1], "content": prompt[-1]["content"] + observation}
        return [*prompt[:-1], last]
    return [*prompt, *as_messages(observation)]
