"""How well a policy does each task: likelihood of held-out answers, or of the better of two.

Every model is measured on the same rows, chosen once. A score is higher when it is better:
`likelihood` is the mean log-probability of a token of the answer (minus its nats), `preference` the
share of pairs whose better answer the model gained more on than the worse one since the start (the
implicit reward of DPO, Rafailov et al. 2023, arXiv 2305.18290, equation 6, at any beta), `reward`
the mean reward of an answer to each prompt, drawn with the same random numbers from every model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from align.config.continual import MeasureSection, TaskSection
from align.config.sections import DataSection
from align.data import Kind, load_splits
from align.data.tokens import encode_pairs, encode_prompt
from align.errors import DataError
from align.evaluate.policy import sequence_losses
from align.evaluate.retention import row_ids
from align.evaluate.significance import bootstrap_interval
from align.rollout.transformers import TransformersSampler
from align.run import write_json
from reward.functions import RewardFn, call_reward, load_reward_function
from reward.process import load_reward

Row = dict[str, Any]
Json = dict[str, Any]
KINDS: dict[str, Kind] = {"likelihood": "sft", "preference": "preference", "reward": "prompts"}
WANTED = {
    "sft": "prompts and completions",
    "preference": "prompts with chosen and rejected answers",
    "prompts": "prompts",
}


@dataclass(frozen=True)
class Column:
    """One thing that is measured, with its rows."""

    name: str
    kind: str  # "likelihood", "preference" or "reward"
    rows: tuple[Row, ...]
    reward: RewardFn | None = None
    max_new_tokens: int = 64


def open_column(
    name: str,
    section: MeasureSection,
    task: TaskSection | None,
    tokenizer: Any,
    longest: int | None,
) -> Column:
    """The rows of a measure, those that are too long for the model left out.

    Args:
        name: of the task, or of what no task trains.
        section: what to measure.
        task: whose held-out rows serve where `section.data` is unset.
        tokenizer: of the model.
        longest: tokens that the model reads.

    Raises:
        DataError: no rows of the kind are there.
    """
    wanted = KINDS[section.kind]
    rows = _rows_of(section.data, wanted) if section.data else _held_out(task, wanted)
    rows = [row for row in rows if longest is None or _length(row, tokenizer) <= longest]
    if not rows:
        where = section.data or "its own data"
        raise DataError(
            f"{name}: {where} has no held-out rows to measure {section.kind} on. Fix: set "
            f"data.test_fraction of the task, or measure.data to a file of {WANTED[wanted]}."
        )
    reward = None if section.reward is None else _reward(section.reward)
    return Column(name, section.kind, tuple(rows[: section.rows]), reward, section.max_new_tokens)


def raw_scores(
    column: Column, rows: Sequence[Row], model: nn.Module, tokenizer: Any
) -> tuple[list[float], list[int]]:
    """A model's figure for each of a column's rows, and the row's weight."""
    if column.kind == "likelihood":
        losses, counts = sequence_losses(model, [row_ids(row, tokenizer) for row in rows])
        return [-x for x in losses], counts
    if column.kind == "reward":
        return _rewarded(column, rows, model, tokenizer), [1] * len(rows)
    margins = []
    for side in ("chosen", "rejected"):
        pairs = encode_pairs(
            [row["prompt"] for row in rows], [row[side] for row in rows], tokenizer
        )
        margins.append([-x for x in sequence_losses(model, pairs)[0]])
    return [good - bad for good, bad in zip(*margins, strict=True)], [1] * len(rows)


