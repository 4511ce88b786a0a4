"""What models still know: the loss of each on the same held-out rows, before and after training.

Rows are whatever must not be forgotten: texts, answers to prompts, or comparisons, of which the
better answer counts. A row's tokens are those that SFT would train on. What was forgotten is the
growth of the mean loss of a token since the model that is called the one before, paired by row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from align.data.tokens import encode_pairs, encode_text
from align.errors import DataError
from align.evaluate.policy import sequence_losses
from align.evaluate.significance import bootstrap_interval

Ids = list[int]


@dataclass(frozen=True)
class Losses:
    """Of one model: the loss of each row's tokens, in nats, and how many they are."""

    nats: tuple[float, ...]
    tokens: tuple[int, ...]

    def metrics(self, level: float = 0.95, seed: int = 0) -> dict[str, float]:
        """`retention_nats`, the mean loss of a token; rows are redrawn for the interval."""
        found = bootstrap_interval(self.nats, weights=self.tokens, level=level, seed=seed)
        return {
            "retention_nats": found.value,
            "retention_low": found.low,
            "retention_high": found.high,
        }


def retention_losses(
    model: nn.Module, tokenizer: Any, rows: Iterable[Mapping[str, Any]], *, batch_size: int = 16
) -> Losses:
    """A model's losses.

    Args:
        model: a policy.
        tokenizer: its own.
        rows: with `text`, with `prompt` and `completion`, or with `prompt` and `chosen`; rows past
            the model's context count no token.
        batch_size: rows at once.

    Raises:
        DataError: no row has a token to predict within the model's context.
    """
    longest = getattr(model.config, "max_position_embeddings", None)
    pairs = [row_ids(row, tokenizer) for row in rows]
    fits = [longest is None or len(prompt) + len(answer) <= longest for prompt, answer in pairs]
    kept = [pair if fit else ([], []) for pair, fit in zip(pairs, fits, strict=True)]
    nats, tokens = sequence_losses(model, kept, batch_size=batch_size)
    if not sum(tokens):
        raise DataError(
            f"retention: none of {len(pairs)} rows fits into the model's context of {longest} "
            "tokens and has a token to predict. Fix: name shorter rows."
        )
    return Losses(tuple(nats), tuple(tokens))


def row_ids(row: Mapping[str, Any], tokenizer: Any) -> tuple[Ids, Ids]:
    """Ids of a row's prompt, empty for a text, and of what is predicted."""
    if "text" in row:
        return [], encode_text(row["text"], tokenizer)
    answer = row["completion"] if "completion" in row else row["chosen"]
    ((prompt, completion),) = encode_pairs([row["prompt"]], [answer], tokenizer)
    return prompt, completion


def forgotten(
    before: Losses, after: Losses, level: float = 0.95, seed: int = 0
) -> dict[str, float] | None:
    """`forgotten_nats`: growth of the mean loss of a token; below 0 where it fell.

    Args:
        before: of the model before training.
        after: of the model after it, on the same rows.
        level: confidence level.
        seed: of the bootstrap over rows.

    Returns:
        None where the two models cut the rows into different tokens, whose losses do not compare.

    Raises:
        DataError: the rows differ in number.
    """
    if len(before.nats) != len(after.nats):
        raise DataError(f"{len(before.nats)} rows before and {len(after.nats)} after.")
    if before.tokens != after.tokens:
        return None
    change: Sequence[float] = [b - a for a, b in zip(before.nats, after.nats, strict=True)]
    found = bootstrap_interval(change, weights=after.tokens, level=level, seed=seed)
    return {
        "forgotten_nats": found.value,
        "forgotten_low": found.low,
        "forgotten_high": found.high,
    }
