"""`align reward serve`: reward models and reward functions over HTTP."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from align.errors import ConfigError, Problem

app = typer.Typer()
err = Console(stderr=True)


@app.command()
def serve(
    targets: Annotated[
        list[str],
        typer.Argument(
            help="Reward models' directories, or module:function; NAME=TARGET names one.",
            metavar="TARGETS...",
        ),
    ],
    host: Annotated[str, typer.Option(help="Address; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8500,
    max_batch: Annotated[int, typer.Option(min=1, help="Completions scored at once.")] = 64,
    max_wait: Annotated[
        float, typer.Option(min=0, help="Seconds that a first request waits for others.")
    ] = 0.01,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Completions that may wait; beyond: 429.")
    ] = 2048,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds of one batch.")] = 600.0,
    raw: Annotated[bool, typer.Option("--raw", help="Models' raw scores, not normalised.")] = False,
) -> None:
    """Serve reward models and reward functions over HTTP.

    Clients must send the token in ALIGN_REWARD_TOKEN, if that is set.
    """
    from reward.batching import Batcher
    from reward.remote import TOKEN
    from reward.serve import create_app, listen
    from reward.serve import serve as run

    token = os.environ.get(TOKEN) or None
    listener = listen(host, port)  # a taken port is told before models load
    batchers = {
        name: Batcher(
            name,
            function,
            max_batch=max_batch,
            max_wait=max_wait,
            max_queue=max_queue,
            timeout=timeout,
        )
        for name, function in open_targets(targets, normalise=not raw).items()
    }
    if token is None and host not in ("127.0.0.1", "localhost", "::1"):
        err.print(f"{TOKEN} is not set: whoever reaches {host} may use this server.")
    place = f"[{host}]" if ":" in host else host
    print(f"http://{place}:{listener.getsockname()[1]} serves {', '.join(batchers)}", flush=True)
    run(create_app(batchers, token), listener)


def open_targets(targets: Sequence[str], normalise: bool) -> dict[str, Callable[..., Any]]:
    """Rewards by name.

    Args:
        targets: directories, hub ids or `module:function`, each perhaps with `NAME=` before it.
        normalise: by the statistics that a model carries.

    Raises:
        ConfigError: there is no such model, or two targets have one name.
        ModelError: a model cannot be loaded.
        RewardError: a function cannot be imported.
    """
    from reward.functions import load_reward_function, reward_name

    split = [split_name(target) for target in targets]
    models = load_models([t for _, t in split if not is_function(t)], normalise)
    found: dict[str, Callable[..., Any]] = {}
    for name, target in split:
        function = models[target] if target in models else load_reward_function(target)
        name = name or reward_name(function)
        if name in found:
            fix = f"name one of them, {name}-2={target}"
            raise ConfigError([Problem("TARGETS", f"two are named {name!r}.", fix)])
        found[name] = function
    return found


def load_models(paths: Sequence[str], normalise: bool) -> dict[str, Callable[..., Any]]:
    """Reward models by directory; without any, nothing heavy is imported.

    Raises:
        ConfigError: there is no such model.
        ModelError: it cannot be loaded.
    """
    if not paths:
        return {}
    from align.quiet import quiet_libraries

    quiet_libraries()
    from align.stages.rewards import model_problems
    from reward.process import load_reward

    problems = [
        problem
        for path in paths
        for problem in model_problems("TARGETS", path, normalise, otherwise="add --raw")
    ]
    if problems:
        raise ConfigError(problems)
    return {path: load_reward(path, normalise=normalise) for path in paths}


def split_name(target: str) -> tuple[str, str]:
    """The name given to a target, or "", and the target."""
    name, equals, rest = target.partition("=")
    return (name, rest) if equals and name.replace("-", "_").isidentifier() else ("", target)


def is_function(target: str) -> bool:
    """Whether a target is `module:function` rather than a folder."""
    module, colon, attribute = target.partition(":")
    names = [*module.split("."), attribute]
    return bool(colon) and all(n.isidentifier() for n in names) and not Path(target).exists()
