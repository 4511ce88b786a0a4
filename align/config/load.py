"""From YAML and `section.key=value` overrides to a checked configuration.

Precedence: default < YAML < command line. Every problem is reported at once, each unknown key with
its nearest valid neighbour. Nothing here imports a model.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from align.config.stages import StageConfig, TrainingStage
from align.config.yaml_text import read_value, read_yaml
from align.errors import ConfigError, Problem

Stage = TypeVar("Stage", bound=StageConfig)
Model = TypeVar("Model", bound=BaseModel)

# Trainer keys that other sections own, and where to set them instead.
OWNED_TRAINER_KEYS = {
    "output_dir": "run.dir",
    "logging_dir": "run.dir",
    "seed": "run.seed",
    "data_seed": "run.seed",
    "report_to": "tracking.report_to",
    "project": "tracking.project",
    "resume_from_checkpoint": "the command-line flag --resume",
    "model_init_kwargs": "the `model` section",
    "trust_remote_code": "model.trust_remote_code",
    "chat_template_path": "model.chat_template",
    "disable_tqdm": "nothing: Align draws its own progress",
    "overwrite_output_dir": "run.overwrite",
}

# Lowest values that libraries would only refuse in the middle of a run, with a traceback.
LOWEST = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "rollout_batch_size": 1,
    "group_size": 1,
    "ppo_epochs": 1,
    "total_episodes": 1,
    "max_length": 1,
    "learning_rate": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "warmup_steps": 0,
    "num_train_epochs": 0,
}


def load_config(
    stage: type[Stage], path: str | Path | None, overrides: Sequence[str] = ()
) -> Stage:
    """Read a stage's configuration.

    Args:
        stage: the stage's config class, e.g. `SFTStage`.
        path: the YAML file; None for a configuration made of overrides only.
        overrides: `section.key=value` strings; values are read as YAML.

    Raises:
        ConfigError: with every problem found: unknown keys, wrong types, bad trainer arguments.
    """
    problems: list[Problem] = []
    raw = read_yaml(Path(path)) if path is not None else {}
    for override in overrides:
        _apply_override(raw, override, problems)
    config = check_mapping(stage, raw, problems)
    if problems or config is None:
        raise ConfigError(problems)
    return config


def check_mapping(
    stage: type[Stage], raw: Mapping[str, Any], problems: list[Problem]
) -> Stage | None:
    """A stage's configuration of what YAML read, or None; `problems` grows."""
    config = check_section(stage, raw, problems)
    trainer = raw.get("trainer") or {}
    trainer_class = stage.trainer_of(raw)
    if trainer_class and isinstance(trainer, dict):
        problems += check_trainer_args(_import(trainer_class), trainer)
    return config


def check_section(
    section: type[Model], raw: Mapping[str, Any], problems: list[Problem]
) -> Model | None:
    """Any section of what YAML read, or None; `problems` grows."""
    try:
        return section.model_validate(raw)
    except ValidationError as error:
        problems += [_explain(section, item) for item in error.errors()]
        return None


def check_trainer_args(trainer_class: type, values: Mapping[str, Any]) -> list[Problem]:
    """Problems with a `trainer:` section: unknown keys, owned keys and wrong types."""
    problems = []
    hints = _field_types(trainer_class)
    for key, value in values.items():
        where = f"trainer.{key}"
        if key in OWNED_TRAINER_KEYS:
            problems.append(
                Problem(where, "is set elsewhere.", f"use {OWNED_TRAINER_KEYS[key]} instead.")
            )
        elif key not in hints:
            problems.append(
                Problem(where, f"{trainer_class.__name__} has no such key.", _nearest(key, hints))
            )
        else:
            try:
                read = _coerce(hints[key], value)
            except ValidationError as error:
                problems.append(
                    Problem(where, f"{value!r} does not fit: {error.errors()[0]['msg'].lower()}.")
                )
                continue
            if isinstance(read, float) and math.isnan(read):
                problems.append(Problem(where, f"{value!r} does not fit: a number is expected."))
            elif isinstance(read, int | float) and read < LOWEST.get(key, -math.inf):
                problems.append(
                    Problem(where, f"{value!r} does not fit: at least {LOWEST[key]} is expected.")
                )
            elif key == "max_steps" and read == 0:  # TRL would train one; -1 is its default
                what = "0 does not fit: at least 1 is expected, or -1 to count epochs."
                problems.append(Problem(where, what))
    return problems


def resolve_trainer_args(
    trainer_class: type, values: Mapping[str, Any], **fixed: Any
) -> dict[str, Any]:
    """The keyword arguments of a trainer config: `values` with their types, then `fixed`."""
    hints = _field_types(trainer_class)
    return {key: _coerce(hints[key], value) for key, value in values.items()} | fixed


def trainer_class_of(config: TrainingStage) -> type:
    """The TRL or transformers config class that `trainer:` is passed to."""
    assert config.trainer_class is not None
    return _import(config.trainer_class)


