"""Which rows a guard keeps: by a buffer's rule, or as the model sees them (herding)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from align.config.guards import BufferSection
from align.engine.guards.buffers import keep
from align.engine.guards.exemplars import exemplars, mean_features
from align.errors import DataError
from align.stages.guard_source import Row, Source, key_of


def choose_rows(
    section: BufferSection, rows: Sequence[Row], model: nn.Module, source: Source, seed: int
) -> list[Row]:
    """At most `section.samples` rows, as `section.buffer` says.

    Args:
        section: the rule, and the column of a row's class.
        rows: to choose from.
        model: whose features herding reads.
        source: how rows become examples, and their loss.
        seed: of what is left to chance.

    Raises:
        DataError: no row has the column that `by` names, or herding can read none.
        ModelError: herding finds no features.
    """
    key = key_of(section.by)
    if section.buffer == "herding":
        return herd(rows, section.samples, key, model, source)
    return keep(rows, section.samples, section.buffer, seed=seed, key=key)


def herd(
    rows: Sequence[Row],
    capacity: int,
    key: Callable[[Row], str] | None,
    model: nn.Module,
    source: Source,
) -> list[Row]:
    """The `capacity` rows that tell most of their classes, as the model sees them.

    Raises:
        DataError: no row fits the model.
        ModelError: the model has no backbone to read features of.
    """
    examples, fitting = [], []
    for row in rows:
        for example in source.encode([row]):  # none where it is too long
            examples.append(example)
            fitting.append(row)
    if rows and not fitting:
        raise DataError("guards: no row fits the model. Fix: raise trainer.max_length.")
    features = mean_features(model, examples)
    classes = [key(row) if key else "" for row in fitting]
    return [fitting[place] for place in exemplars(features, classes, capacity)]
