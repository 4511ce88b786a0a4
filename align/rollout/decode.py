"""The decoding loop: which completions run, which wait, and what each has drawn.

Longest prompts first, so that rows of similar length share a batch; a completion that ends leaves
it, and where the runner lets rows join, waiting ones take the places.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from align.errors import ModelError
from align.rollout.base import Draw
from align.rollout.runners import Runner

JOIN_SHARE = 8  # waiting rows join once this fraction (1/8) of the batch is free

NOT_FINITE = (
    "the model's logits are NaN or infinite, so no token can be drawn from them. Fix: use an "
    "earlier checkpoint, or another dtype if this is float16; its training may have diverged."
)

# (logits (B, V), completion of each row (B,), tokens it has so far (B,)) -> tokens, logprobs
Pick = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def decode(
    runner: Runner,
    prompts: Sequence[Sequence[int]],
    group_size: int,
    budgets: Sequence[int],
    ends: Sequence[int],
    pick: Pick,
    batch_size: int,
) -> list[Draw]:
    """Draw `group_size` completions of each prompt; a prompt's lie side by side.

    Args:
        runner: computes logits.
        prompts: P, token ids.
        group_size: G.
        budgets: P, at most so many tokens for each prompt.
        ends: tokens that end a completion.
        pick: draws one token a row.
        batch_size: rows at most.

    Raises:
        ModelError: logits are NaN or infinite, looked at once, at the end.
    """
    draws = [Draw([], [], False) for _ in range(len(prompts) * group_size)]
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    waiting = deque(
        index * group_size + copy
        for index in order
        if budgets[index] > 0
        for copy in range(group_size)
    )
    stops = frozenset(ends)
    running: list[int] = []  # of each row, its completion; -1 once it has ended
    logits = torch.empty(0)
    trace: list[tuple[list[int], Tensor]] = []  # completions and log-probabilities of every step
    while waiting or running:
        free = batch_size - len(running)
        if waiting and (not running or (runner.joins and free >= room(batch_size, group_size))):
            joined = take(waiting, free, group_size)
            found = runner.admit(*grouped(prompts, joined, group_size))
            logits = torch.cat([logits, found]) if running else found
            running = running + joined
            rows, counts = _places(running, draws, logits.device)
        tokens, logprobs = pick(logits, rows, counts)
        counts += 1
        trace.append((list(running), logprobs))
        for row, token in enumerate(tokens.tolist()):
            if (index := running[row]) < 0:
                continue
            draw = draws[index]
            draw.tokens.append(token)
            draw.finished = token in stops
            if draw.finished or len(draw.tokens) == budgets[index // group_size]:
                running[row] = -1
        alive = sum(index >= 0 for index in running)
        if alive == 0:
            runner.select([])
            running = []
            continue
        if alive < len(running) and alive <= runner.keep_share * len(running):
            kept = compaction(running)
            runner.select(kept)
            tokens = tokens[torch.tensor(kept, device=tokens.device)]
            running = [running[row] for row in kept]
            rows, counts = _places(running, draws, logits.device)
        logits = runner.step(tokens)
    values = torch.cat([logprobs for _, logprobs in trace]).tolist() if trace else []
    indices = (index for step, _ in trace for index in step)
    for index, value in zip(indices, values, strict=True):
        if index >= 0:
            if math.isnan(value):
                raise ModelError(NOT_FINITE)
            draws[index].logprobs.append(value)
    return draws


def room(batch_size: int, group_size: int) -> int:
    """Free rows at which waiting completions join: a whole group at least, if one fits."""
    return min(batch_size, max(1, batch_size // JOIN_SHARE, group_size))


def take(waiting: deque[int], free: int, group_size: int) -> list[int]:
    """The next completions for `free` rows; whole groups if one fits, to compute prompts once."""
    count = min(free, len(waiting))
    if count > (left := -waiting[0] % group_size):
        count = left + (count - left) // group_size * group_size or count
    return [waiting.popleft() for _ in range(count)]


def grouped(
    prompts: Sequence[Sequence[int]], completions: Sequence[int], group_size: int
) -> tuple[list[Sequence[int]], list[int]]:
    """The prompts of these completions, each once, and how many completions each has."""
    counts: dict[int, int] = {}
    for index in completions:
        counts[index // group_size] = counts.get(index // group_size, 0) + 1
    return [prompts[index] for index in counts], list(counts.values())


def compaction(running: Sequence[int]) -> list[int]:
    """Rows to keep, in an order that moves few: those at the end fill the places of ended ones."""
    alive = [row for row, index in enumerate(running) if index >= 0]
    late = [row for row in alive if row >= len(alive)]
    return [row if running[row] >= 0 else late.pop() for row in range(len(alive))]


def _places(
    running: Sequence[int], draws: Sequence[Draw], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Each row's completion and how many tokens it has, both (B,) int64."""
    rows = torch.tensor(running, device=device)
    counts = torch.tensor([len(draws[max(index, 0)].tokens) for index in running], device=device)
    return rows, counts
