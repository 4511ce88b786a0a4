"""Training itself: callbacks around a trainer, where it resumes, what is saved when it stops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback, TrainerState

from align.config.sections import SignalsSection
from align.config.stages import TrainingStage
from align.engine.checkpoint import (
    MANIFEST,
    CheckpointCallback,
    check_space,
    disk_errors,
    load_state,
    newest_valid,
)
from align.engine.finite import GradientCheck, SkipLimit
from align.engine.monitor import MetricsCallback, StopCallback, StopSignals
from align.engine.profile import ProfileCallback
from align.errors import Interrupted, RewardError, SamplerError
from align.run import Run
from align.signals import Limits, StopRules, Watch
from align.signals.callback import SignalsCallback
from align.stages.common import console
from align.stages.order import note_draws


def train(trainer: Any, config: TrainingStage, run: Run, *, resume: bool) -> None:
    """Run a trainer with our callbacks, resuming from the newest checkpoint that verifies.

    Raises:
        Interrupted: after a signal; the checkpoint has been written.
        CheckpointError: the disk is full, or no checkpoint can be resumed from.
        NonFiniteError: per `tracking.non_finite`, and when too many steps in a row are skipped.
    """
    keep, trainer.args.save_total_limit = trainer.args.save_total_limit, None  # we rotate
    trainer.finite_folder, trainer.non_finite = run.path, config.tracking.non_finite
    signals, watch = StopSignals(), watch_of(config, run)
    gradients = GradientCheck(config.tracking.non_finite)
    metrics = MetricsCallback(run, console, watch.note if watch else None)
    lineage = {"run": run.path.name, "parents": run.record.get("parents", [])}

    def state() -> dict[str, Any]:
        guards = [guard.state_dict() for guard in trainer.guards]  # two may share a name
        extra = trainer.extra_state() if hasattr(trainer, "extra_state") else {}
        return {"guards": guards, "trainer": extra, "signals": watch and watch.state_dict()}

    callbacks: list[TrainerCallback] = [
        gradients,
        StopCallback(signals),
        *([watch] if watch else []),
        metrics,
        SkipLimit(trainer, gradients),
        CheckpointCallback(state, keep, lineage),
    ]
    if config.tracking.profile:
        callbacks.append(ProfileCallback(run.path / "profile", console.print))
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
    draws = getattr(trainer, "draws", None)
    note_draws(run, draws, draws.next_step if draws else 0)
    if watch and watch.stopped:
        run.finish(stopped=watch.stopped)
    for count, what in (
        (trainer.skipped_batches, "batches with a non-finite loss"),
        (gradients.cleared, "steps with a non-finite gradient"),
    ):
        if count:
            run.warn(f"{count} {what} were skipped.")
            console.print(f"[yellow]warning:[/] {count} {what} were skipped.", highlight=False)


def save_now(trainer: Any) -> Path | None:
    """Write a checkpoint of the last whole step, when something outside failed between two steps.

    Not with several processes: the others need not have failed, and would be waited for in vain.

    Returns:
        The checkpoint, which may have been there already; None before the first step.
    """
    step = trainer.state.global_step
    if trainer.args.world_size > 1:
        return None
    folder = Path(str(trainer.args.output_dir)) / f"checkpoint-{step}"
    if (folder / MANIFEST).is_file():
        return folder
    if step == 0 or trainer.args.save_strategy == "no":
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
    """Whether training had reached its last step, or run out of patience."""
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    stopping = state.stateful_callbacks.get("EarlyStoppingCallback")
    if isinstance(stopping, dict):
        waited = stopping["attributes"]["early_stopping_patience_counter"]
        if waited >= stopping["args"]["early_stopping_patience"]:
            return True
    return state.max_steps > 0 and state.global_step >= state.max_steps


def _load_finished(trainer: Any, checkpoint: Path) -> None:
    """Take the weights that a finished training ended with: the last, or the best where asked for.

    transformers, asked to resume there in the middle of an epoch, would train one step more.
    """
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    best = state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    trainer._load_from_checkpoint(best or str(checkpoint))
    trainer.state = state


def _checkpoint_bytes(trainer: Any) -> int:
    """Weights once more, and two optimizer moments for what trains."""
    parameters = list(trainer.model.parameters())
    weights = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
    if getattr(trainer.args, "save_only_model", False) or trainer.args.save_strategy == "no":
        return weights
    return weights + 2 * sum(4 * p.numel() for p in parameters if p.requires_grad)
