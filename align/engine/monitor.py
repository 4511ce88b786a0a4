"""What watches a training run: metrics, progress, signals.

Leaves out values that are not finite (`align.engine.finite`) and alarms (`align.signals`).
"""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.run import Run

SHOWN = {  # metric: label in the progress display, in this order
    "loss": "loss",
    "skipped_batches": "skipped",
    "reward/mean": "reward",
    "kl/reference": "KL",
    "accuracy": "acc",
    "rewards/accuracies": "acc",
    "rewards/margins": "margin",
    "mean_token_accuracy": "acc",
    "tokens_per_second": "tok/s",
}


class StopSignals:
    """Ctrl-C and SIGTERM ask for a checkpoint and a clean end; a second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self.received: str | None = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    @contextmanager
    def listening(self) -> Iterator[StopSignals]:
        """Handle the signals inside; a thread other than the main one listens to nothing."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        try:
            before = [signal.signal(number, self._handle) for number in numbers]
        except ValueError:  # not the main thread
            yield self
            return
        try:
            yield self
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)


class StopCallback(TrainerCallback):
    """Saves and stops after the step in which a signal arrived."""

    def __init__(self, signals: StopSignals):
        self.signals = signals

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Ask the trainer to save and stop."""
        if self.signals.received and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True


class MetricsCallback(TrainerCallback):
    """Writes metrics.jsonl and draws the progress of a run; `note` adds words of another's."""

    def __init__(
        self, run: Run, console: Console | None = None, note: Callable[[], str] | None = None
    ):
        self.run = run
        self.console = console or Console(stderr=True)
        self.note = note
        self.progress: Progress | None = None
        self.task: Any = None
        self.last = (time.perf_counter(), 0.0)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the display."""
        self.last = (time.perf_counter(), 0.0)
        if not state.is_world_process_zero:
            return
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=self.console,
            transient=False,
            disable=not self.console.is_terminal,
        )
        self.progress.start()
        self.task = self.progress.add_task(
            self.run.stage, total=state.max_steps, completed=state.global_step, metrics=""
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the bar."""
        if self.progress is not None:
            self.progress.update(self.task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write one line of metrics."""
        if not state.is_world_process_zero or not logs:
            return
        metrics = dict(logs)
        tokens = metrics.get("num_tokens")
        if tokens is not None and "loss" in metrics:
            now = time.perf_counter()
            before, counted = self.last
            if counted and tokens == counted:  # PPO counts once per batch of rollouts
                tokens = None
            elif counted:
                metrics["tokens_per_second"] = (tokens - counted) / max(now - before, 1e-9)
            if tokens is not None:
                self.last = (now, tokens)
        if "loss" in metrics:
            metrics["memory_gib"] = peak_memory_gib()
        self.run.log(metrics, step=state.global_step)
        self._show(metrics, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop the display."""
        self.close()

    def close(self) -> None:
        """Stop the display, also after an error."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def _show(self, metrics: dict[str, float], state: TrainerState) -> None:
        parts: dict[str, str] = {}
        for key, label in SHOWN.items():
            value = metrics.get(key)
            if isinstance(value, int | float) and label not in parts:
                digits = f"{value:,.0f}" if label == "tok/s" else f"{value:.3g}"
                parts[label] = f"{label} {digits}"
        shown = list(parts.values())
        if shown and self.note is not None and (words := self.note()):
            shown.append(words)
        text = "  ".join(shown)
        if self.progress is not None and self.console.is_terminal:
            self.progress.update(self.task, metrics=text)
        elif text:
            place = f"{self.run.stage} {state.global_step}/{state.max_steps}"
            self.console.print(f"{place}  {text}", highlight=False)


def peak_memory_gib() -> float:
    """Peak memory of the accelerator, or of this process on a CPU, in GiB."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**30, 3)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)
