"""Answers of a policy and what they are worth, batch by batch, so that a kill loses one of them.

Finished batches lie in a cache under a key of everything that they depend on (weights, prompts,
sampling, seed); each batch has a seed of its own, so what is drawn does not depend on where a
process was ended. Questions are drawn by the engine that `rollout` names, held-out ones always by
transformers, as `align evaluate` does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from align.config.sections import ModelSection, RolloutSection
from align.data.tokens import encode_prompt
from align.engine.models import load_policy
from align.engine.tokenizer import load_tokenizer
from align.evaluate.cache import BatchCache, cache_file, cache_key
from align.evaluate.generate import Completions, complete, repeat
from align.ppo.rewards import RewardScorer
from align.rollout.best_of import take
from align.rollout.open import open_sampler
from align.rollout.transformers import TransformersSampler
from align.run import fingerprint
from align.stages.common import model_kwargs
from align.stages.dryrun import context_of
from align.types import Rollout, Sampler, SyncedSampler, Text

SCORED = 256  # answers scored at once


@dataclass(frozen=True)
class Asked:
    """A question with the further columns of its row, which rewards read."""

    prompt: Text
    columns: Mapping[str, Any]


@dataclass(frozen=True)
class Drawer:
    """Draws answers of any of a run's policies."""

    model: ModelSection  # how the first policy is loaded, and later ones likewise
    rollout: RolloutSection
    folder: Path  # of the run, for an engine's own files

    def draw(
        self, path: str, asked: Sequence[Asked], samples: int, seed: int, cache: Path
    ) -> Rollout:
        """`samples` answers to each question by the configured engine.

        Args:
            path: the policy.
            asked: P questions.
            samples: of each.
            seed: the same seed draws the same answers with the transformers engine.
            cache: the folder of finished batches.

        Raises:
            ModelError: a question leaves no room for an answer.
            SamplerError: the engine failed.
        """
        with self._opened(path, None) as samplers:
            return self._complete(samplers, path, asked, samples, seed, cache, self.rollout)

    def answer(
        self,
        path: str,
        asked: Sequence[Asked],
        samples: int,
        seed: int,
        cache: Path,
        temperature: float,
    ) -> Rollout:
        """Answers to held-out questions by transformers; temperature 0 is greedy."""
        settings = {"temperature": temperature, "engine": "transformers"}
        how = self.rollout.model_copy(update=settings)
        with self._opened(path, temperature) as samplers:
            return self._complete(samplers, path, asked, samples, seed, cache, how)

    def _complete(
        self,
        samplers: Mapping[str, Sampler],
        path: str,
        asked: Sequence[Asked],
        samples: int,
        seed: int,
        cache: Path,
        how: RolloutSection,
    ) -> Rollout:
        settings = json.dumps(how.model_dump(mode="json"), sort_keys=True)
        found = complete(
            samplers,
            "policy",
            [one.prompt for one in asked],
            samples=samples,
            seed=seed,
            batch_size=how.batch_size,
            run_dir=cache,
            identity=f"{path} {fingerprint(path)} {settings}",
        )
        return with_columns(found, asked)

    def fitting(self, asked: Sequence[Asked]) -> list[int]:
        """Places of the questions that leave room for an answer in the model's context."""
        context = context_of(self.model.path)
        if context is None:
            return list(range(len(asked)))
        where, template = self.model.tokenizer or self.model.path, self.model.chat_template
        tokenizer = load_tokenizer(where, chat_template=template, revision=self.model.revision)
        room = context - self.rollout.max_new_tokens
        lengths = [len(encode_prompt(one.prompt, tokenizer)) for one in asked]
        return [place for place, length in enumerate(lengths) if 0 < length <= room]

    @contextmanager
    def _opened(self, path: str, temperature: float | None) -> Iterator[Mapping[str, Sampler]]:
        """The policy's sampler, loaded when it is first asked for."""
        loaded = _OnDemand(lambda: self._sampler(path, temperature))
        try:
            yield loaded
        finally:
            for sampler in loaded.values():
                if isinstance(sampler, SyncedSampler):
                    sampler.close()

    def _sampler(self, path: str, temperature: float | None) -> Sampler:
        own = path == self.model.path
        given = model_kwargs(self.model)
        if not own:  # a round's model is whole, and of no hub's revision
            given = given | {"revision": None, "quantization": None}
        policy, _, tokenizer = load_policy(
            path,
            tokenizer=self.model.tokenizer,
            chat_template=self.model.chat_template,
            with_reference=False,
            **given,
        )
        if temperature is None:
            return open_sampler(self.rollout, policy, tokenizer, self.folder)
        return TransformersSampler(
            policy,
            tokenizer,
            max_new_tokens=self.rollout.max_new_tokens,
            min_new_tokens=self.rollout.min_new_tokens,
            temperature=temperature,
            top_p=self.rollout.top_p,
            top_k=self.rollout.top_k,
            batch_size=self.rollout.batch_size,
        )


class _OnDemand(dict[str, Sampler]):
    """A sampler that is opened when it is looked up."""

    def __init__(self, open_one: Any):
        super().__init__()
        self._open = open_one

    def __missing__(self, name: str) -> Sampler:
        self[name] = self._open()
        return self[name]


def with_columns(found: Completions, asked: Sequence[Asked]) -> Rollout:
    """Completions as a rollout whose rows have their question's columns."""
    names = sorted({name for one in asked for name in one.columns})
    columns = {
        name: repeat([one.columns.get(name) for one in asked], found.samples) for name in names
    }
    return replace(found.rollout(), columns=columns)


def score_rollout(
    score: RewardScorer, rollout: Rollout, cache: Path
) -> tuple[list[float], dict[str, float]]:
    """Rewards of all rows, in cached batches, and the means of what rewards logged.

    Args:
        score: the sum of rewards.
        rollout: B rows.
        cache: the folder of finished batches.

    Raises:
        RewardError: a reward failed.
        NonFiniteError: a sum of rewards is not finite.
    """
    texts = [rollout.prompts, rollout.completions, rollout.columns]
    done = BatchCache(cache_file(cache, "scores", "policy"), cache_key("scores", *texts))
    scores: list[float] = []
    sums: dict[str, list[float]] = {}  # of each metric: values times rows, and rows
    for start in range(0, len(rollout), SCORED):
        rows = done.get(start)
        if rows is None:
            part = take(rollout, torch.arange(start, min(start + SCORED, len(rollout))))
            rows = list(score(part, learn=False))
            done.put(start, rows)
        values, metrics = rows
        scores += values
        for name, value in metrics.items():
            total = sums.setdefault(name, [0.0, 0.0])
            total[0] += value * len(values)
            total[1] += len(values)
    return scores, {name: total / count for name, (total, count) in sums.items()}
