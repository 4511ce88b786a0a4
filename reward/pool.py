"""Scoring from Parquet to Parquet: any number of answers, in memory for one chunk of them.

Chunks are scored in the order of the file and written as parts (`reward.pool_parts`), so that a
process which is killed loses one chunk of work and no row. Within a chunk, prompts shared across
answers are computed once (`reward.shared`).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from feedback.errors import DataError
from reward.calibrate import Calibration
from reward.errors import RewardError
from reward.model import RewardModel
from reward.pool_parts import Parts, check_space, check_target, finished_before
from reward.pool_source import REWARDS, Answers, Source, open_source
from reward.score import context_length, score_head
from reward.shared import BATCH_TOKENS, pooled_states

CHUNK_ROWS = 4096
PROBABILITY = "probability"
NOT_THE_MODEL = ("_name_or_path", "transformers_version")  # of a configuration


@dataclass(frozen=True)
class Progress:
    """How far scoring is."""

    rows: int  # written, by earlier processes too
    total: int
    answers: int  # scored by this process
    seconds: float  # since it began
    resumed: int = 0  # rows that earlier processes wrote
    empty: int = 0  # answers without a score: an empty cell, or longer than the model's context

    @property
    def rows_per_second(self) -> float:
        """Of this process."""
        return (self.rows - self.resumed) / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float:
        """At the speed so far."""
        speed = self.rows_per_second
        return (self.total - self.rows) / speed if speed else float("inf")


def score_parquet(
    model: RewardModel,
    source: str | Path | Source,
    target: str | Path,
    *,
    batch_tokens: int = BATCH_TOKENS,
    chunk_rows: int = CHUNK_ROWS,
    resume: bool = False,
    overwrite: bool = False,
    calibration: Calibration | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Progress:
    """Score the answers of a file into a Parquet file with all its columns and `reward`.

    `prompt` and `completion` get `reward`; `prompt` and `completions` a list of them; `chosen` and
    `rejected` get `reward_chosen` and `reward_rejected`. A model with several heads gives their
    mean, and after it a column with `_std`, their biased standard deviation. Rewards are
    normalised where the model carries statistics. An answer that is null, or longer than the
    model's context, gets null.

    Args:
        model: the reward model.
        source: a .parquet file, a folder of them, or JSON lines.
        target: a .parquet file; while it is made, parts of it lie in `TARGET.parts/`.
        batch_tokens: of a forward pass, prefixes that answers share counted once.
        chunk_rows: rows of a part: what is held in memory, and what a killed process loses.
        resume: go on where an earlier process stopped; with nothing to go on with, begin.
        overwrite: replace a target, at the end.
        calibration: of raw margins; pairs get `probability` too, that the chosen answer is better.
        progress: called after every chunk.

    Returns:
        the last progress.

    Raises:
        DataError: the source cannot be used, the target exists, parts of it belong to another
            source, model or calibration, or a calibration is for pairs and these are none.
        RewardError: the disk is full, or a score is no number.
        ModelError: the model cannot read these answers.
    """
    target = Path(target)
    if batch_tokens < 1 or chunk_rows < 1:
        raise ValueError(
            f"batch_tokens and chunk_rows must be at least 1, not {batch_tokens} and {chunk_rows}."
        )
    check_target(target, resume, overwrite)
    opened = source if isinstance(source, Source) else open_source(source)
    if calibration is not None:
        check_pairs(opened)
    if not finished_before(target, resume):
        check_space(target, opened.size())
    parts = Parts(
        target,
        {
            "source": opened.fingerprint(),
            "model": model_fingerprint(model),
            "rows": opened.rows,
            "chunk_rows": chunk_rows,
            "calibration": None if calibration is None else repr(calibration),
        },
    )
    began = time.monotonic()
    with parts.locked():
        if resume and parts.finished():
            parts.remove()
            return Progress(opened.rows, opened.rows, 0, 0.0, opened.rows)
        number = parts.begin(resume, overwrite)
        rows = resumed = min(number * chunk_rows, opened.rows)
        answers = empty = 0
        for table in opened.tables(rows, chunk_rows):
            found = opened.answers(table)
            scores = score_answers(model, found, batch_tokens)
            written = with_rewards(table, opened, found, scores)
            if calibration is not None:
                written = with_probability(written, scores, model, calibration)
            parts.write(number, written)
            number += 1
            rows += len(table)
            answers += len(found.completions)
            empty += int(scores[:, 0].isnan().sum())
            if progress is not None:
                seconds = time.monotonic() - began
                progress(Progress(rows, opened.rows, answers, seconds, resumed, empty))
        parts.assemble(number)
    return Progress(rows, opened.rows, answers, time.monotonic() - began, resumed, empty)


def score_answers(model: RewardModel, answers: Answers, batch_tokens: int) -> Tensor:
    """Scores of all heads, (N, K) float32 on the CPU; NaN for an answer that has none.

    Raises:
        RewardError: a score is no finite number.
    """
    kept, rows = [], []
    longest = context_length(model.model)
    for place, (prompt, completion) in enumerate(
        zip(answers.prompts, answers.completions, strict=True)
    ):
        if prompt is None or completion is None:
            continue
        ids = model.encode(prompt, completion)
        if 0 < len(ids) <= longest:
            kept.append(place)
            rows.append(ids)
    padding = model.tokenizer.pad_token_id or 0
    found = score_rows(model.model, rows, padding, batch_tokens)
    if model.normalisation is not None:
        found = (found - model.normalisation.mean) / model.normalisation.std
    wrong = (~found.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if wrong:
        answer = str(answers.completions[kept[wrong[0]]])[:80]
        raise RewardError(
            f"{model.name} gives {found[wrong[0]].tolist()} to the answer {answer!r}. Fix: look "
            "for broken weights, or for a dtype that overflows."
        )
    scores = torch.full((len(answers.completions), found.shape[1]), torch.nan)
    scores[torch.tensor(kept, dtype=torch.long)] = found
    return scores


def score_rows(
    model: nn.Module,
    rows: Sequence[Sequence[int]],
    padding: int = 0,
    batch_tokens: int = BATCH_TOKENS,
) -> Tensor:
    """Raw scores of token-id rows by all heads, (N, K) float32 on the CPU, in their order.

    Args:
        model: a sequence-classification model, a PEFT wrapper included.
        rows: N lists of token ids, none empty.
        padding: an id for models that need padding.
        batch_tokens: of a forward pass.
    """
    wrapped: Any = model
    inner = wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped
    head = score_head(inner)
    found = torch.zeros(len(rows), int(getattr(inner.config, "num_labels", 1)))
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            batches = pooled_states(
                inner.base_model, rows, padding=padding, batch_tokens=batch_tokens
            )
            for places, states in batches:
                found[torch.tensor(places)] = head(states).float().cpu()
    finally:
        model.train(training)
    return found


def with_rewards(table: pa.Table, source: Source, answers: Answers, scores: Tensor) -> pa.Table:
    """The rows with columns of rewards, and of their deviations where there are several heads."""
    values = {"": scores.mean(dim=1)}
    if scores.shape[1] > 1:
        values["_std"] = scores.std(dim=1, unbiased=False)
    names = REWARDS[source.shape]
    for number, name in enumerate(names):
        for suffix, found in values.items():
            flat = _nullable(found[number :: len(names)])
            if source.shape == "completions":
                flat = _lists(flat, answers.counts)
            table = table.append_column(name + suffix, flat)
    return table


def with_probability(
    table: pa.Table, scores: Tensor, model: RewardModel, calibration: Calibration
) -> pa.Table:
    """Rows of pairs with the calibrated probability that the chosen answer is the better one."""
    mean = scores.mean(dim=1).double()
    raw = mean if model.normalisation is None else mean * model.normalisation.std
    margins = (raw[0::2] - raw[1::2]).numpy()
    known = ~np.isnan(margins)
    found = np.full(len(margins), np.nan)
    found[known] = calibration.apply(margins[known])
    return table.append_column(PROBABILITY, pa.array(found, pa.float64(), mask=~known))


def check_pairs(source: Source) -> None:
    """Refuse answers that no probability belongs to: a margin is calibrated, not a score.

    Raises:
        DataError: the rows are no pairs, or have a column of that name.
    """
    if source.shape != "pair":
        raise DataError(
            f"{source.path}: its rows are single answers, and a calibration is of margins. Fix: "
            "give pairs (chosen and rejected), or leave --calibrated out."
        )
    if PROBABILITY in source.schema.names:
        raise DataError(
            f"{source.path} has a column {PROBABILITY!r} already. Fix: rename or drop it."
        )


def model_fingerprint(model: RewardModel) -> str:
    """SHA-256 over weights, configuration, tokenizer and statistics, 64 hex digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        if flat.numel():
            digest.update(flat.view(torch.uint8).numpy())
    tokenizer: Any = model.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    config = model.model.config.to_diff_dict()
    said = {
        "config": {k: v for k, v in config.items() if k not in NOT_THE_MODEL},
        "tokenizer": backend.to_str() if backend is not None else sorted(tokenizer.get_vocab()),
        "template": tokenizer.chat_template,
        "end": tokenizer.eos_token,
        "statistics": vars(model.normalisation) if model.normalisation else None,
    }
    digest.update(json.dumps(said, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _nullable(values: Tensor) -> pa.Array:
    flat = values.numpy()
    return pa.array(flat, pa.float32(), mask=np.isnan(flat))


def _lists(flat: pa.Array, counts: Sequence[int | None]) -> pa.Array:
    return pa.array(list(_split(flat.to_pylist(), counts)), pa.list_(pa.float32()))


def _split(values: list[Any], counts: Sequence[int | None]) -> Iterator[list[Any] | None]:
    start = 0
    for count in counts:
        yield None if count is None else values[start : start + count]
        start += count or 0
