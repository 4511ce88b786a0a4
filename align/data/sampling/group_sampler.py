"""`grouped_order` as a torch sampler: another order each epoch, a function of seed and epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from align.data.curriculum.rank import Ints
from align.data.sampling.groups import grouped_order

KEY = 4  # keeps these numbers apart from those of other orders of the same seed


class GroupSampler(Sampler[int]):
    """Row numbers, an epoch each time it is iterated; each `batch_size` of them are a batch.

    With several processes give every rank the same sampler and let the loader hand each of them
    whole batches, as accelerate does: then `batch_size` is of one process.
    """

    def __init__(self, groups: Sequence[int] | Ints, batch_size: int, seed: int = 0):
        """`groups` is (N,), equal numbers for rows that belong together."""
        self.groups: Ints = np.asarray(groups, dtype=np.int64)
        self.batch_size, self.seed = batch_size, seed % 2**32  # numpy takes no negative ones
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[int]:
        epoch = self.epoch
        yield from self.order(epoch).tolist()
        self.epoch = epoch + 1

    def order(self, epoch: int) -> Ints:
        """The rows of an epoch, (N,)."""
        return grouped_order(self.groups, self.batch_size, [self.seed, KEY, epoch])

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch; transformers and accelerate call it."""
        self.epoch = epoch

    def fingerprint(self) -> str:
        """SHA-256 (16 hex digits) of what decides the order."""
        digest = hashlib.sha256(f"{self.batch_size} {self.seed}".encode())
        digest.update(self.groups.tobytes())
        return digest.hexdigest()[:16]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds; rows of the epoch that were trained on are the loader's."""
        return {"fingerprint": self.fingerprint(), "epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`.

        Raises:
            ValueError: it is of other rows, prompts or batches.
        """
        if state["fingerprint"] != self.fingerprint():
            raise ValueError(
                f"the saved order {state['fingerprint']} is not this one, {self.fingerprint()}: "
                "the rows, their prompts, the seed or the batch size changed. Fix: resume with "
                "the same data and settings, or start a new run."
            )
        self.epoch = int(state["epoch"])
