"""How `benchmarks.digits` learns a sequence of tasks: every guard, and what has none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from align.engine.guards.agem import AGEM
from align.engine.guards.average import EMA, WiseFT
from align.engine.guards.buffers import Buffer, herding, nearest_mean
from align.engine.guards.distill import Distill
from align.engine.guards.er_ace import asymmetric_loss
from align.engine.guards.ewc import EWC
from align.engine.guards.fisher import estimate_fisher
from align.engine.guards.isolate import Isolate
from align.engine.guards.l2sp import L1SP, L2SP
from align.engine.guards.mas import MAS
from align.engine.guards.replay import Replay
from align.engine.guards.si import SI
from benchmarks.digits_world import Batch, Task, logits_fn, loss_fn, raw_logits, together


@dataclass
class Method:
    """How a sequence is learnt: guards for each task, and what happens after it."""

    strength: float = 0.0
    seed: int = 0
    kept: list[Any] = field(default_factory=list)

    def guards(self, model: nn.Module, number: int) -> list[Any]:
        """Guards of a task; begun already."""
        return []

    def before(self, task: Task) -> None:
        """A task is about to be learnt."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a batch of the task."""
        return loss_fn(model, batch) / len(batch["y"])

    def after(self, model: nn.Module, task: Task) -> None:
        """A task has been learnt."""

    def answer(self, model: nn.Module, task: Task) -> Tensor:
        """Classes of the task's test rows."""
        batch = {"x": task.x_test, "y": task.y_test, "allowed": task.allowed}
        return logits_fn(model, batch)[0].argmax(dim=1)


class OneGuard(Method):
    """A guard that lives through all tasks and consolidates after each."""

    def __init__(self, guard: Any, seed: int):
        super().__init__(seed=seed)
        self.guard, self.begun = guard, False

    def guards(self, model: nn.Module, number: int) -> list[Any]:
        """The guard."""
        if not (self.begun and isinstance(self.guard, SI)):  # SI begins again by itself
            self.guard.begin(model)
        self.begun = True
        return [self.guard]

    def after(self, model: nn.Module, task: Task) -> None:
        """Consolidate."""
        self.guard.finish(model, task.examples(), loss_fn)


class EachTask(Method):
    """A fresh guard for each task but the first, made of what earlier ones left."""

    def __init__(self, make: Callable[[EachTask], Any], seed: int, capacity: int = 200):
        super().__init__(seed=seed)
        self.make = make
        self.buffer: Buffer[Batch] = Buffer("reservoir", capacity, seed=seed)
        self.fisher: dict[str, Tensor] = {}
        self.current: list[Any] = []

    def guards(self, model: nn.Module, number: int) -> list[Any]:
        """What `make` makes."""
        self.current = [] if number == 0 else [self.make(self)]
        for guard in self.current:
            guard.begin(model)
        return self.current

    def after(self, model: nn.Module, task: Task) -> None:
        """Average, where the guard does; keep rows and importances."""
        for guard in self.current:
            if hasattr(guard, "final"):
                guard.final(model)
        self.buffer.extend(task.examples())
        for name, value in estimate_fisher(model, task.examples()[:200], loss_fn).items():
            self.fisher[name] = torch.maximum(self.fisher.get(name, value), value)


