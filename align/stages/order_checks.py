"""What of `data.curriculum`, `sampler` and `batches` can be refused before anything loads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from align.config.order import CurriculumSection, SamplerSection
from align.config.sections import DataSection
from align.config.stages import RewardStage, TrainingStage
from align.data.carried import wanted
from align.data.curriculum.measures import MEASURES, load_difficulty
from align.errors import ConfigError, DataError, Problem
from align.stages.preflight import is_classifier, model_fault

BY_PROMPT = ("sft", "reward", "dpo")  # not where rows of a batch are compared with each other
WITHOUT_LOSS = ("ppo", "online_dpo", "grpo", "rloo")  # no validation loss that means anything
PACING_OPTIONS = {
    "power": "root",
    "steepness": "sigmoid",
    "stages": "step",
    "increment": "adaptive",
    "patience": "adaptive",
    "min_delta": "adaptive",
}
SAMPLER_OPTIONS = {
    "column": ("class", "uncertainty", "recency"),
    "power": ("class", "difficulty", "uncertainty"),
    "beta": ("class",),
    "half_life": ("recency",),
    "alpha": ("source",),
    "uniform": ("uncertainty",),
    "prefer": ("difficulty",),
    "difficulty": ("difficulty",),
    "model": ("difficulty",),
}
OF_NO_ROW = ("templates", "generated")  # kinds of data.augment whose rows have no origin
MODEL_MEASURES = ("perplexity", "loss", "reward_margin")


def check_order(config: TrainingStage) -> None:
    """Refuse an order of rows that this stage, its trainer or its data cannot give.

    Raises:
        ConfigError: with every problem found.
    """
    data = config.data
    problems: list[Problem] = []
    if data.curriculum is not None:
        problems += _curriculum(config, data.curriculum)
    for index, sampler in enumerate(data.sampler):
        problems += _sampler(config, sampler, f"data.sampler.{index}")
    if data.batches == "grouped":
        problems += _grouped(config)
    asked = [key for key, value in _asked(data).items() if value]
    if asked:
        problems += _trainer(config, ", ".join(asked))
    new = [index for index, entry in enumerate(data.augment) if entry.kind in OF_NO_ROW]
    if new and wanted(data):
        what = "makes rows of no source and without the columns that data.curriculum and "
        what += "data.sampler read."
        fix = "make the rows once with align.data.augment, and name that file in data.train."
        problems += [Problem(f"data.augment.{index}", what, fix) for index in new]
    if problems:
        raise ConfigError(problems)


def refuse_order(data: DataSection, stage: str) -> None:
    """Refuse an order where nothing is trained.

    Raises:
        ConfigError: a curriculum, a sampler or grouped batches are set.
    """
    what = f"{stage} trains nothing, so there is no order of rows."
    problems = [Problem(key, what, "leave it out.") for key, value in _asked(data).items() if value]
    if problems:
        raise ConfigError(problems)


def _asked(data: DataSection) -> dict[str, Any]:
    """What asks for an order of the rows; falsy where it asks for none."""
    return {
        "data.curriculum": data.curriculum,
        "data.sampler": data.sampler,
        "data.batches": data.batches != "random",
    }


def _grouped(config: TrainingStage) -> Iterator[Problem]:
    """What does not go with batches of few prompts."""
    where, data = "data.batches", config.data
    if config.stage not in BY_PROMPT:
        what = f"grouped is of {', '.join(BY_PROMPT)}, and the stage is {config.stage}."
        yield Problem(where, what, "leave it out.")
    for key in ("curriculum", "sampler"):
        if getattr(data, key):
            what = f"grouped is an order of the rows, and data.{key} is another."
            yield Problem(where, what, "leave one of the two out.")
    if config.trainer.get("dataloader_drop_last"):
        what = "leaves rows of the smallest prompts out, the same in every epoch "
        what += "(data.batches: grouped)."
        yield Problem("trainer.dataloader_drop_last", what, "leave it out.")
    if config.trainer.get("per_device_train_batch_size") == 1:
        what = "is 1, and a batch of one row holds one row of a prompt (data.batches: grouped)."
        yield Problem("trainer.per_device_train_batch_size", what, "set more, or leave one out.")


def _curriculum(config: TrainingStage, section: CurriculumSection) -> Iterator[Problem]:
    where = "data.curriculum"
    for name, pacing in PACING_OPTIONS.items():
        if section.pacing != pacing and _is_set(section, name):
            what = f"is an option of pacing: {pacing}, and pacing is {section.pacing}."
            yield Problem(f"{where}.{name}", what, "leave it out, or change the pacing.")
    yield from _difficulty(config, section.difficulty, section.model, where)
    if section.difficulty == "column" and section.column is None:
        yield Problem(f"{where}.column", "is needed by difficulty: column.", "name it.")
    if section.difficulty != "column" and section.column is not None:
        what = f"is read by difficulty: column, and difficulty is {section.difficulty}."
        yield Problem(f"{where}.column", what, "set difficulty: column, or leave it out.")
    if section.pacing != "adaptive":
        return
    where = f"{where}.pacing"
    if config.stage in WITHOUT_LOSS:
        what = f"adaptive waits for a validation loss, and {config.stage} has none."
        yield Problem(where, what, "use root, or another function of the step.")
        return
    if not (config.data.validation or config.data.fold or config.data.validation_fraction):
        what = "adaptive waits for a validation loss, and nothing is held out."
        yield Problem(where, what, "set data.validation_fraction.")
    if config.trainer.get("eval_strategy") in ("no", False):
        what = "adaptive waits for a validation loss, and trainer.eval_strategy is no."
        yield Problem(where, what, "evaluate every so many steps, or leave eval_strategy out.")


def _sampler(config: TrainingStage, section: SamplerSection, where: str) -> Iterator[Problem]:
    kind = section.by
    for name, kinds in SAMPLER_OPTIONS.items():
        if kind not in kinds and _is_set(section, name):
            what = f"is no option of by: {kind} (of {', '.join(kinds)})."
            yield Problem(f"{where}.{name}", what, "leave it out.")
    if kind in SAMPLER_OPTIONS["column"] and section.column is None:
        yield Problem(f"{where}.column", f"is needed by by: {kind}.", "name a column of the data.")
    if kind == "recency" and section.half_life is None:
        fix = "give the age at which a row is drawn half as often, in days for ISO times."
        yield Problem(f"{where}.half_life", "is needed by by: recency.", fix)
    if kind == "class" and section.beta is not None and _is_set(section, "power"):
        what = "is beside beta, and each of them decides alone how far classes are balanced."
        yield Problem(f"{where}.power", what, "leave one of them out.")
    if kind == "source" and len(config.data.train) < 2:
        what = "by: source mixes sources of data.train, and there is one."
        yield Problem(f"{where}.by", what, "name several sources, or use by: class.")
    if kind == "difficulty":
        yield from _difficulty(config, measure_of(section, config.data), section.model, where)


def measure_of(section: SamplerSection, data: DataSection) -> str:
    """The difficulty of a sampler: its own, or else the curriculum's, or else the length."""
    if section.difficulty is not None:
        return section.difficulty
    return "length" if data.curriculum is None else data.curriculum.difficulty


