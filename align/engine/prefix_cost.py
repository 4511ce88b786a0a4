"""What a pass costs with padding and without: is sharing worth it?

A pass takes a fixed time, a time for each token of the dense layers, one for each pair of tokens
that attend, and, segment by segment, one for each segment:

    plain  = fixed + token B T + pair B T^2          (half the pairs where nothing is padded)
    shared = fixed + token N   + pair sum q k        + segment S + laying

with N unique tokens in S segments of q queries and k keys; a backward pass costs about twice its
forward in both. The costs are counted from the model's size, which gives every run of a
configuration the same choices and so the same bits; or measured, forward only, on the backbone
itself, and then the run keeps them: a resumed run chooses alike, another may not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from reward.layout import Layout
from reward.packed import tree_states
from reward.packed_probe import undisturbed
from reward.tree import Segment

MARGIN = 0.95  # of the plain pass's time: a shared pass has to promise less
WORK = 4e9  # parameters times tokens of one timed pass, at most
TOKENS = 64, 512  # of a timed pass, least and most
SHORT = 8  # tokens of a short segment
REPEATS = 3


@dataclass(frozen=True)
class Costs:
    """Seconds of the parts of a forward pass."""

    fixed: float
    token: float
    pair: float
    segment: float
    laying: float = 0.0  # what a shared pass takes more, whatever is in it

    def plain(self, rows: int, width: int, *, padded: bool) -> float:
        """Seconds of a pass over (rows, width) tokens."""
        pairs = rows * width * (width if padded else (width + 1) / 2)
        return self.fixed + self.token * rows * width + self.pair * pairs

    def shared(self, layout: Layout) -> float:
        """Seconds of a pass over a layout's unique tokens."""
        return (
            self.fixed
            + self.token * layout.unique
            + self.pair * attended(layout.tree.segments)
            + self.segment * len(layout.tree.segments)
            + self.laying
        )

    def worth(self, layout: Layout, *, padded: bool) -> bool:
        """Whether the shared pass promises to be faster."""
        rows, width = layout.places.shape
        return self.shared(layout) < MARGIN * self.plain(rows, width, padded=padded)

    def as_dict(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)


def attended(segments: list[Segment]) -> float:
    """Pairs of tokens that attention computes: a masked segment all, one after nothing half."""
    return sum(
        one.length * (one.depth + one.length if one.before else (one.length + 1) / 2)
        for one in segments
    )


@dataclass(frozen=True)
class Speed:
    """What one kind of device does, roughly: only the proportions decide."""

    products: float  # multiplications and additions of the dense layers, a second
    attention: float  # the same of attention
    segment: float  # seconds of each segment in each layer
    laying: float  # seconds of a layout


# Of one CPU thread as measured with models of 1 to 30 million parameters; of a GPU as expected.
SPEEDS = {"cpu": Speed(3e10, 1e10, 5e-5, 1e-3), "cuda": Speed(1e14, 3e13, 0.0, 3e-3)}


def counted_costs(backbone: PreTrainedModel) -> Costs:
    """Costs that follow from a backbone's shape and its kind of device, the same in every run."""
    config, device = backbone.config.get_text_config(), next(backbone.parameters()).device
    speed = SPEEDS.get(device.type, SPEEDS["cpu"])
    tables = {id(one.weight) for one in backbone.modules() if isinstance(one, nn.Embedding)}
    dense = sum(p.numel() for p in backbone.parameters() if p.ndim == 2 and id(p) not in tables)
    layers = config.num_hidden_layers
    return Costs(
        fixed=0.0,
        token=2 * dense / speed.products,
        pair=4 * config.hidden_size * layers / speed.attention,
        segment=layers * speed.segment,
        laying=speed.laying,
    )


def measure_costs(
    backbone: PreTrainedModel, clock: Callable[[], float] = time.perf_counter
) -> Costs:
    """Time a few passes of a backbone on its device; it is left as it was.

    Args:
        backbone: one for which `reward.packed.can_pack` holds.
        clock: seconds.
    """
    device = next(backbone.parameters()).device
    context = int(getattr(backbone.config, "max_position_embeddings", None) or TOKENS[1])
    size = sum(p.numel() for p in backbone.parameters())
    most = max(TOKENS[0], min(TOKENS[1], int(WORK / max(1, size))))
    width = max(2, min(most, context))
    short = max(1, min(SHORT, width // 2))
    few = max(2, width // 4)
    vocabulary = int(backbone.config.vocab_size)

    def ids(rows: int, columns: int) -> Tensor:
        return (torch.arange(rows * columns, device=device) * 7919 % vocabulary).view(rows, columns)

    def plain(rows: int, columns: int) -> float:
        batch = ids(rows, columns)
        return best(lambda: backbone(input_ids=batch, use_cache=False), device, clock)

    def packed(length: int) -> float:
        count = width // length
        row, segments = ids(1, count * length)[0], [Segment(length)] * count
        every = torch.ones(len(row), dtype=torch.bool, device=device)
        return best(lambda: tree_states(backbone, row, segments, every), device, clock)

    with torch.no_grad(), undisturbed(backbone):
        small, rows = plain(1, few), plain(max(2, width // few), few)
        long = plain(1, width)
        one, many = packed(width), packed(short)
    count = max(2, width // few)
    # rows of the same length: fixed, and what a row costs
    row_cost = max((rows - small) / (count - 1), 1e-12)
    fixed = max(0.0, small - row_cost)
    # one row of all: the same tokens, more pairs
    pairs = pairs_of(width) - width / few * pairs_of(few)
    pair = max(0.0, (long - fixed - row_cost * width / few) / pairs) if pairs > 0 else 0.0
    token = max(1e-12, (row_cost - pair * pairs_of(few)) / few)
    segments = width // short
    saved = pair * (pairs_of(width) - segments * pairs_of(short))
    lost = token * (width - segments * short)
    each = max(0.0, (many - one + saved + lost) / max(1, segments - 1))
    return Costs(fixed, token, pair, each, max(0.0, one - long))


def pairs_of(length: int) -> float:
    """Pairs of a causal sequence."""
    return length * (length + 1) / 2


def best(run: Callable[[], object], device: torch.device, clock: Callable[[], float]) -> float:
    """The shortest of a few runs, in seconds, after one that warms up."""
    found = []
    for _ in range(REPEATS + 1):
        started = clock()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(clock() - started)
    return min(found[1:])
