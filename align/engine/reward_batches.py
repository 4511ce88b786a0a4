"""From rows people judged to the batches of a reward objective: token ids in groups, and labels.

Every kind of judgement becomes groups of token rows: the two answers of a comparison, the K of a
ranking, one rated answer, one answer in steps. A batch lays all rows of its groups under each
other; `counts` says how many belong to each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from align.data.tokens import encode_pairs
from feedback.schema import Text
from reward.preferences import SOFT_LABEL
from reward.process import encode_steps

ObjectiveKind = Literal["pairs", "rankings", "ratings", "steps"]
Example = dict[str, Any]
UNKNOWN = math.nan  # of a label that nobody gave


def reward_examples(
    rows: Dataset,
    kind: ObjectiveKind,
    tokenizer: PreTrainedTokenizerBase,
    *,
    aspects: Sequence[str] = (),
    heads: int = 1,
    resample: int | None = None,
) -> list[Example]:
    """Rows in tokens with their labels.

    Args:
        rows: of the data layer's kind: preference, ranking, rating or steps.
        kind: of the judgements.
        tokenizer: the reward model's.
        aspects: names of the scores of a rating, in the order of the heads.
        heads: columns of scores.
        resample: seed of `bootstrap`; None: every head sees every example once.
    """
    examples = [_example(row, kind, tokenizer, aspects) for row in rows]
    once = [[1] * heads] * len(examples)
    draws = once if resample is None else bootstrap(len(examples), heads, resample).tolist()
    for example, drawn in zip(examples, draws, strict=True):
        example["draws"] = drawn
    return examples


def bootstrap(examples: int, heads: int, seed: int) -> np.ndarray:
    """How often each head sees each example, (examples, heads): Poisson(1), independently.

    Online bagging, Oza and Russell (2001): a bootstrap sample whose size varies a little.
    """
    return np.random.default_rng(seed).poisson(1.0, size=(examples, heads))


def _example(
    row: dict[str, Any],
    kind: ObjectiveKind,
    tokenizer: PreTrainedTokenizerBase,
    aspects: Sequence[str],
) -> Example:
    prompt = row["prompt"]
    weight = row.get("weight")
    example: Example = {"weight": 1.0 if weight is None else float(weight)}
    if kind == "steps":
        ids, ends = encode_steps(prompt, row["completions"], tokenizer)
        labels = [UNKNOWN if label is None else float(label) for label in row["labels"]]
        return example | {"rows": [ids], "starts": [0], "ends": ends, "labels": labels}
    if kind == "pairs":
        answers: list[Text] = [row["chosen"], row["rejected"]]
        example["margin"] = float(row.get("margin") or 0.0)
        soft = row.get(SOFT_LABEL)
        example[SOFT_LABEL] = 1.0 if soft is None else float(soft)
    elif kind == "rankings":
        answers = row["responses"]
        example["ranks"] = list(row["ranks"])
    else:
        answers = [row["completion"]]
        given = {name: value for name, value in row["scores"].items() if value is not None}
        example["scores"] = [float(given.get(aspect, UNKNOWN)) for aspect in aspects]
    encoded = encode_pairs([prompt] * len(answers), answers, tokenizer)
    example["rows"] = [start + rest for start, rest in encoded]
    example["starts"] = [len(start) for start, _ in encoded]
    return example


class RewardCollator:
    """Groups of rows to one padded batch."""

    def __init__(self, padding: int):
        self.padding = padding

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """The batch.

        Returns:
            `input_ids`, `attention_mask` (N, T) right-padded; `read` (N, T), 1 on each answer's
            last token, or on each step's; `answer` (N, T), 1 on the answers' own tokens; `counts`
            (B,) rows of each group (of steps: of read tokens); `weight` (B,); `draws` (B, heads);
            and the labels: `margin`, `soft_label` (B,); `ranks` (N,); `scores` (B, A) and
            `step_labels` (M,), NaN where unknown.
        """
        rows = [row for example in examples for row in example["rows"]]
        starts = [start for example in examples for start in example["starts"]]
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.padding, dtype=torch.long)
        mask, answer, read = (torch.zeros_like(ids) for _ in range(3))
        for place, (row, start) in enumerate(zip(rows, starts, strict=True)):
            ids[place, : len(row)] = torch.tensor(row, dtype=torch.long)
            mask[place, : len(row)] = 1
            answer[place, max(start, 1) : len(row)] = 1
            read[place, len(row) - 1] = 1
        steps = "ends" in examples[0]
        if steps:
            read.zero_()
            for place, example in enumerate(examples):
                read[place, torch.tensor(sorted(set(example["ends"])))] = 1
        counts = [len(set(e["ends"])) if steps else len(e["rows"]) for e in examples]
        batch = {
            "input_ids": ids,
            "attention_mask": mask,
            "read": read,
            "answer": answer,
            "counts": torch.tensor(counts),
            "weight": torch.tensor([example["weight"] for example in examples]),
            "draws": torch.tensor([example["draws"] for example in examples]).float(),
        }
        for name in ("margin", SOFT_LABEL):
            if name in examples[0]:
                batch[name] = torch.tensor([example[name] for example in examples])
        if "scores" in examples[0]:
            batch["scores"] = torch.tensor([example["scores"] for example in examples])
        if "ranks" in examples[0]:
            batch["ranks"] = torch.tensor([rank for e in examples for rank in e["ranks"]])
        if steps:
            batch["step_labels"] = torch.cat([_step_labels(example) for example in examples])
        return batch


def _step_labels(example: Example) -> Tensor:
    """Labels of the read tokens; of steps that end in one token, the last one's."""
    found = dict(zip(example["ends"], example["labels"], strict=True))
    return torch.tensor([found[end] for end in sorted(found)])
