"""Timestamps of rows as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from align.data.curriculum.rank import Floats, check_difficulty
from align.errors import DataError

DAY = 86400.0


def as_times(values: Sequence[Any], column: str) -> Floats:
    """Numbers as they are; ISO 8601 texts in days, UTC where they name no zone.

    Raises:
        DataError: a value is neither; the message names the row.
    """
    if not any(isinstance(value, str | datetime) for value in values):
        return check_difficulty(values, len(values), column)
    found = []
    for row, value in enumerate(values, start=1):
        try:
            moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{column}: training row {row} has {value!r}, which is no ISO 8601 time. Fix: "
                "write times like 2026-01-31T12:00:00+00:00, or as numbers."
            ) from error
        zoned = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        found.append(zoned.timestamp() / DAY)
    return np.asarray(found)
