"""The steps every training stage shares; each takes values and does one thing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from rich.console import Console
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback, TrainerState

from align.config.load import resolve_trainer_args, trainer_class_of
from align.config.sections import GuardSection, ModelSection, SignalsSection
from align.config.stages import TrainingStage
from align.data import Splits, fit_length, load_splits
from align.data.rows import Kind
from align.engine.checkpoint import (
    MANIFEST,
    CheckpointCallback,
    check_space,
    disk_errors,
    load_state,
    newest_valid,
    write_manifest,
)
from align.engine.guards.base import Batch, Guard
from align.engine.guards.ewc import EWC, LossFn, estimate_fisher, load_fisher, save_fisher
from align.engine.guards.replay import Replay
from align.engine.monitor import GradientCheck, MetricsCallback, StopCallback, StopSignals
from align.engine.tokenizer import load_tokenizer
from align.errors import (
    ConfigError,
    Interrupted,
    MissingDependencyError,
    Problem,
    RewardError,
    SamplerError,
)
from align.processes import first_process, process_index
from align.run import Run, fingerprint, write_json
from align.signals import Limits, StopRules, Watch
from align.signals.callback import SignalsCallback
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
    for name in ("train", "validation", "test"):
        part: Dataset | None = getattr(splits, name)
        if part is None:
            continue
        fitted, statistics = fit_length(
            part, kind, tokenizer, max_length, config.data.overlong, context=context
        )
        splits.card.add_tokens(name, statistics)
        setattr(splits, name, fitted)
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


def build_guards(
    sections: Iterable[GuardSection],
    model: torch.nn.Module,
    examples: Callable[[str, int], Iterable[Batch]],
    loss_fn: LossFn,
    run: Run,
) -> list[Guard]:
    """Guards of a stage; a Fisher is estimated on `guards.data`, or read from an artefact.

    Args:
        sections: what the configuration asks for.
        model: what training starts from.
        examples: (path, count) -> batches of one example each, as the stage tokenises them.
        loss_fn: negative log-likelihood of one example, summed over its tokens.
        run: keeps the Fisher beside the run, for later stages.
    """
    guards: list[Guard] = []
    for index, section in enumerate(sections):
        if section.data:
            run.add_parent("data", section.data, fingerprint=fingerprint(section.data))
            rows = examples(section.data, section.samples)
        if section.type == "replay":
            seed = index + 7919 * process_index()  # each process replays others
            guards.append(Replay(rows, loss_fn, section.strength, section.batch_size, seed=seed))
            continue
        if section.artefact:
            fisher = load_fisher(Path(section.artefact))
            run.add_parent("guard", section.artefact)
        else:
            fisher = estimate_fisher(model, rows, loss_fn)
            save_fisher(run.path / "guards" / f"fisher-{index}.safetensors", fisher)
        guards.append(EWC(section.strength, fisher))
    return guards


def train(trainer: Any, config: TrainingStage, run: Run, *, resume: bool) -> None:
    """Run a trainer with our callbacks, resuming from the newest checkpoint that verifies.

    Raises:
        Interrupted: after a signal; the checkpoint has been written.
        CheckpointError: the disk is full, or no checkpoint can be resumed from.
        NonFiniteError: per `tracking.non_finite`.
    """
    keep, trainer.args.save_total_limit = trainer.args.save_total_limit, None  # we rotate
    trainer.finite_folder, trainer.non_finite = run.path, config.tracking.non_finite
    signals, watch = StopSignals(), watch_of(config, run)
    metrics = MetricsCallback(run, console, watch.note if watch else None)
    lineage = {"run": run.path.name, "parents": run.record.get("parents", [])}

    def state() -> dict[str, Any]:
        guards = [guard.state_dict() for guard in trainer.guards]  # two may share a name
        extra = trainer.extra_state() if hasattr(trainer, "extra_state") else {}
        return {"guards": guards, "trainer": extra, "signals": watch and watch.state_dict()}

    callbacks: list[TrainerCallback] = [
        GradientCheck(config.tracking.non_finite),
        StopCallback(signals),
        *([watch] if watch else []),
        metrics,
        CheckpointCallback(state, keep, lineage),
    ]
    trainer.remove_callback(PrinterCallback)
    for callback in callbacks:
        trainer.add_callback(callback)
    checkpoint = _resume_point(trainer, run, watch) if resume else None
    check_space(run.path, _checkpoint_bytes(trainer))
    try:
        with signals.listening(), disk_errors(run.path):
            if checkpoint and (_finished(checkpoint) or (watch and watch.stopped)):
                _load_finished(trainer, checkpoint)
            else:
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except (SamplerError, RewardError) as error:
        saved = save_now(trainer)
        if saved:
            error.add_note(f"{saved} was saved. Continue with the same command and --resume.")
        raise
    finally:
        metrics.close()
    if signals.received:
        step = trainer.state.global_step
        raise Interrupted(
            f"stopped by {signals.received} after step {step}; the checkpoint is in "
            f"{run.checkpoints}. Continue with the same command and --resume."
        )
    if watch and watch.stopped:
        run.finish(stopped=watch.stopped)
    if trainer.skipped_batches:
        run.warn(f"{trainer.skipped_batches} batches with a non-finite loss were skipped.")


def save_now(trainer: Any) -> Path | None:
    """Write a checkpoint of the last whole step, when something outside failed between two steps.

    Not with several processes: the others need not have failed, and would be waited for in vain.

    Returns:
        The checkpoint, or None where nothing was trained since the last one.
    """
    step = trainer.state.global_step
    if trainer.args.world_size > 1:
        return None
    folder = Path(str(trainer.args.output_dir)) / f"checkpoint-{step}"
    if step == 0 or trainer.args.save_strategy == "no" or (folder / MANIFEST).is_file():
        return None
    trainer._save_checkpoint(trainer.model, trial=None)
    trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)
    return folder


def watch_of(config: TrainingStage, run: Run) -> SignalsCallback | None:
    """The alarms of a stage that has a `signals` section, unless it is off."""
    section: SignalsSection | None = getattr(config, "signals", None)
    if section is None or not section.enabled:
        return None
    limits = Limits(**section.model_dump(exclude={"enabled", "stop"}))
    rules = StopRules(section.stop.kl_budget, section.stop.lower_bound_drop, (*section.stop.on,))
    return SignalsCallback(run, Watch(limits), rules, console)


def _resume_point(trainer: Any, run: Run, watch: SignalsCallback | None) -> Path | None:
    checkpoint, passed = newest_valid(run.checkpoints)
    for reason in passed:
        run.warn(f"passed over: {reason}")
        console.print(f"[yellow]passed over:[/] {reason}")
    if checkpoint is None:
        console.print("no checkpoint yet: starting from the beginning")
        return None
    state = load_state(checkpoint, trainer.args.process_index)
    for guard, saved in zip(trainer.guards, state["guards"], strict=True):
        guard.load_state_dict(saved)
    if hasattr(trainer, "load_extra_state"):
        trainer.load_extra_state(state["trainer"])
    if watch and state.get("signals"):
        watch.load_state_dict(state["signals"])
    console.print(f"resuming from {checkpoint}")
    return checkpoint


def _finished(checkpoint: Path) -> bool:
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    return state.max_steps > 0 and state.global_step >= state.max_steps


def _load_finished(trainer: Any, checkpoint: Path) -> None:
    """Take the weights of a training that had reached its last step.

    transformers, asked to resume there in the middle of an epoch, would train one step more.
    """
    trainer._load_from_checkpoint(str(checkpoint))
    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


def _checkpoint_bytes(trainer: Any) -> int:
    """Weights once more, and two optimizer moments for what trains."""
    parameters = list(trainer.model.parameters())
    weights = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
    if getattr(trainer.args, "save_only_model", False) or trainer.args.save_strategy == "no":
        return weights
    return weights + 2 * sum(4 * p.numel() for p in parameters if p.requires_grad)


def save_model(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the result of a stage with its tokenizer and a manifest, in the first process.

    Raises:
        CheckpointError: the disk is full.
    """
    if not first_process():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors(folder.parent):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_manifest(folder)


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch."""
    transformers.set_seed(seed)
