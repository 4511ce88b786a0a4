"""Completions of several models on the same prompts, repeatable and resumable.

Each batch of each model has its own seed, derived from the evaluation's seed and the model's name:
results depend neither on which other models are evaluated nor on where a crash fell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from align.errors import DataError, ModelError
from align.evaluate.cache import BatchCache, cache_file, cache_key
from align.rollout.base import pad_left
from align.types import Rollout, Sampler, Text

Progress = Callable[[str, int, int], None]  # (what, prompts done, prompts in all)


@dataclass(frozen=True)
class Completions:
    """What one model wrote: G completions for each of P prompts, a prompt's side by side."""

    prompts: list[Text]  # P
    samples: int  # G
    texts: list[Text]  # P * G
    prompt_ids: list[list[int]]  # P * G, without padding
    completion_ids: list[list[int]]  # P * G, end-of-turn token included
    logprobs: list[list[float]]  # P * G, under the sampler
    finished: list[bool]  # P * G
    temperature: float

    @property
    def lengths(self) -> list[int]:
        """Tokens per completion, the end-of-turn token included; P * G."""
        return [len(ids) for ids in self.completion_ids]

    def rollout(self) -> Rollout:
        """The same as padded tensors on the CPU, for scoring under a model."""
        prompt_ids, prompt_mask = pad_left(self.prompt_ids, 0, "cpu")
        width = max(1, *self.lengths)
        ids = torch.zeros(len(self.texts), width, dtype=torch.long)
        logprobs = torch.zeros(len(self.texts), width)
        for row, (tokens, values) in enumerate(
            zip(self.completion_ids, self.logprobs, strict=True)
        ):
            ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
            logprobs[row, : len(values)] = torch.tensor(values)
        lengths = torch.tensor(self.lengths)
        return Rollout(
            prompts=repeat(self.prompts, self.samples),
            completions=self.texts,
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            completion_ids=ids,
            mask=(torch.arange(width)[None] < lengths[:, None]).float(),
            logprobs=logprobs,
            finished=torch.tensor(self.finished),
            temperature=self.temperature,
        )


def generate_completions(
    samplers: Mapping[str, Sampler],
    prompts: list[Text],
    columns: Mapping[str, list[Any]] | None = None,
    *,
    samples: int = 1,
    seed: int = 0,
    batch_size: int = 64,
    run_dir: Path | None = None,
    identities: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Completions]:
    """Sample from every model; see `complete` for the arguments and errors."""
    identities = identities or {}
    return {
        name: complete(
            samplers,
            name,
            prompts,
            columns,
            samples=samples,
            seed=seed,
            batch_size=batch_size,
            run_dir=run_dir,
            identity=identities.get(name),
            progress=progress,
        )
        for name in samplers
    }


def complete(
    samplers: Mapping[str, Sampler],
    name: str,
    prompts: list[Text],
    columns: Mapping[str, list[Any]] | None = None,
    *,
    samples: int = 1,
    seed: int = 0,
    batch_size: int = 64,
    run_dir: Path | None = None,
    identity: str | None = None,
    progress: Progress | None = None,
) -> Completions:
    """Sample `samples` completions of every prompt from one model.

    Args:
        samplers: the models; `samplers[name]` is looked up only when something is left to sample,
            so a mapping may load its models on demand. A sampler draws from torch's global
            generator (`seed=None`), which is seeded here and restored afterwards.
        name: which of them.
        prompts: P prompts.
        columns: further dataset columns of length P, handed to the sampler.
        samples: completions per prompt (G).
        seed: of the evaluation.
        batch_size: completions per call of the sampler.
        run_dir: where finished batches are kept.
        identity: what the completions depend on besides prompts and seed: a fingerprint of the
            weights and the sampling settings. Without it nothing is kept, since a changed model
            could not be told from the old one.
        progress: called with (name, prompts done, P).

    Raises:
        DataError: no prompts, or a column of another length.
        ModelError: the sampler returned another number of completions than asked for.
    """
    columns = dict(columns or {})
    check_columns(prompts, columns)
    at_once = max(1, batch_size // samples)
    key = cache_key("completions", name, identity, prompts, columns, samples, seed, at_once)
    cache = BatchCache(cache_file(run_dir if identity else None, "completions", name), key)
    rows: list[dict[str, Any]] = []
    for start in range(0, len(prompts), at_once):
        batch = cache.get(start)
        if batch is None:
            part = slice(start, start + at_once)
            with seeded(seed, name, start):
                rollout = samplers[name](
                    prompts[part],
                    group_size=samples,
                    **{key: values[part] for key, values in columns.items()},
                )
            batch = _rows(rollout)
            expected = len(prompts[part]) * samples
            if len(batch) != expected:
                raise ModelError(
                    f"the sampler of model {name!r} returned {len(batch)} completions, but "
                    f"{len(prompts[part])} prompts x {samples} samples = {expected} were asked for."
                )
            cache.put(start, batch)
        rows += batch
        if progress is not None:
            progress(name, min(start + at_once, len(prompts)), len(prompts))
    return Completions(
        prompts=prompts,
        samples=samples,
        texts=[row["text"] for row in rows],
        prompt_ids=[row["prompt_ids"] for row in rows],
        completion_ids=[row["completion_ids"] for row in rows],
        logprobs=[row["logprobs"] for row in rows],
        finished=[row["finished"] for row in rows],
        temperature=rows[0]["temperature"],
    )


@contextmanager
def seeded(*parts: str | int) -> Iterator[None]:
    """Seed torch inside the `with` block and put its generators back afterwards."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    with torch.random.fork_rng():
        torch.manual_seed(int.from_bytes(digest[:7], "big"))
        yield


def repeat(values: list[Any], times: int) -> list[Any]:
    """Each value `times` times, side by side."""
    return [value for value in values for _ in range(times)]


def check_columns(prompts: list[Text], columns: Mapping[str, list[Any]]) -> None:
    """Refuse an evaluation without prompts and columns that do not line up with them.

    Raises:
        DataError: naming the column and both lengths.
    """
    if not prompts:
        raise DataError("an evaluation needs at least one prompt; none was given.")
    for key, values in columns.items():
        if len(values) != len(prompts):
            raise DataError(f"column {key!r} has {len(values)} rows for {len(prompts)} prompts.")


def _rows(rollout: Rollout) -> list[dict[str, Any]]:
    """One JSON-ready row per completion, padding removed."""
    return [
        {
            "text": rollout.completions[row],
            "prompt_ids": rollout.prompt_ids[row][rollout.prompt_mask[row].bool()].tolist(),
            "completion_ids": rollout.completion_ids[row][rollout.mask[row].bool()].tolist(),
            "logprobs": rollout.logprobs[row][rollout.mask[row].bool()].tolist(),
            "finished": bool(rollout.finished[row]),
            "temperature": rollout.temperature,
        }
        for row in range(len(rollout))
    ]
