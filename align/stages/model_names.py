"""The names inside a local model, known before its weights are read, and what asks for others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from align.engine.models import find_frozen
from align.errors import ConfigError, Problem


def check_frozen(patterns: Sequence[str], path: str, stage: str) -> None:
    """Refuse `model.freeze` where it finds nothing in the model, or all of it.

    Says nothing of a model whose parameters cannot be known without loading it.

    Args:
        patterns: regular expressions on parameter names.
        path: of the model.
        stage: that trains it.

    Raises:
        ConfigError: with every pattern that matches no parameter.
    """
    names = parameter_names(path, stage) if patterns else []
    if not names:
        return
    found = find_frozen(patterns, names)
    shown = f"names look like {max(names, key=lambda name: (name.count('.'), name))}."
    problems = [
        Problem("model.freeze", f"{one!r} matches no parameter of {path}.", shown)
        for one, matched in found.items()
        if not matched
    ]
    if set().union(*found.values()) == set(names):
        problems.append(Problem("model.freeze", "leaves nothing to train.", "freeze less."))
    if problems:
        raise ConfigError(problems)


def module_names(path: str, stage: str) -> list[str]:
    """Of a local model's modules; empty where they are not known, see `_outline`."""
    model = _outline(path, stage)
    return [name for name, _ in model.named_modules() if name] if model is not None else []


def parameter_names(path: str, stage: str) -> list[str]:
    """Of a local model's parameters; empty where they are not known, see `_outline`."""
    model = _outline(path, stage)
    return [name for name, _ in model.named_parameters()] if model is not None else []


def _outline(path: str, stage: str) -> nn.Module | None:
    """A local model, none of whose weights is made; None where it cannot be known.

    It cannot for code of a model's own, for what is damaged (other checks say so), and for experts,
    whose old names PEFT translates.
    """
    kind = AutoModelForSequenceClassification if stage == "reward" else AutoModelForCausalLM
    try:
        place = _base_of(path)
        if place is None or "auto_map" in json.loads((place / "config.json").read_text("utf-8")):
            return None
        with torch.device("meta"):
            model: nn.Module = kind.from_config(
                AutoConfig.from_pretrained(place, trust_remote_code=False)
            )
    except Exception:  # whatever a configuration makes a library raise, loading will say it
        return None
    if any(".experts" in name for name, _ in model.named_parameters()):
        return None
    return model


def _base_of(path: str) -> Path | None:
    """The local model under adapters on adapters; None: there is none."""
    seen: set[str] = set()
    while path and path not in seen:
        seen.add(path)
        adapter = Path(path) / "adapter_config.json"
        if not adapter.is_file():
            return Path(path) if (Path(path) / "config.json").is_file() else None
        path = json.loads(adapter.read_text("utf-8"))["base_model_name_or_path"] or ""
    return None