class ERACE(Method):
    """Replay whose new rows compete among their own classes only.

    Kept rows are the task's own too, as in a stream: else its classes would never beat old ones.
    """

    def __init__(self, seed: int, capacity: int = 200):
        super().__init__(seed=seed)
        self.buffer: Buffer[Batch] = Buffer("reservoir", capacity, seed=seed)
        self.random = torch.Generator().manual_seed(seed)

    def before(self, task: Task) -> None:
        """Keep some of its rows."""
        self.buffer.extend(task.examples())

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The two losses."""
        items = self.buffer.items
        new = logits_fn(model, batch)
        rows = torch.randint(len(items), (32,), generator=self.random).tolist()
        old = together([items[row] for row in rows], torch.device("cpu"))
        return asymmetric_loss(*new, *logits_fn(model, old))


class ICarl(EachTask):
    """Exemplars by herding, distillation on them, and the nearest mean as classifier."""

    def __init__(self, seed: int, capacity: int = 200):
        super().__init__(lambda method: None, seed)
        self.capacity = capacity
        self.exemplars: dict[int, list[Batch]] = {}

    def guards(self, model: nn.Module, number: int) -> list[Any]:
        """Replay and distillation of the exemplars."""
        kept = [e for rows in self.exemplars.values() for e in rows]
        if not kept:
            return []
        found = [
            replay(kept, self.seed),
            Distill(logits_fn, 1.0, kept, batch_size=16, seed=self.seed, collate_fn=together),
        ]
        for guard in found:
            guard.begin(model)
        return found

    def after(self, model: nn.Module, task: Task) -> None:
        """The first of each class's herding list."""
        for name in task.y.unique().tolist():
            rows = (task.y == name).nonzero().squeeze(1)
            order = herding(features(model, task.x[rows]), self.capacity)
            fresh = [task.batch(rows[place][None]) for place in order]
            self.exemplars[name] = fresh + self.exemplars.get(name, [])[:0]
        share = self.capacity // len(self.exemplars)
        self.exemplars = {name: rows[:share] for name, rows in self.exemplars.items()}

    def answer(self, model: nn.Module, task: Task) -> Tensor:
        """By the nearest mean."""
        kept = together([e for rows in self.exemplars.values() for e in rows], torch.device("cpu"))
        use = task.allowed[kept["y"]]
        if not use.any():  # none of its classes was ever seen
            return torch.full((len(task.x_test),), -1)
        table = features(model, kept["x"][use])
        return nearest_mean(features(model, task.x_test), table, kept["y"][use])


def features(model: nn.Module, x: Tensor) -> Tensor:
    """What the last layer reads."""
    assert isinstance(model, nn.Sequential)
    with torch.no_grad():
        found: Tensor = model[:-1](x)
    return found


def replay(rows: Iterable[Batch], seed: int, strength: float = 1.0) -> Replay:
    """Replay of 32 rows a step."""
    count = lambda batch: torch.tensor(len(batch["y"]))  # noqa: E731
    return Replay(rows, loss_fn, strength, 32, seed, collate_fn=together, size_fn=count)


def distill(rows: Iterable[Batch], seed: int) -> Distill:
    """Distillation of 32 rows a step."""
    return Distill(logits_fn, 1.0, rows, batch_size=32, seed=seed, collate_fn=together)


def agem(rows: Iterable[Batch], seed: int) -> AGEM:
    """A-GEM on 64 rows a step."""
    count = lambda batch: torch.tensor(len(batch["y"]))  # noqa: E731
    return AGEM(rows, loss_fn, 64, seed, collate_fn=together, size_fn=count)


METHODS: dict[str, Callable[[int], Method]] = {
    "naive": lambda seed: Method(seed=seed),
    "joint": lambda seed: Method(seed=seed),
    "ewc": lambda seed: OneGuard(EWC(30.0, logits_fn=logits_fn, in_place=True), seed),
    "ewc_empirical": lambda seed: OneGuard(EWC(60.0, in_place=True), seed),
    "ewc_online": lambda seed: OneGuard(EWC(30.0, logits_fn=logits_fn, decay=0.9), seed),
    "ewc_proximal": lambda seed: OneGuard(EWC(30.0, logits_fn=logits_fn, proximal=True), seed),
    "si": lambda seed: OneGuard(SI(0.6, in_place=True), seed),
    "mas": lambda seed: OneGuard(MAS(0.5, logits_fn=raw_logits, proximal=True), seed),
    "l2sp": lambda seed: EachTask(lambda m: L2SP(0.03), seed),
    "l1sp": lambda seed: EachTask(lambda m: L1SP(0.001, proximal=True), seed),
    "replay_50": lambda seed: EachTask(lambda m: replay(m.buffer.items, m.seed), seed, 50),
    "replay_200": lambda seed: EachTask(lambda m: replay(m.buffer.items, m.seed), seed, 200),
    "replay_500": lambda seed: EachTask(lambda m: replay(m.buffer.items, m.seed), seed, 500),
    "agem": lambda seed: EachTask(lambda m: agem(m.buffer.items, m.seed), seed, 200),
    "lwf": lambda seed: EachTask(
        lambda m: Distill(logits_fn, 1.0, temperature=2.0, read_batch=lambda b: b), seed
    ),
    "distill_old": lambda seed: EachTask(lambda m: distill(m.buffer.items, m.seed), seed, 200),
    "er_ace": ERACE,
    "icarl": ICarl,
    "isolate": lambda seed: EachTask(lambda m: Isolate(m.fisher, 0.6), seed),
    "ema": lambda seed: EachTask(lambda m: EMA(0.995), seed),
    "wise_ft": lambda seed: EachTask(lambda m: WiseFT(0.5), seed),
}