def summary(
    column: Column, raw: Sequence[float], weights: Sequence[int], start: Sequence[float] | None
) -> Json:
    """The score of a column.

    Args:
        column: what was measured.
        raw: of each row, by `raw_scores`.
        weights: of each row.
        start: `raw` of the model before all tasks; None where this is that model.

    Returns:
        `value`, `low`, `high` (95%, bootstrap over rows), `n`, and `raw`: for each row what later
        models are compared with.
    """
    kept = {"raw": list(raw)}
    if column.kind != "preference":
        return bootstrap_interval(raw, weights=weights).as_dict() | kept
    then = raw if start is None else start
    gained = [now - before for now, before in zip(raw, then, strict=True)]
    right = [1.0 if gain > 0 else 0.5 if gain == 0 else 0.0 for gain in gained]
    return bootstrap_interval(right).as_dict() | kept


def measure_models(
    load: Callable[[str], nn.Module],
    columns: Sequence[Column],
    tokenizer: Any,
    start: Json | None,
    file: Path,
    answers: Callable[[Column], Sequence[str]],
) -> Json:
    """Scores on all columns, kept in a file: it is read where it is there.

    Args:
        load: gives the model at a path, on its device.
        columns: what to measure.
        tokenizer: of the models.
        start: the same of the model before all tasks; None where this is that model.
        file: where the scores are kept.
        answers: the model that answers each row of a column, by its path.
    """
    if file.is_file():
        kept: Json = json.loads(file.read_text(encoding="utf-8"))
        return kept
    who = [list(answers(one)) for one in columns]
    raw = [[0.0] * len(one.rows) for one in columns]
    weights = [[0] * len(one.rows) for one in columns]
    for path in dict.fromkeys(path for paths in who for path in paths):
        model = load(path)
        for number, one in enumerate(columns):
            places = [place for place, other in enumerate(who[number]) if other == path]
            if not places:
                continue
            # Random numbers of an answer go by its place, so all rows are drawn.
            asked = range(len(one.rows)) if one.kind == "reward" else places
            scores = raw_scores(one, [one.rows[place] for place in asked], model, tokenizer)
            answered = set(places)
            for place, value, weight in zip(asked, *scores, strict=True):
                if place in answered:
                    raw[number][place], weights[number][place] = value, weight
    found = {
        one.name: summary(one, mine, weighed, None if start is None else start[one.name]["raw"])
        for one, mine, weighed in zip(columns, raw, weights, strict=True)
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, found)
    return found


def _rewarded(column: Column, rows: Sequence[Row], model: nn.Module, tokenizer: Any) -> list[float]:
    """The reward of one answer to each prompt."""
    assert column.reward is not None
    sampler = TransformersSampler(model, tokenizer, column.max_new_tokens, seed=0)
    names = [name for name in rows[0] if name != "prompt"]
    columns: Json = {name: [row[name] for row in rows] for name in names}
    rollout = sampler([row["prompt"] for row in rows], **columns)
    return call_reward(column.reward, rollout.prompts, rollout.completions, **rollout.columns)


def _reward(spec: str) -> RewardFn:
    """A reward model of a directory, its scores as they are, or a function."""
    if ":" in spec and not Path(spec).exists():
        return load_reward_function(spec)
    found: RewardFn = load_reward(spec, normalise=False)
    return found


def _rows_of(path: str, kind: Kind) -> list[Row]:
    section = DataSection.model_validate({"train": path, "validation_fraction": 0.0})
    return list(load_splits(section, kind).train)


def _held_out(task: TaskSection | None, kind: Kind) -> list[Row]:
    assert task is not None
    section = DataSection.model_validate(task.settings["data"])
    plain = section.model_copy(update={"augment": [], "balance": None})
    splits = load_splits(plain, kind)
    chosen = splits.test if splits.test is not None else splits.validation
    return [] if chosen is None else list(chosen)


def _length(row: Row, tokenizer: Any) -> int:
    if "prompt" in row and not {"completion", "chosen"} & row.keys():
        return len(encode_prompt(row["prompt"], tokenizer))
    if "chosen" not in row:
        return sum(map(len, row_ids(row, tokenizer)))
    return max(
        sum(map(len, pair))
        for side in ("chosen", "rejected")
        for pair in encode_pairs([row["prompt"]], [row[side]], tokenizer)
    )
