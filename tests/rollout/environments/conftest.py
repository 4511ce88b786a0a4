"""A real engine that is slow and plainly right, and a small environment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest
import torch

from align.rollout.base import Draw
from align.rollout.environment import Step
from align.rollout.episodes import EnvironmentSampler
from align.types import Rollout


class PlainEngine:
    """Draws one token after another with the whole model, no cache: slow and plainly right."""

    def __init__(self, model: Any, end: int, temperature: float = 1.0, end_after: int = 4):
        self.model, self.end, self.temperature, self.end_after = model, end, temperature, end_after
        self.seed: int | None = 0
        self.asked: list[tuple[int, int, Any]] = []

    def draw(
        self,
        prompts: Sequence[Sequence[int]],
        group_size: int = 1,
        max_new_tokens: int | Sequence[int] | None = None,
    ) -> list[Draw]:
        self.asked.append((len(prompts), group_size, max_new_tokens))
        limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else None
        limits = limits or list(max_new_tokens)
        return [
            self._one(list(prompt), limit)
            for prompt, limit in zip(prompts, limits, strict=True)
            for _ in range(group_size)
        ]

    def _one(self, ids: list[int], limit: int) -> Draw:
        drawn, logprobs = [], []
        while len(drawn) < limit:
            with torch.no_grad():
                logits = self.model(input_ids=torch.tensor([ids + drawn])).logits[0, -1]
            table = (logits / self.temperature).log_softmax(-1)
            # A random model hardly ever ends: from some length on it does, like any drawn token.
            ends = len(drawn) >= self.end_after
            token = self.end if ends else int(torch.multinomial(table.exp(), 1))
            drawn.append(token)
            logprobs.append(float(table[token]))
            if token == self.end:
                return Draw(drawn, logprobs, True)
        return Draw(drawn, logprobs, False)


@pytest.fixture
def counter() -> type:
    """An environment class, new for each test: `counter.made` are all that were made of it."""

    class Counter:
        """Ends after three turns; a reward of 1, 2 and 3."""

        made: ClassVar[list[Any]] = []

        def __init__(self) -> None:
            self.turns, self.closed, self.row, self.heard = 0, False, {}, []
            Counter.made.append(self)

        def reset(self, **columns: Any) -> None:
            self.row = columns

        def step(self, completion: str) -> Step:
            self.turns += 1
            self.heard.append(completion)
            return Step(
                f"Turn {self.turns}.",
                reward=self.turns,
                done=self.turns == 3,
                info={"n": self.turns},
            )

        def close(self) -> None:
            self.closed = True

    return Counter


@pytest.fixture
def tool(counter) -> type:
    """Asynchronous, and it speaks as a tool."""

    class Tool(counter):
        inside = most = 0  # steps at once

        async def reset(self, **columns: Any) -> list[dict[str, str]]:
            await asyncio.sleep(0)
            return [{"role": "system", "content": "Tools are there."}]

        async def step(self, completion: str) -> Step:
            Tool.inside += 1
            Tool.most = max(Tool.most, Tool.inside)
            await asyncio.sleep(0.01)
            Tool.inside -= 1
            step = super().step(completion)
            return Step([{"role": "tool", "content": "42"}], step.reward, step.done, step.info)

        async def close(self) -> None:
            super().close()

    return Tool


@pytest.fixture(scope="session")
def prompts() -> list[Any]:
    return [[{"role": "user", "content": text}] for text in ("Where is it?", "Thank you", "A fox")]


@pytest.fixture
def engine(tiny_llama, tiny_tokenizer) -> PlainEngine:
    torch.manual_seed(0)
    model = tiny_llama(seed=3, max_position_embeddings=512)
    return PlainEngine(model, tiny_tokenizer.eos_token_id)


@pytest.fixture
def play(engine, counter, tiny_tokenizer) -> Callable[..., EnvironmentSampler]:
    def make(environment: Any = counter, tokenizer: Any = tiny_tokenizer, **changes: Any):
        settings = {"max_turns": 5, "max_new_tokens": 8, "timeout": 5.0}
        return EnvironmentSampler(engine, tokenizer, environment, **settings | changes)

    return make


@pytest.fixture(scope="session")
def rows() -> Callable[[Rollout], list[tuple[list[int], list[int]]]]:
    """Each row's completion without padding, and its mask."""

    def split(rollout: Rollout) -> list[tuple[list[int], list[int]]]:
        assert rollout.real is not None
        lengths = rollout.real.sum(1).long().tolist()
        ids, masks = rollout.completion_ids.tolist(), rollout.mask.long().tolist()
        return [(i[:n], m[:n]) for i, m, n in zip(ids, masks, lengths, strict=True)]

    return split
