"""How hard a row is, without a model: its length, a column of its own, its margin, a function.

Higher is harder throughout. What a model thinks of a row is in `model_measures`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset

from align.data.curriculum.rank import Floats, check_difficulty
from align.data.lengths import sequence_lengths
from align.data.rows import Kind
from align.errors import DataError
from reward.errors import RewardError
from reward.functions import load_reward_function

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MEASURES = ("length", "perplexity", "loss", "reward_margin", "column")
DifficultyFn = Callable[[Dataset], object]  # the training rows -> one number for each


def length(rows: Dataset, kind: Kind, tokenizer: PreTrainedTokenizerBase) -> Floats:
    """Tokens of each row as it is trained on (Platanios et al. 2019's sentence length)."""
    return np.asarray(sequence_lengths(rows, kind, tokenizer), dtype=np.float64)


def own_margin(rows: Dataset) -> Floats:
    """-margin of each preference: answers that are nearly as good as each other are hard.

    Raises:
        DataError: the rows have no margins.
    """
    if "margin" not in rows.column_names:
        raise DataError(
            "difficulty reward_margin: the preferences have no column margin. Fix: add one "
            "(chosen's score less rejected's), or name a reward model with `model`."
        )
    return check_difficulty([-value for value in rows["margin"]], len(rows), "reward_margin")


def by_function(rows: Dataset, spec: str) -> Floats:
    """Difficulties by a function of the user's: `function(dataset)` -> one number a row.

    Raises:
        DataError: it fails, or returns something else.
    """
    function = load_difficulty(spec)
    try:
        found = function(rows)
    except Exception as error:
        raise DataError(
            f"difficulty {spec}: failed with {type(error).__name__}: {error}"
        ) from error
    return check_difficulty(found, len(rows), spec)  # type: ignore[arg-type]


def load_difficulty(spec: str) -> DifficultyFn:
    """Import `module:function`.

    Raises:
        DataError: there is none of that name.
    """
    try:
        function: DifficultyFn = load_reward_function(spec)  # type: ignore[assignment]
    except RewardError as error:
        raise DataError(str(error).removeprefix("reward function ")) from error
    return function
