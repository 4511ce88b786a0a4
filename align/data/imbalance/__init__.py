"""Imbalance: rows repeated or left out, weights, and embeddings resampled.

`balance_rows` does what `data.balance` asks for; `over_sample`, `under_sample` and `class_weights`
work on class names alone; `align.data.imbalance.embeddings` needs imbalanced-learn.
"""

from align.data.imbalance.balance import Balanced, balance_rows, check_balance
from align.data.imbalance.resample import class_sizes, class_weights, over_sample, under_sample

__all__ = [
    "Balanced",
    "balance_rows",
    "check_balance",
    "class_sizes",
    "class_weights",
    "over_sample",
    "under_sample",
]
