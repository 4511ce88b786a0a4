"""Configs of reward models that are averaged: what must agree, and what holds for their mean.

What `align_reward` in a config says of how scores are read (heads, steps) must be the same in all
members. What was measured on one member (its normalisation) does not hold for their mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from reward.errors import ModelError
from reward.model import CONFIG_KEY, Normalisation

IGNORED = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")
OURS = "align_"  # further keys of the config that were measured on one member
MEASURED = tuple(field.name for field in fields(Normalisation))


@dataclass(frozen=True)
class JoinedConfig:
    """The config of an average."""

    values: dict[str, Any]
    dropped: tuple[str, ...]  # what does not hold for the average
    warnings: tuple[str, ...]


def join_configs(
    folders: Sequence[Path], configs: Sequence[Mapping[str, Any]], shares: Sequence[float]
) -> JoinedConfig:
    """One config for the mean of models.

    The parameter of ties is averaged as the weights are, since it was trained beside them; where
    the members' losses for ties differ it is dropped with a warning.

    Args:
        folders: of the members, for messages.
        configs: of the members.
        shares: of the members in the average, sum 1.

    Raises:
        ModelError: they differ in architecture, or in how their scores are read.
    """
    for folder, config in zip(folders[1:], configs[1:], strict=True):
        _same(folders[0], configs[0], folder, config)
    notes = [dict(config.get(CONFIG_KEY) or {}) for config in configs]
    measured = any("mean" in note for note in notes)
    plain = [
        {name: value for name, value in note.items() if name not in (*MEASURED, "ties")}
        for note in notes
    ]
    for folder, other in zip(folders[1:], plain[1:], strict=True):
        name = next((n for n in sorted({*plain[0], *other}) if plain[0].get(n) != other.get(n)), "")
        if name:
            raise ModelError(
                f"{folders[0]} and {folder} are read in different ways: {CONFIG_KEY}.{name} is "
                f"{plain[0].get(name)!r} in one and {other.get(name)!r} in the other. Fix: "
                "average models that were trained on one objective."
            )
    kept, dropped, warnings = plain[0], ["normalisation"] if measured else [], list[str]()
    ties = [note.get("ties") for note in notes]
    losses = {None if one is None else str(one["loss"]) for one in ties}
    if None not in losses and len(losses) == 1:
        pairs = zip(shares, ties, strict=True)
        mean = sum(share * float(one["parameter"]) for share, one in pairs if one is not None)
        kept["ties"] = {"loss": losses.pop(), "parameter": mean}
    elif losses != {None}:
        dropped.append("ties")
        told = ", ".join(sorted(loss or "none" for loss in losses))
        warnings.append(f"the members' losses for ties differ ({told}): the average names none.")
    others = {key for config in configs for key in config if key.startswith(OURS)} - {CONFIG_KEY}
    values = {k: v for k, v in configs[0].items() if k not in others and k != CONFIG_KEY}
    if kept:
        values[CONFIG_KEY] = kept
    return JoinedConfig(values, (*dropped, *sorted(others)), tuple(warnings))


def read_config(folder: Path) -> dict[str, Any]:
    """A model's config.

    Raises:
        ModelError: there is none.
    """
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        held = "there is no such directory" if not folder.is_dir() else str(error)
        raise ModelError(
            f"{folder} is no model: {held}. Fix: give the `model/` folder of an `align reward` run."
        ) from error
    return dict(found)


def same_tokenizer(folders: Sequence[Path]) -> None:
    """Refuse models to which the same text means other tokens.

    Raises:
        ModelError: naming what differs.
    """
    try:
        loaded = [AutoTokenizer.from_pretrained(str(folder)) for folder in folders]
    except (OSError, ValueError) as error:
        raise ModelError(f"a member has no tokenizer that loads: {error}") from error
    first = loaded[0]
    for folder, other in zip(folders[1:], loaded[1:], strict=True):
        differ = [
            what
            for what, one, two in (
                ("vocabulary", first.get_vocab(), other.get_vocab()),
                ("chat template", first.chat_template, other.chat_template),
                ("special tokens", first.special_tokens_map, other.special_tokens_map),
            )
            if one != two
        ]
        if differ:
            raise ModelError(
                f"{folders[0]} and {folder} have another {' and '.join(differ)}: the same text "
                "means other tokens to them. Fix: average models fine-tuned from one start."
            )


def write_json(file: Path, value: Any) -> None:
    """Write JSON in one step."""
    temporary = file.with_name(f"{file.name}.tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    temporary.replace(file)


def _same(one: Path, first: Mapping[str, Any], two: Path, second: Mapping[str, Any]) -> None:
    for key in sorted({*first, *second}):
        if key in IGNORED or key.startswith(OURS):
            continue
        if first.get(key) != second.get(key):
            raise ModelError(
                f"{one} and {two} are different models: {key} is {first.get(key)!r} in one and "
                f"{second.get(key)!r} in the other. Fix: average models fine-tuned from one start."
            )
