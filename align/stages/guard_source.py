"""How a stage reads what must not be forgotten: rows, examples, their loss and outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from align.config.guards import EWCSection, GuardSection, MASSection
from align.engine.guards.base import Batch, LossFn
from align.engine.guards.fisher import LogitsFn, estimate_fisher, estimate_true_fisher
from align.engine.guards.mas import estimate_omega
from align.engine.guards.replay import Collate, Size
from align.errors import ConfigError, DataError, Problem

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """How a stage reads what must not be forgotten."""

    rows: Callable[[str, Mapping[str, str]], Sequence[Row]]  # of a file and its columns' names
    encode: Callable[[Iterable[Row]], Iterable[Batch]]  # batches of one example
    loss: LossFn  # negative log-likelihood of a batch, summed over what it labels
    logits: LogitsFn | None = None  # (model, batch) -> (N, C) and labels (N,)
    collate: Collate | None = None  # None: a language model's
    size: Size | None = None  # None: labelled tokens
    step_rows: int = 8  # of the stage's own, in an optimizer step of this process
    temperature: float = 1.0  # of rollouts


def estimate(
    section: GuardSection, model: nn.Module, source: Source, rows: Sequence[Row], seed: int = 0
) -> dict[str, Tensor]:
    """Importances on rows, as the section asks for them.

    Raises:
        ConfigError: the method needs outputs that the stage has none of.
        ModelError: there are no rows, or the result is not finite.
    """
    examples = source.encode(rows)
    if isinstance(section, MASSection):
        return estimate_omega(model, examples, needed_logits(source, section.type))
    if not isinstance(section, EWCSection) or section.fisher == "empirical":
        return estimate_fisher(model, examples, source.loss)
    logits = needed_logits(source, "fisher: true")
    return estimate_true_fisher(model, examples, logits, draws=section.draws, seed=seed)


def needed_logits(source: Source, what: str) -> LogitsFn:
    """The stage's outputs.

    Raises:
        ConfigError: it has none: ratings and steps are no choice among classes.
    """
    if source.logits is None:
        fix = "use type: ewc with fisher: empirical, or replay."
        raise ConfigError([Problem("guards", f"{what} needs a model that chooses.", fix)])
    return source.logits


def key_of(column: str | None) -> Callable[[Row], str] | None:
    """A row's class, by a column."""
    if column is None:
        return None

    def key(row: Row) -> str:
        if column not in row:
            shown = ", ".join(sorted(row))
            raise DataError(f"guards: no column {column!r}; rows have {shown}. Fix: set `by`.")
        return str(row[column])

    return key


def step_rows(args: Any) -> int:
    """Rows of an optimizer step in this process."""
    return int(args.per_device_train_batch_size * args.gradient_accumulation_steps)


def one_by_one(
    loss: LossFn, logits: LogitsFn | None
) -> tuple[Collate, LossFn, LogitsFn | None, Size]:
    """For examples that no batch can hold together: a batch is a list, scored in turn.

    Returns:
        How they are collated, loss and outputs of such a list (or of one example), and its length.
    """

    def gather(examples: Sequence[Batch], device: torch.device) -> Batch:
        return {"examples": [{k: v.to(device) for k, v in e.items()} for e in examples]}  # type: ignore[dict-item]

    def parts(batch: Batch) -> list[Batch]:
        return list(batch.get("examples", [batch]))

    def total(model: nn.Module, batch: Batch) -> Tensor:
        return torch.stack([loss(model, part) for part in parts(batch)]).sum()

    def outputs(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        assert logits is not None
        found = [logits(model, part) for part in parts(batch)]
        return torch.cat([one for one, _ in found]), torch.cat([labels for _, labels in found])

    def count(batch: Batch) -> Tensor:
        return torch.tensor(len(parts(batch)))

    return gather, total, outputs if logits is not None else None, count
