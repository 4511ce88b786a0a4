"""What can be refused of `guards` before anything loads, every problem at once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from align.config.guards import GuardSection, ImportanceSection, SISection
from align.config.stages import TrainingStage
from align.data.read import READERS, file_suffix, missing
from align.engine.guards.artefact import find_artefacts
from align.errors import ConfigError, Problem

OUTPUTS = "replay, distill"


KINDS = {"replay": "rows", "agem": "rows", "isolate": "ewc"}  # of artefacts, where not the type's


def check_guards(config: TrainingStage) -> None:
    """Refuse guards that have nothing to protect, or that cannot work in this stage.

    Raises:
        ConfigError: with every problem found.
    """
    problems = [
        problem
        for index, section in enumerate(config.guards)
        for problem in (
            *_source_problems(f"guards.{index}", section, config),
            *_split_problems(f"guards.{index}", section, config),
            *_weight_problems(f"guards.{index}", section, config),
        )
    ]
    if problems:
        raise ConfigError(problems)


def _source_problems(where: str, section: GuardSection, config: TrainingStage) -> Iterator[Problem]:
    """Of what must not be forgotten: missing, named twice, or not there."""
    data, artefact = getattr(section, "data", None), getattr(section, "artefact", None)
    if config.stage == "reward" and getattr(section, "on", "") == "new":
        what = "on: new reads a language model's batches, and this stage has comparisons."
        yield Problem(where, what, "set on: old and data.")
    if section.type == "clear" and config.stage != "ppo":
        what = "clear holds a policy and its critic on rollouts, and only `align ppo` has both."
        yield Problem(where, what, "use replay or distill.")
    if data and artefact:
        what = f"{section.type} has both of data and artefact."
        yield Problem(where, what, "leave one of them out.")
    budget = getattr(section, "budget", None)
    for key, path in (("data", data), ("budget.data", budget and budget.data)):
        if path and file_suffix(Path(path)) in READERS and not Path(path).is_file():
            yield Problem(f"{where}.{key}", missing(Path(path)))
    if artefact and not Path(artefact).is_file():
        fix = "name a file that `align guard` or an earlier run's guards/ wrote."
        yield Problem(f"{where}.artefact", f"{artefact}: no such file.", fix)
    remember = getattr(section, "remember", False)
    if remember and config.stage not in ("sft", "reward", "dpo", "kto"):
        what = (
            "this stage's rows are prompts, and nothing of theirs could be looked at or replayed."
        )
        yield Problem(f"{where}.remember", what, "run `align guard` on the saved model.")
    if remember and getattr(section, "by", None):
        what = "training rows have no column but their own: classes are those of `data`."
        yield Problem(f"{where}.by", what, "run `align guard buffer --by` on the file.")
    if getattr(section, "buffer", "") == "herding" and _hides_weights(config, at_end=remember):
        key = "remember" if remember else "buffer"
        what = "herding reads whole weights, and here they are split over processes."
        fix = "run `align guard buffer --kind herding` on the saved model."
        if remember or data:
            yield Problem(f"{where}.{key}", what, fix)
    if not section.reads_data or data or artefact or remember:
        return
    if not find_artefacts(config.model.path, KINDS.get(section.type, section.type)):
        yield Problem(
            where,
            f"{section.type} has neither data nor artefact, and what {config.model.path} came from "
            "left none.",
            "set `data` to what must not be forgotten, or run `align guard` on the model.",
        )


def _split_problems(where: str, section: GuardSection, config: TrainingStage) -> Iterator[Problem]:
    """Of a guard where gradients or weights are split over processes."""
    kind, stage, budget = section.type, zero_stage(config.trainer), getattr(section, "budget", None)
    if _split(config.trainer) and section.whole_gradients:
        what = f"{kind} needs whole gradients, and here they are split over processes."
        yield Problem(where, what, "train with DDP, or use replay.")
    if stage is not None and kind in ("isolate", "unfreeze", "ema", "wise_ft"):
        what = f"{kind} acts between gradient and step, which DeepSpeed makes in one."
        yield Problem(where, what, "train with DDP or FSDP2, or use ewc or replay.")
    elif stage == 3 and section.holds_weights:
        what = f"{kind} holds weights, and under ZeRO-3 no process has whole ones."
        yield Problem(where, what, "use ZeRO-2 or FSDP2, or replay.")
    if stage == 3 and kind == "distill":
        what = "distill asks the model before training, which ZeRO-3 has split by then."
        yield Problem(where, what, "use ZeRO-2 or FSDP2, or replay.")
    if stage == 3 and budget:
        what = "a budget measures the model before training, which ZeRO-3 has split by then."
        yield Problem(f"{where}.budget", what, "use ZeRO-2 or FSDP2, or leave it out.")
    elif stage is not None and budget and budget.enforce:
        what = "DeepSpeed trains copies of the weights, which going back would not reach."
        yield Problem(f"{where}.budget.enforce", what, "leave it out, or train with DDP or FSDP2.")
    if os.environ.get("ACCELERATE_USE_FSDP") != "true":
        return
    if section.holds_weights:
        instead = f"use a guard on outputs ({OUTPUTS})"
        yield from _fsdp_problems(where, kind, config, instead)
    elif kind in ("ema", "wise_ft"):
        yield from _fsdp_problems(where, kind, config, "leave it out")
    if budget and budget.enforce:
        yield from _fsdp_problems(f"{where}.budget.enforce", "going back", config, "leave it out")


def _fsdp_problems(where: str, kind: str, config: TrainingStage, instead: str) -> Iterator[Problem]:
    """Of what reads weights by name, under FSDP."""
    if os.environ.get("FSDP_VERSION", "1") == "1":
        what = f"{kind} holds weights by name, and the first FSDP flattens them."
        yield Problem(where, what, f"set fsdp_version: 2, or {instead}.")
    elif config.peft is not None:
        what = f"{kind} holds LoRA's product, and FSDP splits its factors."
        yield Problem(where, what, f"train with DDP or ZeRO-2, or {instead}.")


def _weight_problems(where: str, section: GuardSection, config: TrainingStage) -> Iterator[Problem]:
    """Of a guard on weights: adapters, quantised weights, and outputs it needs."""
    if not section.holds_weights:
        return
    peft, kind, stage = config.peft, section.type, zero_stage(config.trainer)
    instead = f"use a guard on outputs ({OUTPUTS})"
    if config.model.quantization:
        what = f"{kind} holds weights, and quantised ones have no gradient."
        yield Problem(where, what, f"leave model.quantization out, or {instead}.")
    if peft is not None and peft.method != "lora":
        what = f"{kind} holds weights, or LoRA's product, and peft.method is {peft.method}."
        yield Problem(where, what, f"use lora, or {instead}; the base weights stay as they are.")
    remember = getattr(section, "remember", False)
    if peft is not None and peft.method == "lora":
        if kind == "isolate":
            what = "isolate freezes numbers of the model, and LoRA trains factors beside it."
            yield Problem(where, what, "use ewc, mas or l2sp.")
        if isinstance(section, SISection):
            what = "si needs the gradient of whole weights, which LoRA never computes."
            yield Problem(where, what, "use ewc, mas or l2sp.")
        if getattr(section, "proximal", False):
            what = "a proximal step moves weights, and LoRA trains factors of them."
            yield Problem(f"{where}.proximal", what, "leave it out.")
        if remember:
            what = "importances are of whole weights, and this run trains an adapter."
            fix = "run `align guard fisher` on the saved model."
            yield Problem(f"{where}.remember", what, fix)
    if getattr(section, "proximal", False) and stage is not None:
        what = "DeepSpeed trains copies of the weights that a step of ours does not reach."
        yield Problem(f"{where}.proximal", what, "leave it out.")
    objective = getattr(config, "objective", None)
    if objective is None or not isinstance(section, ImportanceSection):
        return
    if objective.kind != "pairs" and (kind == "mas" or getattr(section, "fisher", "") == "true"):
        what = f"{kind} needs outputs that choose, and objective.kind is {objective.kind}."
        yield Problem(where, what, "use type: ewc with fisher: empirical.")
    if objective.kind == "ratings" and remember:
        what = "the heads of several aspects are put together before the end."
        yield Problem(f"{where}.remember", what, "leave it out.")


def _hides_weights(config: TrainingStage, *, at_end: bool) -> bool:
    """Whether no process can read the whole model: at the end, or when training starts."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        return at_end or os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING") == "true"
    return zero_stage(config.trainer) == 3


def _split(trainer: dict[str, Any]) -> bool:
    """Whether gradients or weights are split over processes."""
    return zero_stage(trainer) is not None or os.environ.get("ACCELERATE_USE_FSDP") == "true"


def zero_stage(trainer: dict[str, Any]) -> int | None:
    """DeepSpeed's ZeRO stage by `trainer.deepspeed` or accelerate's environment; None without."""
    given = trainer.get("deepspeed")
    if given is None and os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        given = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
        if given is None:
            return int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
    if given is None:
        return None
    if not isinstance(given, dict):
        file = Path(str(given))
        if not file.is_file():
            return 0  # transformers says what is wrong with it
        given = json.loads(file.read_text(encoding="utf-8"))
    found = given.get("zero_optimization", {}).get("stage", 0)
    return int(found) if isinstance(found, int) else 0
