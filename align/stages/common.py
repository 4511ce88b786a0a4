"""The steps every training stage shares; each takes values and does one thing."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from align.config.load import resolve_trainer_args, trainer_class_of
from align.config.sections import ModelSection
from align.config.stages import TrainingStage
from align.data import Splits, fit_length, load_splits
from align.data.carried import take_out
from align.data.load import ROLES
from align.data.rows import Kind
from align.engine.checkpoint import (
    disk_errors,
    write_manifest,
)
from align.engine.tokenizer import load_tokenizer
from align.errors import (
    ConfigError,
    MissingDependencyError,
    Problem,
)
from align.processes import first_process
from align.run import Run, fingerprint, write_json
from align.stages.batches import check_prompts
from feedback.agreement import wilson

console = Console(stderr=True, quiet=not first_process())


def open_tokenizer(model: ModelSection) -> PreTrainedTokenizerBase:
    """The tokenizer a stage works with."""
    return load_tokenizer(
        model.tokenizer or model.path,
        chat_template=model.chat_template,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
    )


def model_kwargs(model: ModelSection) -> dict[str, Any]:
    """How the weights of a model section are loaded."""
    return model.model_dump(
        include={"dtype", "revision", "attn_implementation", "quantization", "trust_remote_code"}
    )


def trainer_args(config: TrainingStage, run: Run, **defaults: Any) -> Any:
    """The TRL or transformers config of a stage.

    Precedence: what the machine and Align decide < `defaults` of the stage < `trainer:`. On a CPU
    without bf16 the precision is float32 (TRL's bf16 was measured 20 times slower there).
    """
    cls = trainer_class_of(config)
    fields = set(getattr(cls, "__dataclass_fields__", {}))
    given: dict[str, Any] = hardware_defaults() | {"save_total_limit": 2} | defaults
    given = {key: value for key, value in given.items() if key in fields}
    values = resolve_trainer_args(cls, given | config.trainer)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.path / "tensorboard")
    fixed = {
        "output_dir": str(run.checkpoints),
        "seed": config.run.seed,
        "data_seed": config.run.seed,
        "report_to": [name for name in config.tracking.report_to if name != "none"],
        "project": config.tracking.project,
        "run_name": config.trainer.get("run_name") or run.path.name,
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,
    }
    try:
        return cls(**(values | fixed))
    except ImportError as error:
        raise MissingDependencyError(f"{cls.__name__} needs a package: {error}") from error
    except (ValueError, TypeError, OSError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError([Problem("trainer", f"{cls.__name__} refuses it: {error}.")]) from error


def hardware_defaults() -> dict[str, Any]:
    """Precision and checkpointing that fit this machine."""
    if torch.cuda.is_available():
        return {"bf16": torch.cuda.is_bf16_supported()}
    return {
        "use_cpu": True,
        "bf16": False,
        "fp16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
    }


def load_data(
    config: TrainingStage,
    kind: Kind,
    run: Run,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    context: int | None,
) -> Splits:
    """Read, check, split and measure the data; print and save the data card."""
    splits = load_splits(config.data, kind, quarantine=run.path / "quarantine.jsonl")
    for name in ROLES:
        part: Dataset | None = getattr(splits, name)
        if part is None:
            continue
        fitted, statistics = fit_length(
            part, kind, tokenizer, max_length, config.data.overlong, context=context
        )
        splits.card.add_tokens(name, statistics)
        setattr(splits, name, fitted)
    parts, splits.carried = take_out({n: getattr(splits, n) for n in ROLES})
    for name, rows in parts.items():
        setattr(splits, name, rows)
    if config.data.batches == "grouped":
        check_prompts(splits.train)
    card = splits.card.as_dict()
    write_json(run.path / "data_card.json", card)
    console.print(splits.card.render())
    for source in config.data.train:
        run.add_parent("data", source.path, fingerprint=fingerprint(source.path))
    for warning in card.get("warnings", []):
        run.warn(warning)
    return splits


def held_out(data: Splits) -> dict[str, Dataset] | None:
    """Validation and test rows by name, as a trainer's constructor takes and tokenises them."""
    parts = {"validation": data.validation, "test": data.test}
    return {name: part for name, part in parts.items() if part is not None} or None


def measure_held_out(trainer: Any, prepared: Mapping[str, Dataset]) -> dict[str, Any]:
    """The trainer's metrics on its prepared held-out rows, by split.

    Where the trainer counts which answer it prefers, the share has its 95% Wilson interval
    (`accuracy`, `low`, `high`, `n`). TRL averages over batches, so a short last batch weighs a
    little more.
    """
    results: dict[str, Any] = {}
    trainer.eval_dataset = dict(prepared)
    for name, rows in prepared.items():
        # By name: TRL's DPO refuses rows from outside once its reference has left memory.
        prefix = "eval" if name == "validation" else name
        found = trainer.evaluate(name, metric_key_prefix=prefix)
        # DPO logs under eval_ whatever the prefix
        rate = next((v for k, v in found.items() if k.endswith("rewards/accuracies")), None)
        if rate is not None:
            share = wilson(round(rate * len(rows)), len(rows))
            found |= {"accuracy": rate, "low": share.low, "high": share.high, "n": len(rows)}
        results[name] = found
    return results


def save_model(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    more: Callable[[Path], None] | None = None,
) -> None:
    """Write the result of a stage with its tokenizer and a manifest, in the first process.

    Args:
        model: what `save_pretrained` writes.
        tokenizer: likewise.
        folder: where to.
        more: writes further files there, before the manifest.

    Raises:
        CheckpointError: the disk is full.
    """
    if not first_process():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors(folder.parent):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if more is not None:
            more(folder)
        write_manifest(folder)


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch."""
    transformers.set_seed(seed)
