"""What can be refused of adapters before weights are read."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from align.config.sections import PeftSection
from align.engine.models import peft_config
from align.errors import ConfigError, ModelError, Problem
from align.stages.model_names import module_names

VIRTUAL_TOKENS = ("prefix_tuning", "prompt_tuning", "p_tuning")
TARGETS = "peft.kwargs.target_modules"


def check_peft(section: PeftSection | None, stage: str, path: str = "") -> None:
    """Refuse adapters that PEFT or the stage would refuse once everything is loaded.

    Args:
        section: what the configuration asks for.
        stage: that trains it.
        path: of the model; a local one's modules are compared with `target_modules`.

    Raises:
        ConfigError: missing or unfit `peft.kwargs`, or a method that the stage cannot start from.
    """
    if section is None:
        return
    virtual = section.method in VIRTUAL_TOKENS
    problems = []
    if virtual and not section.kwargs.get("num_virtual_tokens"):
        problems.append(
            Problem(
                "peft.kwargs",
                f"{section.method} needs num_virtual_tokens.",
                "for example peft.kwargs={num_virtual_tokens: 16}.",
            )
        )
    if virtual and stage == "reward":
        problems.append(
            Problem(
                "peft.method",
                f"{section.method} cannot be merged, and a reward model is saved whole.",
                "use lora.",
            )
        )
    if virtual and stage in ("dpo", "kto"):
        problems.append(
            Problem(
                "peft.method",
                f"{section.method} changes the policy before the first step, so that "
                f"{stage.upper()}'s margin would not start at 0.",
                "use lora, which starts as the identity.",
            )
        )
    rank = section.kwargs.get("r")
    if isinstance(rank, int) and rank < 1:
        problems.append(Problem("peft.kwargs.r", f"{rank} is not at least 1."))
    if not problems:
        try:
            peft_config(section.method, section.kwargs, "CAUSAL_LM")
        except (ModelError, ValueError) as error:
            problems.append(Problem("peft.kwargs", f"{section.method} refuses them: {error}"))
    problems += target_problems(section.kwargs, path, stage)
    if problems:
        raise ConfigError(problems)


def target_problems(kwargs: Mapping[str, Any], path: str, stage: str) -> Iterator[Problem]:
    """Names in `target_modules` that the model has not; PEFT passes over all but the last of them.

    Says nothing of a model whose modules cannot be known without loading it.
    """
    wanted = kwargs.get("target_modules")
    if not wanted or not isinstance(wanted, str | list) or kwargs.get("layer_replication"):
        return
    if isinstance(wanted, str) and wanted.lower() == "all-linear":
        return
    names = module_names(path, stage)
    if not names:
        return
    last = sorted({name.rpartition(".")[2] for name in names} - {""})
    if isinstance(wanted, str):
        try:
            found = any(re.fullmatch(wanted, name) for name in names)
        except re.error as error:
            yield Problem(TARGETS, f"{wanted!r} is no regular expression: {error}.", "mend it.")
            return
        if not found:
            what = f"the expression {wanted!r} matches the whole name of no module of {path}."
            yield Problem(TARGETS, what, f"names look like {_longest(names)}.")
        return
    for target in wanted:
        if any(name == target or name.endswith(f".{target}") for name in names):
            continue
        near = difflib.get_close_matches(str(target), last, n=1)
        linear = [name for name in last if not name.isdigit()]
        fix = f"did you mean {near[0]}?" if near else f"there are {', '.join(linear)}."
        yield Problem(TARGETS, f"{path} has no module {target!r}.", fix)


def _longest(names: list[str]) -> str:
    return max(names, key=lambda name: (name.count("."), name))
