"""`DrawOrder` as a torch sampler, for any DataLoader; its state goes into a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import Sampler

from align.data.sampling.order import DrawOrder


class OrderSampler(Sampler[int]):
    """Row numbers, an epoch each time it is iterated.

    With several processes give every rank the same sampler and let the loader take its part of the
    batches (accelerate does), or take `rank::world` of the batches yourself: the order is global.
    """

    def __init__(self, order: DrawOrder, length: int | None = None):
        """`length` is draws of an epoch where `order` has no epochs; default: as many as rows."""
        self.order = order
        self.length = order.per_epoch or length or order.rows
        if order.per_epoch is None and self.length % order.per_step:
            raise ValueError(
                f"an epoch of {self.length} draws does not end with a step of {order.per_step}: "
                "give the order per_epoch."
            )
        self.epoch = 0
        self.position = 0  # draws of this epoch that were handed out, or are to be passed over

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.length // self.order.per_step)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        epoch, passed = self.epoch, self.position
        first = passed // self.order.per_step
        for step in range(first, self.steps):
            rows = self.order.rows_at(epoch * self.steps + step)
            for place, row in enumerate(rows, start=step * self.order.per_step):
                if place >= passed:
                    self.position = place + 1
                    yield row
        self.epoch, self.position = epoch + 1, 0

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch; transformers and accelerate call it."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """Where it stands.

        A loader with workers reads ahead: set `position` to the rows trained on there.
        """
        return {"order": self.order.state_dict(), "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`; the next iteration goes on from there.

        Raises:
            ValueError: see `DrawOrder.load_state_dict`.
        """
        self.order.load_state_dict(state["order"])
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
