"""Soft labels in TRL's preference trainers: the column carried, the term added, ties not counted.

TRL 1.16 computes -log sigmoid(d) for a pair's margin d and drops the column `soft_label`, P(chosen
is better). Cross-entropy with that label is TRL's loss plus (1 - p) d, so nothing of TRL's loss is
repeated here: its result is kept and the term is added. Where p is 1 the sum is TRL's, bit for bit.

Two seams are TRL's own and pinned by `tests/seams`: the margins come from the outputs of the
forward passes it makes, and its list of accuracies is replaced, because a pair at one half has no
better answer to find. Leaves out losses other than the logistic one: `refuse_soft_labels`
refuses them, and every option that changes the margin or already softens it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn

from align.data import Splits
from align.errors import ConfigError, Problem
from reward.losses import decided, soft_label_term
from reward.preferences import SOFT_LABEL

Inputs = dict[str, Any]  # a collated batch: tensors by name
WITHOUT = "leave it out, or train on hard labels (data.labels=majority, no soft_label column)."


def has_soft_labels(data: Splits) -> bool:
    """Whether any part of a stage's data has the column."""
    parts = (data.train, data.validation, data.test)
    return any(part is not None and SOFT_LABEL in part.column_names for part in parts)


def refuse_soft_labels(args: Any) -> None:
    """Refuse a trainer's arguments that do not go with soft labels.

    Args:
        args: TRL's RewardConfig or DPOConfig.

    Raises:
        ConfigError: another loss than the sigmoid one, label smoothing, or an option that makes
            another margin, with every problem found.
    """
    neutral = {  # option: the value that leaves the logistic loss of the plain margin
        "label_smoothing": 0.0,
        "label_smoothing_factor": 0.0,
        "ld_alpha": None,
        "f_divergence_type": "reverse_kl",
        "use_weighting": False,
    }
    problems = []
    losses = getattr(args, "loss_type", None)
    if losses is not None and list(losses) != ["sigmoid"]:
        what = f"{', '.join(losses)}: soft labels have a meaning in the sigmoid loss alone."
        fix = "set trainer.loss_type=[sigmoid], or train on hard labels (data.labels=majority)."
        problems.append(Problem("trainer.loss_type", what, fix))
    for name, value in neutral.items():
        found = getattr(args, name, value)
        if found != value:
            what = f"{found!r} does not go with soft labels, which say how sure each label is."
            problems.append(Problem(f"trainer.{name}", what, WITHOUT))
    if problems:
        raise ConfigError(problems)


class SoftLabelCollator:
    """A collator that also hands on the examples' soft labels, (B,) float32."""

    def __init__(self, collate: Callable[[Sequence[Inputs]], Inputs]):
        self.collate = collate

    def __call__(self, examples: Sequence[Inputs]) -> Inputs:
        """The batch, with `soft_label` where the examples have it."""
        batch = self.collate(examples)
        if SOFT_LABEL in examples[0]:
            labels = [example[SOFT_LABEL] for example in examples]
            batch[SOFT_LABEL] = torch.tensor(labels, dtype=torch.float32)
        return batch


class SoftLabelMixin:
    """What both trainers share. `accuracy_metric` is TRL's name for the share of right pairs."""

    accuracy_metric: str
    data_collator: Any

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.verdicts: dict[str, tuple[float, float]] = {}  # by mode: right pairs, decided pairs
        train, held_out = self.train_dataset, self.eval_dataset  # type: ignore[attr-defined]
        parts = list(held_out.values()) if isinstance(held_out, dict) else [held_out]
        columns = [part.column_names for part in [train, *parts] if isinstance(part, Dataset)]
        if any(SOFT_LABEL in names for names in columns):
            # transformers would remove the column; TRL's collators read only what they know.
            self.args.remove_unused_columns = False  # type: ignore[attr-defined]
            self.data_collator = SoftLabelCollator(self.data_collator)

    def count_verdicts(self, margins: Tensor, soft_labels: Tensor) -> None:
        """Add a batch to the accuracy of the pairs that have a better answer."""
        known = decided(soft_labels)
        right = (margins.detach() > 0) & known
        right, known = self.accelerator.gather_for_metrics((right, known))  # type: ignore[attr-defined]
        before = self.verdicts.get(self.mode, (0.0, 0.0))
        self.verdicts[self.mode] = (before[0] + float(right.sum()), before[1] + float(known.sum()))

    @property
    def mode(self) -> str:
        """As TRL names its metrics: train or eval."""
        return "train" if self.model.training else "eval"  # type: ignore[attr-defined]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """TRL's metrics, with the accuracy of the pairs that have a better answer."""
        if self.mode in self.verdicts:
            right, known = self.verdicts.pop(self.mode)
            metrics = self._metrics[self.mode]  # type: ignore[attr-defined]
            metrics.pop(self.accuracy_metric, None)
            if known:
                metrics[self.accuracy_metric] = [right / known]
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


