"""Puts an order of ours where a trainer's own sampler was: transformers' Trainer and TRL's alike.

The loader stays the trainer's own, prepared by accelerate; only the sampler inside it is another
one. Every process draws the whole order and accelerate hands each its batches. A resumed run passes
over what was trained, as transformers does with its own sampler, and adaptive pacing's changes come
from the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.trainer.utils import RepeatSampler

from align.data.curriculum.rank import Ints
from align.data.sampling import DrawOrder, GroupSampler, OrderPlan, OrderSampler
from align.errors import CheckpointError, ConfigError, Problem

ORDERS, GROUPED = "data.curriculum, data.sampler", "data.batches"  # what asks for an order


class OrderMixin:
    """Adds `order` to a Trainer: `class SFTTrainer(OrderMixin, trl.SFTTrainer)`."""

    draws: DrawOrder | None = None
    grouped: GroupSampler | None = None  # in its place, where the plan has groups
    order_lead = 1  # steps of the order that a loader may have drawn ahead of training

    def __init__(self, *args: Any, order: OrderPlan | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.order_plan = order
        self.order_saved: Mapping[str, Any] | None = None  # of the checkpoint that is resumed
        if order is None:
            return
        rows = len(self.train_dataset)  # type: ignore[attr-defined]
        if rows != order.rows:
            what = f"{order.rows} rows were measured, but the trainer made {rows} of them."
            fix = "leave out what drops or joins rows in `trainer`."
            where = ORDERS if order.groups is None else GROUPED
            raise ConfigError([Problem(where, what, fix)])
        self.add_callback(_Validations(self))  # type: ignore[attr-defined]

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The trainer's loader, with our order of rows in it."""
        loader: DataLoader[Any] = super().get_train_dataloader()  # type: ignore[misc]
        if self.order_plan is None:
            return loader
        args: Any = self.args  # type: ignore[attr-defined]
        batches = innermost(loader)
        if self.order_plan.groups is not None:
            batches.sampler = self._grouped(self.order_plan.groups, batches.batch_size)
            return loader
        # accelerate reads a batch ahead, and each worker of a loader so many more.
        ahead = 1 + args.dataloader_num_workers * (args.dataloader_prefetch_factor or 2)
        self.order_lead = math.ceil(ahead / args.gradient_accumulation_steps)
        if args.max_steps > 0:
            total = args.max_steps
        else:
            per_epoch = math.ceil(len(loader) / args.gradient_accumulation_steps)
            total = math.ceil(args.num_train_epochs * per_epoch)
        epoch = 0
        repeated = batches.sampler
        if isinstance(repeated, RepeatSampler):
            group = repeated.batch_size
            self.draws = self.order_plan.open(
                group,
                total,
                per_epoch=self.order_plan.rows // group * group,
                scale=repeated.repeat_count / args.gradient_accumulation_steps,
            )
        else:
            together = batches.batch_size * args.world_size
            rows = self.order_plan.rows
            self.draws = self.order_plan.open(
                together * args.gradient_accumulation_steps,
                total,
                per_epoch=rows // together * together if batches.drop_last else rows,
            )
        if self.order_saved is not None:
            resume_draws(self.draws, self.order_saved["draws"])
            epoch = self.order_saved["epoch"]
        sampler = OrderSampler(self.draws)
        sampler.set_epoch(epoch)
        batches.sampler = (
            RepeatedOrder(sampler, repeated) if isinstance(repeated, RepeatSampler) else sampler
        )
        return loader

    def _grouped(self, groups: Ints, batch_size: int) -> GroupSampler:
        """An order in groups, in the epoch of the checkpoint that is resumed.

        Batches are those of one process: accelerate hands each process whole ones, in turn.
        """
        assert self.order_plan is not None
        self.grouped = GroupSampler(groups, batch_size, self.order_plan.seed)
        if self.order_saved is not None:
            _restore(self.grouped, self.order_saved, GROUPED)
        return self.grouped

    def trained_draws(self) -> int:
        """Steps of the order that were trained on, the current one included."""
        assert self.draws is not None
        return math.ceil(self.state.global_step / self.draws.scale)  # type: ignore[attr-defined]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add competence, the pool and the batches' difficulty to the logged metrics."""
        if self.draws is not None and "loss" in logs:
            logs |= self.draws.metrics(self.trained_draws())
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def extra_state(self) -> dict[str, Any]:
        """What a checkpoint holds beside the trainer's own."""
        above = getattr(super(), "extra_state", dict)
        state: dict[str, Any] = above()
        epoch = int((self.state.epoch or 0) + 1e-6)  # type: ignore[attr-defined]
        if self.draws is not None:
            state["order"] = {"draws": self.draws.state_dict(), "epoch": epoch}
        if self.grouped is not None:
            state["order"] = self.grouped.state_dict() | {"epoch": epoch}
        return state

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore `extra_state`, before training begins."""
        above = getattr(super(), "load_extra_state", None)
        if above is not None:
            above(state)
        self.order_saved = state.get("order")


class _Validations(TrainerCallback):
    """Tells adaptive pacing each validation loss."""

    def __init__(self, trainer: OrderMixin):
        self.trainer = trainer

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take `eval_loss`."""
        draws, loss = self.trainer.draws, (metrics or {}).get("eval_loss")
        if draws is not None and loss is not None:
            # Counted, not looked up: what is drawn by now differs with the number of processes.
            next_step = self.trainer.trained_draws() + self.trainer.order_lead
            draws.observe(float(loss), next_step)


class RepeatedOrder(Sampler[int]):
    """TRL's RepeatSampler on another order: each chunk of prompts in groups, several times."""

    def __init__(self, sampler: OrderSampler, like: RepeatSampler):
        self.sampler, self.like = sampler, like

    def __len__(self) -> int:
        return len(self.like)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch."""
        self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        chunk: list[int] = []
        for row in self.sampler:
            chunk.append(row)
            if len(chunk) == self.like.batch_size:
                grouped = [one for one in chunk for _ in range(self.like.mini_repeat_count)]
                for _ in range(self.like.repeat_count):
                    yield from grouped
                chunk = []


def resume_draws(draws: DrawOrder, state: Mapping[str, Any]) -> None:
    """Go on with a saved order.

    Raises:
        CheckpointError: it was made of other rows, difficulties, weights or batches.
    """
    _restore(draws, state, ORDERS)


def _restore(order: DrawOrder | GroupSampler, state: Mapping[str, Any], where: str) -> None:
    try:
        order.load_state_dict(state)
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error


def innermost(loader: DataLoader[Any]) -> BatchSampler:
    """The batch sampler that draws rows, inside those of accelerate.

    Accelerate's own has an attribute `sampler` too, which nothing reads: only the last one counts.
    """
    inner: Any = loader.batch_sampler
    while hasattr(inner, "batch_sampler"):
        inner = inner.batch_sampler
    assert isinstance(inner, BatchSampler)
    return inner