def _apply_override(raw: dict[str, Any], override: str, problems: list[Problem]) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        problems.append(
            Problem(repr(override), "is not an override.", "write section.key=value, no spaces.")
        )
        return
    try:
        value = read_value(text) if text else None
    except yaml.constructor.ConstructorError as error:
        problems.append(Problem(key, f"{error.problem}."))
        return
    except yaml.YAMLError:
        value = text
    node: Any = raw
    *parents, last = key.split(".")
    for depth, part in enumerate(parents):
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                problems.append(Problem(key, f"{part!r} is not an index below {len(node)}."))
                return
            node = node[int(part)]
            continue
        if not isinstance(node.get(part), dict | list):
            if node.get(part) is not None:
                where = ".".join(parents[: depth + 1])
                problems.append(Problem(key, f"`{where}` holds a value, not a section."))
                return
            node[part] = {}
        node = node[part]
    if isinstance(node, list):
        if last.isdigit() and int(last) < len(node):
            node[int(last)] = value
        else:
            problems.append(Problem(key, f"{last!r} is not an index below {len(node)}."))
    else:
        node[last] = value


def _explain(section: type[BaseModel], item: Mapping[str, Any]) -> Problem:
    """One pydantic error in our words."""
    location = list(item["loc"])
    where = ".".join(str(part) for part in location)
    if item["type"] == "extra_forbidden":
        owner = _model_at(section, location[:-1])
        keys = owner.model_fields if owner else {}
        kind = (
            f"section `{'.'.join(map(str, location[:-1]))}`" if location[:-1] else "the top level"
        )
        return Problem(where, f"unknown key in {kind}.", _nearest(str(location[-1]), keys))
    if item["type"] == "union_tag_invalid":
        tag, known = item["ctx"]["tag"], item["ctx"]["expected_tags"].replace("'", "").split(", ")
        key = item["ctx"]["discriminator"].strip("'")
        return Problem(f"{where}.{key}", f"{tag!r} is no {key}.", _nearest(tag, known))
    if item["type"] == "union_tag_not_found":
        key = item["ctx"]["discriminator"].strip("'")
        return Problem(where, f"has no `{key}`.", f"add `{key}:`.")
    if item["type"] == "missing":
        return Problem(where, "is required and missing.", f"add `{location[-1]}:`.")
    if item["type"] in ("model_type", "dict_type"):
        return Problem(
            where,
            f"{item['input']!r} does not fit: a section with `key: value` lines is expected.",
            _first_keys(_model_at(section, location)),
        )
    if item["type"] == "value_error":  # our own validators
        name = getattr(section, "stage", section.__name__)
        return Problem(where or name, str(item["ctx"]["error"]))
    message = item["msg"][0].lower() + item["msg"][1:]
    return Problem(where, f"{item['input']!r} does not fit: {message}.")


def _model_at(root: type[BaseModel], location: Sequence[Any]) -> type[BaseModel] | None:
    model: type[BaseModel] | None = root
    within: Any = None
    for part in location:
        if isinstance(part, int) or model is None:
            continue
        info = model.model_fields.get(str(part))
        if info is not None:
            model, within = _section_in(info.annotation), info.annotation
        else:  # the tag of a section that is one of several kinds
            model = next((s for s in _sections_in(within) if part in _kinds_of(s)), None)
    return model


def _first_keys(section: type[BaseModel] | None) -> str:
    names = list(section.model_fields)[:4] if section else []
    return f"its keys are {', '.join(names)}, ..." if names else ""


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in typing.get_args(annotation):
        found = _section_in(part)
        if found:
            return found
    return None


def _sections_in(annotation: Any) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _sections_in(part)


def _kinds_of(section: type[BaseModel]) -> tuple[str, ...]:
    """The tags of a section that is one of several."""
    field = section.model_fields.get("kind", section.model_fields.get("type"))
    return typing.get_args(field.annotation) if field else ()


def _nearest(key: str, valid: Iterable[str]) -> str:
    valid = list(valid)
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.6)
    if near:
        return f"did you mean `{near[0]}`?"
    if len(valid) > 20:
        return "see the documentation of that class."
    return f"valid keys: {', '.join(sorted(valid))}." if valid else ""


def _import(spec: str) -> type:
    module, _, name = spec.partition(":")
    return getattr(importlib.import_module(module), name)


def _field_types(trainer_class: type) -> dict[str, Any]:
    hints = typing.get_type_hints(trainer_class)
    fields = dataclasses.fields(trainer_class)
    return {field.name: hints.get(field.name, Any) for field in fields if field.init}


def _coerce(hint: Any, value: Any) -> Any:
    """Read "1e-5" as a float (YAML takes it for text) and a lone text as a list of one.

    A type that pydantic cannot check passes.
    """
    try:
        adapter = TypeAdapter(hint)
    except Exception:
        return value
    origin = typing.get_origin(hint)
    members = typing.get_args(hint) if origin in (typing.Union, types.UnionType) else (hint,)
    if isinstance(value, str) and float in members:
        try:
            return float(value)
        except ValueError:
            pass
    if isinstance(value, bool) and str in members and bool not in members:
        value = "yes" if value else "no"  # YAML reads eval_strategy: no as false
    if isinstance(value, str) and list[str] in members and str not in members:
        value = [value]
    return adapter.validate_python(value)
