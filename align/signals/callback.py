"""Alarms in a transformers Trainer: written to alarms.jsonl, printed, counted, acted on.

The run directory's alarms.jsonl is rewritten when training begins, from what the checkpoint kept:
steps that a resumed run repeats raise their alarms anew, once.
"""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.run import Run, append_jsonl
from align.signals.history import Alarm
from align.signals.stop import StopRules, stop_reason
from align.signals.watch import Watch

FILE = "alarms.jsonl"
COLOURS = {"warning": "yellow", "critical": "red"}


class SignalsCallback(TrainerCallback):
    """Watches what is logged; the first process judges, and tells the others when to stop."""

    def __init__(
        self,
        run: Run,
        watch: Watch | None = None,
        rules: StopRules | None = None,
        console: Console | None = None,
    ):
        self.run = run
        self.watch = watch or Watch()
        self.rules = rules or StopRules()
        self.console = console or Console(stderr=True)
        self.stopped: str | None = None  # why training ended early

    def note(self) -> str:
        """What the progress display shows: the alarms that are not over."""
        names = [name.replace("_", " ") for name in self.watch.active]
        if not names:
            return ""
        return f"{len(names)} alarm{'s' * (len(names) != 1)}: {', '.join(names)}"

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Bring alarms.jsonl to what the checkpoint knows."""
        if not state.is_world_process_zero:
            return
        (self.run.path / FILE).unlink(missing_ok=True)
        for alarm in self.watch.alarms:
            append_jsonl(self.run.path / FILE, alarm.as_dict())
        self._record()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Judge one line of metrics; save and stop where a rule says so."""
        reason = None
        if state.is_world_process_zero and logs:
            raised = self.watch.observe(state.global_step, logs)
            for alarm in raised:
                self._tell(alarm)
            self._record()
            reason = stop_reason(self.watch.history, self.rules, raised)
        if self.rules.any:
            reason = from_first_process(reason)
        if reason and self.stopped is None and state.global_step < state.max_steps:
            self.stopped = f"stopped at step {state.global_step}: {reason}"
            control.should_save = True
            control.should_training_stop = True
            if state.is_world_process_zero:
                self.console.print(f"[yellow]{escape(self.stopped)}[/]", highlight=False)
                self._record()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"watch": self.watch.state_dict(), "stopped": self.stopped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.watch.load_state_dict(state["watch"])
        self.stopped = state["stopped"]

    def _tell(self, alarm: Alarm) -> None:
        append_jsonl(self.run.path / FILE, alarm.as_dict())
        colour = COLOURS[alarm.severity]
        head = f"[{colour}]alarm, {alarm.name.replace('_', ' ')}[/] (step {alarm.step}):"
        self.console.print(f"{head} {escape(alarm.message)}", highlight=False)

    def _record(self) -> None:
        """Keep in run.json what was looked for: no alarm is not the same as nobody looking."""
        found = {"watched": self.watch.watched(), "stopped": self.stopped}
        if self.run.record.get("signals") != found:
            self.run.update(signals=found)


def from_first_process(value: str | None) -> str | None:
    """The first process's value, on every process of a distributed run."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]
