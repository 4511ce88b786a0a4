"""Reward functions: the signature, how one is named in YAML, and the checks around a call.

A reward function is a plain function in TRL's signature, so that one function serves our PPO,
TRL's GRPO and a researcher's own loop.
"""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from feedback.schema import Text
from reward.errors import RewardError


class RewardFn(Protocol):
    """Scores completions: one finite float per completion.

    `prompts` and `completions` are texts or conversations of equal length B; dataset columns
    arrive as further keyword arguments of length B.
    """

    def __call__(
        self, prompts: list[Text], completions: list[Text], **columns: Any
    ) -> Sequence[float]:
        """Return B finite floats, higher is better."""
        ...


def reward_name(reward_fn: RewardFn) -> str:
    """The name a reward goes by in metrics and errors."""
    name = getattr(reward_fn, "__name__", None) or type(reward_fn).__name__
    return str(name)


def load_reward_function(spec: str, folder: Path | None = None) -> RewardFn:
    """Import `module:function`; `folder` (default: the working directory) is searched first.

    Raises:
        RewardError: the spec is malformed, the module cannot be imported, or the name is missing
            or not callable.
    """
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise RewardError(
            f"reward function {spec!r} is not of the form 'module:function', "
            "for example 'my_rewards:length_penalty'."
        )
    search = str((folder or Path.cwd()).resolve())
    if search not in sys.path:
        sys.path.insert(0, search)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise RewardError(
            f"reward function {spec!r}: importing module {module_name!r} failed with "
            f"{type(error).__name__}: {error}. It was looked for in {search} and on PYTHONPATH."
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        public = [name for name, _ in inspect.getmembers(module, callable) if name[0] != "_"]
        raise RewardError(
            f"reward function {spec!r}: module {module_name!r} has no callable {attribute!r}; "
            f"it has {', '.join(public) or 'none'}."
        )
    return function


def call_reward(
    reward_fn: RewardFn | Callable[..., Any],
    prompts: list[Text],
    completions: list[Text],
    **columns: Any,
) -> list[float]:
    """Call a reward function and refuse anything but one finite float per completion.

    Raises:
        RewardError: the function raised, returned the wrong number of values, or a value that is
            not a finite number; the message names the function and the first offending row.
    """
    name = reward_name(reward_fn)
    try:
        values = reward_fn(prompts=prompts, completions=completions, **columns)
    except Exception as error:
        raise RewardError(
            f"reward function {name!r} raised {type(error).__name__}: {error} "
            f"(on {len(completions)} completions; the first was {_short(completions[0])}). It was "
            f"given prompts, completions{''.join(', ' + key for key in columns)}."
        ) from error
    try:
        values = list(values)
    except TypeError:
        raise RewardError(
            f"reward function {name!r} returned {type(values).__name__}, but a list of "
            f"{len(completions)} floats is expected, one per completion."
        ) from None
    if len(values) != len(completions):
        raise RewardError(
            f"reward function {name!r} returned {len(values)} rewards, "
            f"but {len(completions)} completions were given; return one float per completion."
        )
    rewards: list[float] = []
    for row, value in enumerate(values):
        try:
            rewards.append(float(value))
        except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of many elements
            raise RewardError(
                f"reward function {name!r} returned {value!r} for completion {row}: "
                f"{_short(completions[row])}. Return a finite number (0.0 for 'no opinion')."
            ) from None
    for row, value in enumerate(rewards):
        if not math.isfinite(value):
            raise RewardError(
                f"reward function {name!r} returned {value} for completion {row}: "
                f"{_short(completions[row])}. Return a finite number (0.0 for 'no opinion')."
            )
    return rewards


def _short(text: Text, width: int = 120) -> str:
    plain = text if isinstance(text, str) else text[-1].get("content", "")
    return repr(plain if len(plain) <= width else plain[:width] + "...")
