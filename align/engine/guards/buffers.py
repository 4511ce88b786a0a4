"""What is kept of a stream that cannot be kept whole: reservoir, ring, class-balanced, herding.

- reservoir: every item seen is kept with the same chance (Vitter 1985, algorithm R).
- ring: the last items of each class (Chaudhry et al. 2019, "On tiny episodic memories", section 4).
- balanced: a reservoir in each class, all of the same size as far as there are items (Chrysakis &
  Moens 2020, "Online continual learning from imbalanced data", algorithm 1, here with an exact
  share for each class instead of eviction by chance).
- herding: of each class the items whose running mean follows the class's (`herding`).

Buffers hold any items; those of a class need its key.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from random import Random
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
BufferKind = Literal["reservoir", "ring", "balanced"]


class Buffer(Generic[Item]):
    """At most `capacity` items of a stream."""

    def __init__(
        self,
        kind: BufferKind,
        capacity: int,
        *,
        seed: int = 0,
        key: Callable[[Item], Hashable] | None = None,
    ):
        """Set up.

        Args:
            kind: what is kept; see the module.
            capacity: how many, at least 1.
            seed: of what is left to chance.
            key: an item's class; without, all are of one.
        """
        self.kind, self.capacity, self.key = kind, capacity, key
        self.random = Random(seed)
        self.classes: dict[Hashable, list[Item]] = {}
        self.seen: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return sum(map(len, self.classes.values()))

    @property
    def items(self) -> list[Item]:
        """What is kept, class by class."""
        return [item for kept in self.classes.values() for item in kept]

    def add(self, item: Item) -> None:
        """Offer an item."""
        name: Hashable = "" if self.kind == "reservoir" or not self.key else self.key(item)
        kept = self.classes.setdefault(name, [])
        self.seen[name] = self.seen.get(name, 0) + 1
        share = self._share(name)
        if self.kind == "ring" or len(kept) < share:
            kept.append(item)
        else:
            place = self.random.randrange(self.seen[name])
            if place < share:
                kept[place] = item
        self._trim()

    def extend(self, items: Iterable[Item]) -> None:
        """Offer several, in turn."""
        for item in items:
            self.add(item)

    def _share(self, name: Hashable) -> int:
        """How many items a class may have now."""
        count = len(self.classes)
        place = list(self.classes).index(name)
        return self.capacity // count + (place < self.capacity % count)

    def _trim(self) -> None:
        """Let classes shrink to their share: a ring from its old end, others by chance."""
        for name, kept in self.classes.items():
            while len(kept) > self._share(name):
                kept.pop(0 if self.kind == "ring" else self.random.randrange(len(kept)))

    def state_dict(self) -> dict[str, Any]:
        """Everything but the key."""
        version, numbers, gauss = self.random.getstate()
        return {
            "classes": [[name, list(kept)] for name, kept in self.classes.items()],
            "seen": [[name, count] for name, count in self.seen.items()],
            "random": [version, list(numbers), gauss],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.classes = {name: list(kept) for name, kept in state["classes"]}
        self.seen = dict(state["seen"])
        version, numbers, gauss = state["random"]
        self.random.setstate((version, tuple(numbers), gauss))


def herding(features: Tensor, count: int) -> list[int]:
    """Items whose running mean follows the mean of all: iCaRL, algorithm 4 (Rebuffi et al. 2017).

    Args:
        features: (N, D); each row is brought to length 1 first, as in the paper.
        count: how many are chosen; all where there are fewer.

    Returns:
        Row numbers, the most telling first: any beginning of the list is a good choice too.
    """
    rows = torch.nn.functional.normalize(features.double(), dim=1)
    # |mean - (total + row) / step|^2 without what all rows share: no (N, D) in the loop.
    near, along = rows @ rows.mean(dim=0), rows.new_zeros(len(rows))
    lengths = rows.square().sum(dim=1)
    left = torch.ones(len(rows), dtype=torch.bool)
    chosen: list[int] = []
    for step in range(1, min(count, len(rows)) + 1):
        apart = (2 * along + lengths) / step**2 - 2 / step * near
        apart[~left] = torch.inf
        best = int(apart.argmin())
        chosen.append(best)
        left[best] = False
        along += rows @ rows[best]
    return chosen


def nearest_mean(features: Tensor, exemplars: Tensor, classes: Tensor) -> Tensor:
    """The classifier of iCaRL, algorithm 1: the class whose exemplars' mean is nearest.

    Args:
        features: (N, D) of what is classified.
        exemplars: (M, D) of what was kept.
        classes: (M,) of the exemplars.

    Returns:
        (N,) classes.
    """
    unit = torch.nn.functional.normalize
    names = classes.unique()
    means = torch.stack([unit(exemplars, dim=1)[classes == name].mean(dim=0) for name in names])
    distances = torch.cdist(unit(features, dim=1), unit(means, dim=1))
    return names[distances.argmin(dim=1)]


def keep(
    items: Sequence[Item],
    capacity: int,
    kind: BufferKind,
    *,
    seed: int = 0,
    key: Callable[[Item], Hashable] | None = None,
) -> list[Item]:
    """What a buffer keeps of a sequence."""
    buffer: Buffer[Item] = Buffer(kind, capacity, seed=seed, key=key)
    buffer.extend(items)
    return buffer.items
