"""What TRL's group-sampling trainers (GRPO, RLOO) lack to be stages of Align's.

Metrics under Align's names and resuming to the bit. TRL restarts its prompt order at the epoch
that a run is resumed in, and forgets the completions that were still to be trained on. Both are
mended through public methods; the two attributes that are read, `_step` and `_buffered_inputs`,
are held to by tests/seams/test_trl_grpo.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.utils.data import DataLoader
from trl.trainer.utils import RepeatSampler

NAMES = {
    "reward": "reward/mean",
    "reward_std": "reward/std",
    "frac_reward_zero_std": "reward/zero_std_groups",
    "entropy": "policy/entropy",
    "policy_loss": "policy/loss",
    "entropy_coef": "policy/entropy_coef",
    "clip_ratio/region_mean": "policy/clip_fraction",
    "clip_ratio/low_mean": "policy/clip_fraction_low",
    "clip_ratio/high_mean": "policy/clip_fraction_high",
    "completions/mean_length": "rollout/length_mean",
    "completions/min_length": "rollout/length_min",
    "completions/max_length": "rollout/length_max",
    "completions/mean_terminated_length": "rollout/finished_length_mean",
    "sampling/sampling_logp_difference/mean": "rollout/sampler_gap",
    "sampling/importance_sampling_ratio/mean": "correction/ratio_mean",
    "sampling/importance_sampling_ratio/max": "correction/ratio_max",
}
DROPPED = (
    "rewards/",  # TRL's own record of the sum, which is one reward function to it
    "clip_ratio/low_min",
    "clip_ratio/high_max",
    "completions/min_terminated",
    "completions/max_terminated",
    "sampling/",
)


def align_names(logs: Mapping[str, Any]) -> dict[str, Any]:
    """TRL's metrics under Align's names and units; what is not TRL's stays as it is.

    The KL becomes nats per answer: TRL's mean per token times the mean length.
    """
    return dict(_renamed(logs))


def _renamed(logs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in logs.items():
        prefix = "eval_" if key.startswith("eval_") else ""
        name = key.removeprefix(prefix)
        if name == "completions/clipped_ratio":
            yield f"{prefix}rollout/eos_rate", None if value is None else 1.0 - value
        elif name == "kl":
            length = logs.get(f"{prefix}completions/mean_length")
            known = value is not None and length is not None
            yield f"{prefix}kl/reference", value * length if known else None
        elif name in NAMES:
            yield prefix + NAMES[name], value
        elif not name.startswith(DROPPED):
            yield key, value


class AlignNames(transformers.Trainer):
    """Stands *after* TRL's trainer among the bases, so that its `log` sees TRL's metrics."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log under Align's names."""
        super().log(align_names(logs), start_time)


class ResumableGroups:
    """Stands before TRL's trainer: a resumed run goes on with the same prompts and completions."""

    epochs_drawn: int = 0  # prompt orders that were drawn before this process
    _step: int  # TRL's count of micro-batches
    _buffered_inputs: Any  # TRL's completions that are still to be trained on, by micro-batch

    def get_train_dataloader(self) -> DataLoader[Any]:
        """TRL's loader, its prompt order where the interrupted run's was."""
        loader = super().get_train_dataloader()  # type: ignore[misc]
        sampler = repeat_sampler(loader)
        if sampler is not None and sampler.shuffle:
            for _ in range(self.epochs_drawn):
                torch.randperm(sampler.num_samples, generator=sampler.generator)
        return loader

    def extra_state(self) -> dict[str, Any]:
        """What a checkpoint has to hold beside TRL's own."""
        every = self.args.steps_per_generation * self.num_iterations  # type: ignore[attr-defined]
        step, waiting = self._step, self._buffered_inputs
        state = {
            "epochs": int(self.state.epoch + 1e-6),  # type: ignore[attr-defined]
            "step": step,
            # Half-used completions; a full number of steps later there is nothing left of them.
            "waiting": [_moved(batch, "cpu") for batch in waiting] if step % every else None,
        }
        scorer = getattr(self, "scorer", None)
        return state | ({"reward": scorer.state_dict()} if scorer is not None else {})

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore `extra_state`, before training begins."""
        device = self.args.device  # type: ignore[attr-defined]
        self.epochs_drawn, self._step = state["epochs"], state["step"]
        if state["waiting"] is not None:
            self._buffered_inputs = [_moved(batch, device) for batch in state["waiting"]]
        scorer = getattr(self, "scorer", None)
        if scorer is not None:
            scorer.load_state_dict(state["reward"])


def repeat_sampler(loader: DataLoader[Any]) -> RepeatSampler | None:
    """TRL's sampler inside a loader that accelerate may have wrapped; None for streamed data."""
    inner: Any = loader.batch_sampler
    while inner is not None and not isinstance(inner, RepeatSampler):
        inner = getattr(inner, "batch_sampler", None) or getattr(inner, "sampler", None)
    return inner


def _moved(batch: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
