"""`--profile`: where the time and the memory of a few training steps go.

PyTorch's profiler watches steps after the first ones, which warm caches up. It leaves `trace.json`
(for ui.perfetto.dev or chrome://tracing) and `table.txt`, operators by their own time and by their
own memory. A profiled step is slower, so that its speed says nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.processes import process_index

FIRST, STEPS = 2, 3  # steps passed over, and watched
ROWS = 40  # of each table


class ProfileCallback(TrainerCallback):
    """Watches a few steps and writes what they did; shorter runs are watched to their end."""

    def __init__(self, folder: Path, say: Callable[[str], Any] = print):
        """Set up.

        Args:
            folder: where the files go; each process but the first has one of its own in it.
            say: tells where they are.
        """
        self.folder, self.say = folder, say
        self.running: profile | None = None
        self.seen = 0  # steps since training began
        self.watched = 0
        self.done = False

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin, once the first steps are over or no later one is left."""
        last = state.max_steps > 0 and state.global_step + 1 >= state.max_steps
        if self.done or self.running is not None or (self.seen < FIRST and not last):
            return
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self.running = profile(activities=activities, profile_memory=True)
        self.running.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End after enough steps."""
        self.seen += 1
        if self.running is not None:
            self.watched += 1
            if self.watched >= STEPS:
                self._write()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End with the run."""
        self._write()

    def _write(self) -> None:
        if self.running is None:
            return
        watched, self.running, self.done = self.running, None, True
        watched.stop()
        folder = self.folder if not process_index() else self.folder / str(process_index())
        folder.mkdir(parents=True, exist_ok=True)
        watched.export_chrome_trace(str(folder / "trace.json"))
        kind = "cuda" if torch.cuda.is_available() else "cpu"
        found = watched.key_averages()
        tables = [
            found.table(sort_by=f"self_{kind}_{what}", row_limit=ROWS)
            for what in ("time_total", "memory_usage")
        ]
        text = f"{self.watched} steps\n\n" + "\n\n".join(tables) + "\n"
        (folder / "table.txt").write_text(text, encoding="utf-8")
        self.say(f"profile: {folder / 'table.txt'} and trace.json of {self.watched} steps")
