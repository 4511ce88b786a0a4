"""Where a made row comes from, and the random numbers that belong to it.

A row's random numbers follow from the seed, the transform and the row's own words, so that neither
the order of rows nor the number of workers changes what is made. The column `lineage` holds the
prompt of the *first* origin: `align.data.load` splits made rows by it, so that rows of one origin
stay on one side of every split, however their own prompts read.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from typing import Any

from align.data.carried import PREFIX
from align.data.rows import Row, Values

LINEAGE = "lineage"  # the column


def fingerprint(values: Mapping[str, Any]) -> str:
    """32 hex digits of a row's values, whatever the order of its columns.

    Columns that only an order of rows reads do not count: a curriculum changes no made row.
    """
    own = {name: value for name, value in values.items() if not name.startswith(PREFIX)}
    text = json.dumps(own, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def rng(seed: int, *parts: object) -> random.Random:
    """A generator of one's own for a seed and whatever names the purpose."""
    text = "\x1f".join(map(str, (seed, *parts)))
    return random.Random(hashlib.blake2b(text.encode(), digest_size=16).digest())


def lineage_of(row: Row, name: str, seed: int, options: Mapping[str, Any], copy: int) -> Values:
    """The lineage of a row made from another: that one's, and one step more.

    Returns:
        `origin`, the first row's fingerprint; `key`, what its split goes by; `steps`, each with the
        `transform`, its `seed` and `options` (as JSON), the `copy`, and `parent` and `where` of the
        row that it was applied to.
    """
    before = row.lineage or {"origin": fingerprint(row.values), "key": row.key, "steps": []}
    step = {
        "transform": name,
        "seed": seed,
        "options": json.dumps(options, sort_keys=True, ensure_ascii=False),
        "copy": copy,
        "parent": fingerprint(row.values),
        "where": row.where,
    }
    return {**before, "steps": [*before["steps"], step]}


def read_lineage(values: Mapping[str, Any]) -> Values | None:
    """The lineage that a row of a file brings with it; None without one of ours."""
    found = values.get(LINEAGE)
    if isinstance(found, str) and found.startswith("{"):  # a cell of a CSV file
        try:
            found = json.loads(found)
        except json.JSONDecodeError:
            return None
    if not isinstance(found, Mapping):
        return None
    fine = isinstance(found.get("key"), str) and isinstance(found.get("steps"), list)
    return dict(found) if fine else None
