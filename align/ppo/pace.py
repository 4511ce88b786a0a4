"""When training on one's own samples is saved: after each update whose checkpoint is worth it.

A checkpoint of a small model takes less than its update; one of a large model with a critic may
take longer. So they are paced by time: an update's end is saved once what went by since the last
checkpoint is `1 / SHARE` times what that one took. A killed run then loses the update in flight,
and where checkpoints are dear no more than twenty of them would have taken; and no run spends more
than a twentieth of its time on them. What is trained does not depend on any of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

SHARE = 0.05  # of the time that checkpoints may take


class SavePace(TrainerCallback):
    """Asks for checkpoints where `save_steps` is 0; to be the last callback, so as to time all."""

    def __init__(
        self,
        steps_per_update: int,
        sum_over_ranks: Callable[[Tensor], Tensor],
        clock: Callable[[], float] = time.monotonic,
    ):
        """Set up.

        Args:
            steps_per_update: optimizer steps on one batch of rollouts.
            sum_over_ranks: adds a tensor up over processes: the first one decides for all.
            clock: seconds.
        """
        self.steps_per_update = steps_per_update
        self.sum_over_ranks = sum_over_ranks
        self.clock = clock
        self.cost = 0.0  # seconds that the last checkpoint took
        self.saved = self.asked = clock()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for a checkpoint at the end of an update, if it is time."""
        self.asked = self.clock()
        paced = args.save_strategy == SaveStrategy.STEPS and not state.save_steps
        if not paced or state.global_step % self.steps_per_update:
            return
        due = args.process_index == 0 and self.cost <= SHARE * (self.asked - self.saved)
        if float(self.sum_over_ranks(torch.tensor(float(due)))) > 0:
            control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note what the checkpoint took, its hashes included."""
        self.saved = self.clock()
        self.cost = self.saved - self.asked
