"""A key/value cache in place: preallocated, rows leave and join while others go on.

All rows share the column that is written next, so the newest token of every row is in the same
column and older ones lie to its left; a row that joins brings its prompt, which then ends in the
last column. What a row has before its first column is masked. Leaves out everything but full and
sliding-window attention layers (see `align.rollout.runners.fits`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

SLACK = 64  # spare columns: so many tokens until the rows are moved back to the first column


@dataclass(frozen=True)
class Segment:
    """A prompt inside a packed row of several, and the rows of the cache that it goes to."""

    start: int  # in the packed row
    length: int
    row: int  # the first of its rows in the cache
    copies: int


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values, each (rows, heads, columns, size of a head)."""

    keys: Tensor
    values: Tensor

    def __init__(self, cache: SlotCache, sliding_window: int | None):
        super().__init__()
        self.cache = cache
        self.sliding_window = sliding_window
        self.is_sliding = sliding_window is not None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate for heads as they come; zeros, because a masked NaN would still be a NaN."""
        rows, columns = self.cache.rows, self.cache.columns
        self.keys, self.values = (
            one.new_zeros(rows, one.shape[1], columns, one.shape[3])
            for one in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write; what to attend to: the packed prompts themselves, or the rows so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        cache, pairs = self.cache, ((self.keys, key_states), (self.values, value_states))
        for segment in cache.segments:
            rows = slice(segment.row, segment.row + segment.copies)
            tokens = slice(segment.start, segment.start + segment.length)
            for buffer, new in pairs:
                buffer[rows, :, cache.end - segment.length : cache.end] = new[:, :, tokens]
        if cache.segments:
            return key_states, value_states
        for buffer, new in pairs:
            buffer[: cache.used, :, cache.end] = new[:, :, 0]
        end = cache.end + 1
        return self.keys[: cache.used, :, :end], self.values[: cache.used, :, :end]

    def copy_rows(self, sources: Tensor, targets: Tensor) -> None:
        """Copy rows; no row is both a source and a target."""
        columns = slice(self.cache.begin, self.cache.end)
        for buffer in (self.keys, self.values):
            buffer[targets, :, columns] = buffer[sources, :, columns]

    def move(self, begin: int) -> None:
        """Copy the columns in use to where they start at `begin`."""
        cache = self.cache
        width = cache.end - cache.begin
        for buffer in (self.keys, self.values):
            used = buffer[: cache.used]
            used[:, :, begin : begin + width] = used[:, :, cache.begin : cache.end].clone()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys, and the column of the first."""
        return self.cache.end + query_length - self.cache.begin, self.cache.begin

    def get_seq_length(self) -> int:
        """Columns so far."""
        return self.cache.end

    def get_max_length(self) -> int:
        """Columns in all."""
        return self.cache.columns


class SlotCache(Cache):
    """Rows that share their next column.

    Args:
        windows: of each layer, the sliding window in tokens, or None for full attention.
        rows: at most so many at once.
        columns: at most so many tokens in a row.
    """

    def __init__(self, windows: Sequence[int | None], rows: int, columns: int):
        self.rows, self.columns = rows, columns
        self.used = 0  # rows in use are the first ones
        self.end = 0  # the column written next
        self.starts: list[int] = []  # used: each row's first column
        self.segments: Sequence[Segment] = ()  # prompts being computed; empty while decoding
        self.slots = [SlotLayer(self, window) for window in windows]  # `layers`, by their own type
        super().__init__(layers=list(self.slots))

    @property
    def begin(self) -> int:
        """The first column that any row has."""
        return min(self.starts, default=self.end)

    def blocks(self, size: int, window: int | None) -> Iterator[tuple[slice, slice]]:
        """Rows, and the columns that they attend to once the next is written, `size` rows a time.

        Rows that joined together have prompts of similar length, so a block has little before its
        rows' first columns.
        """
        end = self.end + 1
        for row in range(0, self.used, size):
            begin = min(self.starts[row : row + size])
            if window is not None:
                begin = max(begin, end - window)
            yield slice(row, row + size), slice(begin, end)

    def admit(self, lengths: Sequence[int]) -> None:
        """Make room for rows whose prompts have these lengths, after the rows in use."""
        longest = max(lengths)
        if not self.used:
            self.end = longest
        elif self.end < longest:
            self.move(self.begin + longest - self.end)
        self.starts.extend(self.end - length for length in lengths)
        self.used += len(lengths)

    def advance(self) -> None:
        """The next column was written in every layer."""
        self.end += 1

    def select(self, order: Sequence[int]) -> None:
        """Keep rows: the i-th is then the one that was `order[i]`; those that stay cost nothing."""
        moved = [(old, new) for new, old in enumerate(order) if old != new]
        if moved:
            device = self.slots[0].keys.device
            sources, targets = (
                torch.tensor(part, device=device) for part in zip(*moved, strict=True)
            )
            for layer in self.slots:
                layer.copy_rows(sources, targets)
        self.starts = [self.starts[old] for old in order]
        self.used = len(order)

    def move(self, begin: int = 0) -> None:
        """Move all rows sideways, so that the first column in use is `begin`."""
        by = begin - self.begin
        for layer in self.slots:
            layer.move(begin)
        self.starts = [start + by for start in self.starts]
        self.end += by
