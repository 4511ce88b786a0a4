"""Arguments of every trainer that samples from the policy it trains.

PPO's own are in `align.ppo.config`, online DPO's in `align.ppo.online_dpo`.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field

from transformers import TrainingArguments

from align.errors import ConfigError, Problem
from align.processes import processes


@dataclass
class RolloutArguments(TrainingArguments):
    """What the outer loop needs, beside everything transformers' TrainingArguments has.

    One update samples `rollout_batch_size` completions per process and takes
    epochs * rows_per_update / (per_device_train_batch_size * gradient_accumulation_steps)
    optimizer steps on them. `max_steps` follows from `total_episodes`.
    """

    learning_rate: float = field(default=3e-6, metadata={"help": "Of policy and, unset, critic."})
    logging_steps: float = field(default=1, metadata={"help": "In optimizer steps."})
    save_steps: float = field(default=0, metadata={"help": "0: after updates, see ppo.pace."})
    lr_scheduler_type: str = field(default="constant_with_warmup", metadata={"help": "Schedule."})
    total_episodes: int = field(default=10_000, metadata={"help": "Completions over all updates."})
    rollout_batch_size: int = field(default=64, metadata={"help": "Completions per update, rank."})
    group_size: int = field(default=1, metadata={"help": "Completions per prompt."})
    missing_eos_penalty: float = field(default=1.0, metadata={"help": "Off the score, if unended."})
    overlong_buffer: int = field(default=0, metadata={"help": "Last tokens; 0: no penalty."})
    overlong_penalty: float = field(default=1.0, metadata={"help": "At the length limit."})
    length_penalty: float = field(default=0.0, metadata={"help": "Off the score, per token."})
    reward_clip: float | None = field(default=None, metadata={"help": "Bound on |score|."})
    rollouts_ahead: bool = field(default=False, metadata={"help": "Draw while training."})
    self_check: bool = field(default=True, metadata={"help": "Ratio 1 and KL 0 at step 0."})

    def __post_init__(self) -> None:
        """Check what belongs together and derive `max_steps`.

        Raises:
            ConfigError: with every problem found.
        """
        problems = self._problems()
        if problems:
            raise ConfigError(problems)
        if self.max_steps < 0:
            self.max_steps = self.updates * self.steps_per_update
        self.ignore_data_skip = True  # the loader restores its own position
        self.remove_unused_columns = False
        self.logging_nan_inf_filter = False
        super().__post_init__()

    @property
    def epochs(self) -> int:
        """Passes over each batch of rollouts."""
        return 1

    @property
    def rows_per_update(self) -> int:
        """Rows that train in each pass, per process."""
        return self.rollout_batch_size

    @property
    def steps_per_update(self) -> int:
        """Optimizer steps on one batch of rollouts."""
        step = self.per_device_train_batch_size * self.gradient_accumulation_steps
        return self.epochs * (self.rows_per_update // step)

    @property
    def updates(self) -> int:
        """Batches of rollouts; `total_episodes` counts over all processes."""
        return max(1, self.total_episodes // (self.rollout_batch_size * processes()))

    @property
    def bounds(self) -> Mapping[str, str]:
        """What each number must satisfy, as `outside` reads it."""
        return {
            "learning_rate": ">= 0",
            "total_episodes": ">= 1",
            "rollout_batch_size": ">= 1",
            "overlong_buffer": ">= 0",
            "overlong_penalty": ">= 0",
            "length_penalty": ">= 0",
            "reward_clip": "> 0",
        }

    def _problems(self) -> list[Problem]:
        found = []
        if self.group_size < 1 or self.rollout_batch_size % self.group_size:
            found.append(
                Problem(
                    "trainer.group_size",
                    f"{self.group_size} does not divide rollout_batch_size = "
                    f"{self.rollout_batch_size}.",
                )
            )
        else:
            found += self._whole_steps()
        found += outside(self, self.bounds)
        world = processes()
        if 1 <= self.total_episodes < self.rollout_batch_size * world:
            found.append(
                Problem(
                    "trainer.total_episodes",
                    f"{self.total_episodes} is less than one update's {self.rollout_batch_size} "
                    f"episodes on {world} process{'es' * (world > 1)}.",
                    "raise it, or lower rollout_batch_size.",
                )
            )
        if self.num_train_epochs != 3:  # transformers' own default
            found.append(
                Problem(
                    "trainer.num_train_epochs",
                    "there are no epochs where the policy makes its own data.",
                    "set total_episodes instead.",
                )
            )
        if self.eval_strategy != "no":
            found.append(
                Problem(
                    "trainer.eval_strategy",
                    "nothing is evaluated while the policy trains on its own samples.",
                    "remove it and run `align evaluate` on the result.",
                )
            )
        return found

    def _whole_steps(self) -> list[Problem]:
        step = self.per_device_train_batch_size * self.gradient_accumulation_steps
        if self.rows_per_update % step == 0:
            return []
        rows = max(step, self.rows_per_update // step * step)
        return [
            Problem(
                "trainer.rollout_batch_size",
                f"{self.rollout_batch_size} makes {self.rows_per_update} rows an update, no "
                f"multiple of per_device_train_batch_size * gradient_accumulation_steps = {step}.",
                f"use {rows * self.rollout_batch_size // max(1, self.rows_per_update)}.",
            )
        ]


def outside(values: object, bounds: Mapping[str, str]) -> list[Problem]:
    """The attributes that break their bound.

    Args:
        values: has the attributes; None is within every bound.
        bounds: name -> one or two of `> x`, `>= x`, `<= x`, joined by " and ".
    """
    compare = {">": operator.gt, ">=": operator.ge, "<=": operator.le}
    found = []
    for name, bound in bounds.items():
        value = getattr(values, name)
        if value is None:
            continue
        parts = [part.split() for part in bound.split(" and ")]
        if not all(compare[sign](value, float(limit)) for sign, limit in parts):  # NaN is outside
            found.append(Problem(f"trainer.{name}", f"{value}; {bound} is expected."))
    return found
