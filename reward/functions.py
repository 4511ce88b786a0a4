"""Reward functions: the signature, how one is named in YAML, and the check of what it returned.

A reward function is a function in TRL's signature, plain or `async`, so that one function serves
our PPO, TRL's GRPO and a researcher's own loop. Time-outs and retries: `reward.call`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from feedback.schema import Text
from reward.errors import RewardError

Scores = Sequence[float | None]


class RewardFn(Protocol):
    """Scores completions: one finite float per completion, or None where it does not apply.

    `prompts` and `completions` are texts or conversations of equal length B; dataset columns
    arrive as further keyword arguments of length B, beside what TRL hands over as well:
    `completion_ids` (B lists of token ids), `trainer_state` and `log_metric(name, value)`. A
    function without `**columns` gets only what its signature names.
    """

    def __call__(
        self, prompts: list[Text], completions: list[Text], **columns: Any
    ) -> Scores | Awaitable[Scores]:
        """Return B finite floats, higher is better."""
        ...


def reward_name(reward_fn: RewardFn | Callable[..., Any]) -> str:
    """The name a reward goes by in metrics and errors."""
    function: Any = reward_fn
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", None) or type(function).__name__)


def load_reward_function(
    spec: str, folder: Path | None = None, kwargs: Mapping[str, Any] | None = None
) -> RewardFn:
    """Import `module:function`; `folder` (default: the working directory) is searched first.

    Args:
        spec: a function, an object that can be called, or a class whose objects can be.
        folder: where modules are looked for first.
        kwargs: fixed arguments of a function, or the arguments a class is made with.

    Raises:
        RewardError: the spec is malformed, the module cannot be imported, the name is missing
            or not callable, or `kwargs` do not fit it.
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
    return _with_arguments(spec, function, dict(kwargs or {}))


def _with_arguments(spec: str, function: Callable[..., Any], kwargs: dict[str, Any]) -> RewardFn:
    """The function with fixed arguments, or an object of the class.

    Raises:
        RewardError: they do not fit; errors made for users pass as they are.
    """
    try:
        if isinstance(function, type):
            inspect.signature(function).bind(**kwargs)
            made = function(**kwargs)
            if not callable(made):
                raise TypeError(f"objects of class {function.__name__} cannot be called")
            return made
        if kwargs:
            inspect.signature(function).bind_partial(**kwargs)
            return functools.partial(function, **kwargs)
    except (TypeError, ValueError) as error:
        raise RewardError(
            f"reward function {spec!r}: kwargs {kwargs} do not fit it: {error}. It takes "
            f"{', '.join(inspect.signature(function).parameters) or 'nothing'}."
        ) from error
    return function


def accepted(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that a function's signature takes; all, where it cannot be read."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some callables written in C have no signature
        return dict(arguments)
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return dict(arguments)
    names = {p.name for p in parameters if p.kind is not inspect.Parameter.POSITIONAL_ONLY}
    return {key: value for key, value in arguments.items() if key in names}


def call_reward(
    reward_fn: RewardFn | Callable[..., Any],
    prompts: list[Text],
    completions: list[Text],
    **columns: Any,
) -> list[float]:
    """Call a reward function and refuse anything but one finite float per completion.

    An `async` function runs to its end too, within `reward.call.ASYNC_SECONDS`.

    Raises:
        RewardError: the function raised, returned the wrong number of values, or a value that is
            not a finite number; the message names the function and the first offending row.
    """
    from reward.call import RewardCall, call_together  # which imports this module

    arguments = {"prompts": prompts, "completions": completions, **columns}
    name = reward_name(reward_fn)
    outcome = call_together([RewardCall(name, reward_fn, arguments)])[0]
    return [_number(name, row, v, completions) for row, v in enumerate(outcome.values)]


def check_values(name: str, values: Any, completions: Sequence[Text]) -> list[float | None]:
    """What a reward function returned, as finite floats and None.

    Raises:
        RewardError: another number of values than completions, or a value that is no finite
            number; the message names the function and the first offending row.
    """
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
    return [
        None if value is None else _number(name, row, value, completions)
        for row, value in enumerate(values)
    ]


def _number(name: str, row: int, value: Any, completions: Sequence[Text]) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of many elements
        number = math.nan
    if not math.isfinite(number):
        raise RewardError(
            f"reward function {name!r} returned {value!r} for completion {row}: "
            f"{short(completions[row])}. Return a finite number (0.0 for 'no opinion')."
        )
    return number


def plain(text: Text) -> str:
    """A completion's words: the text itself, or the contents of the model's messages, joined.

    What an environment said in between is not the model's. Messages without one of the model's (a
    prompt) are joined whole.
    """
    return text if isinstance(text, str) else "\n".join(_contents(text))


def final(text: Text) -> str:
    """What the model said last: the text itself, or the content of its last message."""
    if isinstance(text, str):
        return text
    return next(reversed(_contents(text)), "")


def _contents(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    own = [message for message in messages if message.get("role", "assistant") == "assistant"]
    return [str(message.get("content") or "") for message in own or messages]


def short(text: Text, width: int = 120) -> str:
    """The beginning of a completion, quoted, for messages."""
    words = plain(text)
    return repr(words if len(words) <= width else words[:width] + "...")
