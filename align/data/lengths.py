"""Every row tokenised once before training: lengths measured, faults found, overlong rows out.

A truncated row has lost its end of turn, and a model trained on many of those never stops; so rows
past the length limit are dropped and counted, or refused, never cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from datasets import Dataset

from align.data.rows import Kind, plain_text, shorten
from align.data.tokens import (
    check_sample,
    check_tokenizer,
    encode_pairs,
    encode_prompts,
    encode_text,
    end_of_turn_id,
)
from align.errors import DataError
from feedback.schema import Text
from reward.steps import join_steps

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 512  # rows tokenised at once


@dataclass(frozen=True)
class Lengths:
    """Tokens per row: mean, median, 95th percentile and maximum."""

    mean: float
    p50: float
    p95: float
    max: int

    @classmethod
    def of(cls, counts: Sequence[int]) -> Lengths:
        """Statistics of at least one count."""
        values = np.asarray(counts)
        p50, p95 = np.percentile(values, [50, 95])
        return cls(round(float(values.mean()), 1), float(p50), float(p95), int(values.max()))


@dataclass(frozen=True)
class TokenStatistics:
    """What the rows weigh in tokens, before overlong ones were dropped."""

    rows: int
    kept: int
    overlong: int  # rows longer than the limit
    limit: int | None
    tokens: int  # in the rows kept; a preference counts its prompt twice, as it is trained
    prompt: Lengths | None  # None for text without prompts
    completion: Lengths | None  # None for prompts alone; of chosen and rejected together
    sequence: Lengths  # prompt + completion, the longer one of a pair
    merged_boundaries: int  # rows whose prompt ends inside a token of the training sequence

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class _Encoded:
    prompt: int | None  # tokens of the prompt as trained
    completions: tuple[int, ...]
    merged: bool = False

    @property
    def sequence(self) -> int:
        return (self.prompt or 0) + max(self.completions, default=0)

    @property
    def trained(self) -> int:
        return sum((self.prompt or 0) + c for c in self.completions) or self.sequence


def fit_length(
    dataset: Dataset,
    kind: Kind,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    overlong: Literal["drop", "error"] = "drop",
    *,
    context: int | None = None,
) -> tuple[Dataset, TokenStatistics]:
    """Check every row as it will be tokenised, and keep those that fit.

    Args:
        dataset: rows of `kind`.
        kind: what the rows are.
        tokenizer: the policy's.
        max_length: longest sequence in tokens (of a prompt alone for `prompts`, where room for the
            answer is the caller's to subtract); None for no limit but the context.
        overlong: drop such rows, or refuse the data.
        context: the model's context in tokens, where it is known.

    Raises:
        ModelError: the tokenizer cannot train a model that stops (`check_tokenizer`).
        DataError: a row has two BOS tokens or no supervised end of turn; a row is overlong and
            `overlong` is "error"; nothing is left. The message shows the row.
    """
    conversational = is_conversational(dataset)
    check_tokenizer(tokenizer, conversational)
    bounds = [bound for bound in (max_length, context) if bound is not None]
    limit = min(bounds) if bounds else None
    encoded = list(_encode_rows(dataset, kind, tokenizer, conversational))
    keep = [i for i, row in enumerate(encoded) if limit is None or row.sequence <= limit]
    statistics = _statistics(encoded, keep, limit)
    if statistics.overlong and limit is not None:
        first = next(i for i, row in enumerate(encoded) if row.sequence > limit)
        message = _overlong(dataset, encoded[first], first, statistics, context)
        if overlong == "error":
            raise DataError(
                f"{message} Fix: raise trainer.max_length, or set data.overlong=drop to leave "
                "such rows out."
            )
        if not keep:
            raise DataError(
                f"no row is left: {message} Fix: raise trainer.max_length (at most the model's "
                "context), or use shorter prompts."
            )
        dataset = dataset.select(keep)
    return dataset, statistics


def sequence_lengths(dataset: Dataset, kind: Kind, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens of each row as it is trained on: the prompt with its answer, the longer of a pair."""
    rows = _encode_rows(dataset, kind, tokenizer, is_conversational(dataset))
    return [row.sequence for row in rows]


def is_conversational(dataset: Dataset) -> bool:
    """Whether the rows hold conversations rather than plain text."""
    return "prompt" in dataset.column_names and not isinstance(dataset[0]["prompt"], str)


def _encode_rows(
    dataset: Dataset, kind: Kind, tokenizer: PreTrainedTokenizerBase, conversational: bool
) -> Iterator[_Encoded]:
    end = end_of_turn_id(tokenizer, conversational)
    for start in range(0, len(dataset), BATCH):
        batch = dataset[start : start + BATCH]
        size = len(next(iter(batch.values())))
        try:
            encoded, samples = _encode_batch(batch, kind, tokenizer)
        except Exception as error:
            if type(error).__module__.partition(".")[0] != "jinja2":
                raise
            raise DataError(
                f"the chat template refuses a conversation among rows {start + 1} to "
                f"{start + size}: {error}. Fix: mend that conversation, or choose another "
                "template (model.chat_template=chatml)."
            ) from error
        for i, (row, pairs) in enumerate(zip(encoded, samples, strict=True)):
            for ids, completion in pairs:
                try:
                    check_sample(ids, completion, tokenizer, end)
                except DataError as error:
                    raise DataError(f"row {start + i + 1} of {len(dataset)}: {error}") from None
            yield row


Sample = tuple[list[int], list[int] | None]  # the sequence, and its supervised part


def _encode_batch(
    batch: dict[str, list[Any]], kind: Kind, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[_Encoded], list[list[Sample]]]:
    """Lengths of rows, and the sequences to check: one for each answer."""
    if "text" in batch:
        texts = [encode_text(text, tokenizer) for text in batch["text"]]
        return [_Encoded(None, (len(ids),)) for ids in texts], [[(ids, ids)] for ids in texts]
    prompts: list[Text] = batch["prompt"]
    alone = encode_prompts(prompts, tokenizer)
    if kind == "prompts":
        return [_Encoded(len(ids), ()) for ids in alone], [[(ids, None)] for ids in alone]
    told = _answers(batch, kind)
    flat = encode_pairs(
        [prompt for prompt, answers in zip(prompts, told, strict=True) for _ in answers],
        [answer for answers in told for answer in answers],
        tokenizer,
    )
    every = iter(flat)
    encoded: list[_Encoded] = []
    samples: list[list[Sample]] = []
    for prompt, given in zip(alone, told, strict=True):
        mine = list(islice(every, len(given)))
        shared = min(len(start) for start, _ in mine)
        totals = [len(start) + len(rest) for start, rest in mine]
        counts = tuple(total - shared for total in totals)
        encoded.append(_Encoded(shared, counts, merged=shared < len(prompt)))
        samples.append([(start + rest, rest) for start, rest in mine])
    return encoded, samples


def _answers(batch: dict[str, list[Any]], kind: Kind) -> list[list[Text]]:
    """The answers of each row, as they are trained on."""
    if kind == "ranking":
        return batch["responses"]
    if kind == "steps":
        return [[join_steps(steps)] for steps in batch["completions"]]
    fields = ("chosen", "rejected") if kind == "preference" else ("completion",)
    return [list(row) for row in zip(*(batch[field] for field in fields), strict=True)]


def _statistics(encoded: list[_Encoded], keep: list[int], limit: int | None) -> TokenStatistics:
    prompts = [row.prompt for row in encoded if row.prompt is not None]
    completions = [count for row in encoded for count in row.completions]
    return TokenStatistics(
        rows=len(encoded),
        kept=len(keep),
        overlong=len(encoded) - len(keep),
        limit=limit,
        tokens=sum(encoded[i].trained for i in keep),
        prompt=Lengths.of(prompts) if prompts else None,
        completion=Lengths.of(completions) if completions else None,
        sequence=Lengths.of([row.sequence for row in encoded]),
        merged_boundaries=sum(row.merged for row in encoded),
    )


def _overlong(
    dataset: Dataset, row: _Encoded, index: int, statistics: TokenStatistics, context: int | None
) -> str:
    """One overlong row in words: which, how long, and whether the prompt alone is too long."""
    values = dataset[index]
    text = plain_text(values.get("prompt", values.get("text", "")))
    limit, prompt = statistics.limit, row.prompt
    bound = f"the model's context of {limit}" if limit == context else f"max_length={limit}"
    if prompt is not None and limit is not None and prompt > limit:
        what = f"has a prompt of {prompt} tokens alone, past {bound}"
    else:
        what = f"has {row.sequence} tokens, past {bound}"
    return (
        f"{statistics.overlong} of {statistics.rows} rows are overlong; row {index + 1} {what} "
        f"(it starts with {shorten(text)})."
    )
