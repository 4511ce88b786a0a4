"""Train, validation and test by prompt, never by row.

A prompt's split is a pure function of its normalised words and `split_seed`: no prompt is in two
splits, adding data moves no prompt, and a prompt lands in the same split in SFT, reward modelling
and PPO, whatever the files. The price is that sizes are right only on average.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from align.data.rows import Row


def position_of(key: str, seed: int, purpose: bytes = b"split") -> float:
    """Where a prompt lies in [0, 1): uniform over prompts, fixed for a prompt, seed and purpose."""
    salt = seed.to_bytes(8, "little", signed=True)
    digest = hashlib.blake2b(key.encode(), digest_size=8, salt=salt, person=purpose).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


def split_of(key: str, validation_fraction: float, test_fraction: float, seed: int) -> str:
    """'train', 'validation' or 'test'.

    Validation takes the lower end of [0, 1) and test the upper end, so that a stage with a larger
    fraction, or with no test split, still validates on the same prompts.
    """
    position = position_of(key, seed)
    if position < validation_fraction:
        return "validation"
    return "test" if position >= 1 - test_fraction else "train"


def split_rows(
    rows: Iterable[Row],
    validation_fraction: float,
    test_fraction: float,
    seed: int,
    fold: str | None = None,
) -> dict[str, list[Row]]:
    """Rows by split, each in the order given.

    `fold`, "i/k", makes the i-th of k equal parts of [0, 1) the validation and the rest train.
    """
    parts: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    for row in rows:
        if fold is not None:
            place, count = map(int, fold.split("/"))
            inside = int(position_of(row.key, seed) * count) == place
            parts["validation" if inside else "train"].append(row)
            continue
        parts[split_of(row.key, validation_fraction, test_fraction, seed)].append(row)
    return parts


def remove_leaks(rows: list[Row], *held_out: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Rows whose prompt no held-out row has, and the ones that leak."""
    keys = {row.key for held in held_out for row in held}
    kept = [row for row in rows if row.key not in keys]
    return kept, [row for row in rows if row.key in keys]
