"""The outer loop of PPO as a data loader: prompts -> rollouts -> experience -> minibatches.

It is returned to the Trainer *unprepared*: a loader that accelerate prepared prefetches one batch
and would train on stale rollouts. Its whole state (prompt cursor, experience in flight, order of
minibatches, KL coefficient) goes into the checkpoint, so that a resumed run is the same run. Where
rollouts are drawn ahead of time those on their way are drawn again, by newer weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from align.data.sampling import DrawOrder
from align.types import Experience, Rollout, Text

Sample = Callable[[list[Text], dict[str, list[Any]]], Rollout]
Prepare = Callable[[Rollout], Experience]


class PromptStream:
    """Prompts in a new random order every epoch; each rank draws its own share."""

    def __init__(self, dataset: Dataset, count: int, seed: int, rank: int = 0, world: int = 1):
        self.dataset, self.count, self.seed = dataset, count, seed
        self.rank, self.world = rank, world
        self.cursor = 0  # prompts drawn by all ranks so far
        self.draws: DrawOrder | None = None  # an order of the prompts instead

    def next(self) -> tuple[list[Text], dict[str, list[Any]]]:
        """The next `count` prompts of this rank and their further columns."""
        first = self.rank * self.count
        if self.draws is not None:
            step = self.cursor // (self.count * self.world)
            rows = self.draws.rows_at(step)[first : first + self.count]
        else:
            rows = [self._row(self.cursor + first + offset) for offset in range(self.count)]
        self.cursor += self.count * self.world
        batch = self.dataset[rows]
        return batch["prompt"], {k: v for k, v in batch.items() if k != "prompt"}

    def _row(self, position: int) -> int:
        epoch, place = divmod(position, len(self.dataset))
        if getattr(self, "_epoch", None) != epoch:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            self._order = torch.randperm(len(self.dataset), generator=generator).tolist()
            self._epoch = epoch
        return self._order[place]


class OnPolicyLoader:
    """Yields microbatches; collects a fresh experience whenever the last one is used up."""

    def __init__(
        self,
        prompts: PromptStream,
        sample: Sample,
        prepare: Prepare,
        *,
        epochs: int,
        micro_batch: int,
        accumulation: int,
        seed: int,
        sum_over_ranks: Callable[[Tensor], Tensor],
        world: int = 1,
        refresh: Callable[[], None] = lambda: None,
        ahead: bool = False,
        updates: int | None = None,
        together: int = 1,
    ):
        """Set up.

        Args:
            prompts: where prompts come from.
            sample: draws completions.
            prepare: scores them and estimates advantages.
            epochs: passes over each experience.
            micro_batch: rows at a time.
            accumulation: microbatches to an optimizer step.
            seed: of the order of rows.
            sum_over_ranks: adds a tensor up over processes.
            world: number of processes.
            refresh: brings the sampler the weights of now.
            ahead: draw the next rollouts, in a thread, while this experience trains. They are one
                update old when they train, never more.
            updates: experiences in the whole run: nothing is drawn for later ones.
            together: neighbouring rows that stay in one microbatch (2 for pairs).
        """
        self.prompts, self.sample, self.prepare = prompts, sample, prepare
        self.epochs, self.micro_batch, self.accumulation = epochs, micro_batch, accumulation
        self.seed, self.world, self.sum_over_ranks = seed, world, sum_over_ranks
        self.refresh, self.ahead, self.updates, self.together = refresh, ahead, updates, together
        self.experience: Experience | None = None
        self.order: Tensor = torch.zeros(0, dtype=torch.long)  # rows of all epochs, in sequence
        self.position = 0  # rows of `order` already handed out
        self.update = 0  # experiences collected
        self.pending: Future[Rollout] | None = None
        self.pending_from = 0  # the cursor that its prompts were drawn at
        self._thread = ThreadPoolExecutor(1, "rollouts") if ahead else None

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        step = self.micro_batch * self.accumulation
        while True:
            if self.experience is None or self.position >= len(self.order):
                self._refill()
            assert self.experience is not None
            rows = self.order[self.position : self.position + step]
            counted = self.experience.shares[rows.to(self.experience.shares.device)].sum()
            # Gradients are averaged over ranks, so each rank divides by the mean count per rank.
            tokens = self.sum_over_ranks(counted) / self.world
            for micro in rows.split(self.micro_batch):
                self.position += len(micro)
                yield self._batch(micro, tokens)

    def _refill(self) -> None:
        before = self.pending_from if self.pending else self.prompts.cursor
        drawn = torch.random.get_rng_state()
        try:
            self.experience = self.prepare(self._rollout())
        except BaseException:
            # A checkpoint written now, and the next try, draw the same prompts and numbers.
            self.pending, self.prompts.cursor = None, before
            torch.random.set_rng_state(drawn)
            raise
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.update)
        count = len(self.experience) // self.together
        inside = torch.arange(self.together)
        orders = [
            (torch.randperm(count, generator=generator)[:, None] * self.together + inside).flatten()
            for _ in range(self.epochs)
        ]
        self.order, self.position = torch.cat(orders), 0
        self.update += 1

    def _rollout(self) -> Rollout:
        """This update's rollouts; starts the next ones where they are drawn ahead."""
        if self.pending is not None:
            rollout = self.pending.result()
            self.pending = None
            self.refresh()
        else:
            self.refresh()
            rollout = self.sample(*self.prompts.next())
        if self._thread and (self.updates is None or self.update + 1 < self.updates):
            self.pending_from = self.prompts.cursor
            self.pending = self._thread.submit(self.sample, *self.prompts.next())
        return rollout

    def _batch(self, rows: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """A microbatch without the columns that are padding in every row."""
        assert self.experience is not None
        part = self.experience.select(rows.to(self.experience.mask.device))
        completion = part.mask.shape[1]
        prompt = part.input_ids.shape[1] - completion
        answer = part.attention_mask[:, prompt:]
        last = max(1, int(answer.sum(dim=1).max()))
        first = int(part.attention_mask[:, :prompt].argmax(dim=1).min()) if prompt else 0
        return {
            "input_ids": part.input_ids[:, first : prompt + last],
            "attention_mask": part.attention_mask[:, first : prompt + last],
            "mask": part.mask[:, :last],
            "weights": part.weights,
            "shares": part.shares,
            "ref_logprobs": part.ref_logprobs[:, :last],
            "logprobs": part.logprobs[:, :last],
            "values": part.values[:, :last],
            "advantages": part.advantages[:, :last],
            "returns": part.returns[:, :last],
            "tokens": tokens,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs; rollouts on their way are drawn again."""
        return {
            "cursor": self.pending_from if self.pending else self.prompts.cursor,
            "experience": self.experience.state_dict() if self.experience else None,
            "order": self.order,
            "position": self.position,
            "update": self.update,
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device | str = "cpu") -> None:
        """Restore `state_dict`."""
        self.prompts.cursor = state["cursor"]
        saved = state["experience"]
        self.experience = Experience(**saved).to(device) if saved else None
        self.order, self.position = state["order"], state["position"]
        self.update = state["update"]