def _difficulty(
    config: TrainingStage, measure: str, model: str | None, where: str
) -> Iterator[Problem]:
    """Problems of a measure and the model that it asks."""
    key = f"{where}.difficulty"
    if measure not in MEASURES:
        if ":" not in measure:
            what = f"{measure!r} is no measure."
            yield Problem(key, what, f"use {', '.join(MEASURES)} or a module:function.")
            return
        try:
            load_difficulty(measure)
        except DataError as error:
            yield Problem(key, str(error))
    if model is not None and measure not in MODEL_MEASURES:
        what = f"is asked by {', '.join(MODEL_MEASURES)}, and difficulty is {measure}."
        yield Problem(f"{where}.model", what, "leave it out.")
    if measure == "column" and where != "data.curriculum":
        curriculum = config.data.curriculum
        if curriculum is None or curriculum.difficulty != "column":
            fix = "set it in data.curriculum, or use a module:function."
            yield Problem(key, "column is read by a curriculum only.", fix)
    if measure == "reward_margin" and not _pairs(config):
        what = f"reward_margin compares two answers, and {config.stage} trains on none."
        yield Problem(key, what, "use length, perplexity, loss or column.")
    if measure not in MODEL_MEASURES or (measure == "reward_margin" and model is None):
        return
    path = model or config.model.path
    asked = f"{where}.model" if model else "model.path"
    fault = model_fault(path)
    if fault is not None and model:  # the stage's own is checked with the rest
        yield Problem(asked, f"{path} {fault[0]}", fault[1])
    if fault is None and measure == "perplexity" and is_classifier(path):
        what = f"perplexity is a language model's, and {path} is a reward model."
        yield Problem(asked, what, "name a policy in `model`, or use difficulty: reward_margin.")
    if fault is None and measure == "loss" and is_classifier(path) and not _pairs(config):
        what = f"the loss under a reward model is of two answers, and {config.stage} has none."
        yield Problem(asked, what, "name a policy in `model`.")
    known = fault is None and (Path(path) / "config.json").is_file()
    if measure == "reward_margin" and known and not is_classifier(path):
        what = f"reward_margin asks a reward model, and {path} is none."
        yield Problem(asked, what, "name a model that `align reward` trained.")


def _trainer(config: TrainingStage, asked: str) -> Iterator[Problem]:
    """Settings under which the trainer makes or orders its rows itself."""
    trainer, order = config.trainer, f"an order of the rows ({asked})"
    if trainer.get("packing"):
        what = f"joins rows into blocks, and {order} is of single rows."
        yield Problem("trainer.packing", what, "set it false; padding_free wastes none either.")
    strategy = trainer.get("train_sampling_strategy", "random")
    if strategy != "random":
        what = f"{strategy} is {order} too."
        yield Problem("trainer.train_sampling_strategy", what, "leave one of the two out.")
    if config.stage == "sft" and trainer.get("shuffle_dataset"):
        what = f"renumbers the rows after they were measured for {order}."
        yield Problem("trainer.shuffle_dataset", what, "leave it out: rows are shuffled anyway.")
    accelerator = trainer.get("accelerator_config")
    if isinstance(accelerator, dict) and accelerator.get("split_batches"):
        what = f"counts batches in another way than {order}."
        yield Problem("trainer.accelerator_config.split_batches", what, "leave it out.")
    if trainer.get("ignore_data_skip"):
        what = f"starts the epoch again on resuming, and {order} goes on."
        yield Problem("trainer.ignore_data_skip", what, "leave it out.")


def _pairs(config: TrainingStage) -> bool:
    """Whether the stage trains on preferences of two answers."""
    if isinstance(config, RewardStage):
        return config.objective.kind == "pairs"
    return config.stage == "dpo"


def _is_set(section: BaseModel, name: str) -> bool:
    """Whether an option differs from its default (a resolved file spells every default out)."""
    value: Any = getattr(section, name)
    return bool(value != type(section).model_fields[name].default)