class SoftRewardMixin(SoftLabelMixin):
    """Soft labels for TRL's RewardTrainer."""

    accuracy_metric = "accuracy"

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Inputs,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """TRL's loss plus the mean of (1 - p) d."""
        if SOFT_LABEL not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[misc]
        plain, labels = _apart(inputs)
        loss, outputs = super().compute_loss(model, plain, True, num_items_in_batch)  # type: ignore[misc]
        chosen, rejected = outputs.logits.squeeze(-1).chunk(2)  # (B,) each
        loss = loss + soft_label_term(chosen - rejected, labels).mean()
        self.count_verdicts(chosen - rejected, labels)
        return (loss, outputs) if return_outputs else loss


class SoftDPOMixin(SoftLabelMixin):
    """Soft labels for TRL's DPOTrainer with the sigmoid loss."""

    accuracy_metric = "rewards/accuracies"

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Inputs,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """TRL's loss plus the mean of (1 - p) d, where d is beta times the margin."""
        if SOFT_LABEL not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[misc]
        plain, labels = _apart(inputs)
        with _forward_outputs(self.model, self.ref_model) as seen:  # type: ignore[attr-defined]
            result = super().compute_loss(model, plain, return_outputs, num_items_in_batch)  # type: ignore[misc]
        margins = self.beta * _margins(seen, plain)  # type: ignore[attr-defined]
        term = soft_label_term(margins, labels).mean() * self.loss_weights[0]  # type: ignore[attr-defined]
        self.count_verdicts(margins, labels)
        return (result[0] + term, *result[1:]) if isinstance(result, tuple) else result + term

    def compute_ref_log_probs(self, model: nn.Module, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """TRL's, which would hand the label to the model."""
        return super().compute_ref_log_probs(model, _apart(inputs)[0])  # type: ignore[misc]


def _apart(inputs: Inputs) -> tuple[Inputs, Any]:
    """The batch without its soft labels, and those."""
    return {name: v for name, v in inputs.items() if name != SOFT_LABEL}, inputs.get(SOFT_LABEL)


@contextmanager
def _forward_outputs(*models: nn.Module | None) -> Iterator[list[Any]]:
    """What the models return inside: TRL runs the policy first, then the reference."""
    seen: list[Any] = []
    handles = [
        model.register_forward_hook(lambda module, args, output: seen.append(output))
        for model in models
        if model is not None
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _margins(seen: Sequence[Any], inputs: Inputs) -> Tensor:
    """Chosen minus rejected log-ratios of policy and reference, summed over tokens, (B,)."""
    width = inputs["completion_mask"].shape[1] - 1  # PEFT's virtual tokens come before

    def answers(output: Any) -> tuple[Tensor, ...]:
        return output.log_probs[:, -width:].sum(dim=1).chunk(2)

    chosen, rejected = answers(seen[0])
    if "ref_chosen_logps" in inputs:
        reference: tuple[Tensor, ...] = (inputs["ref_chosen_logps"], inputs["ref_rejected_logps"])
    else:
        reference = answers(seen[1])
    return (chosen - reference[0]) - (rejected - reference[1])
