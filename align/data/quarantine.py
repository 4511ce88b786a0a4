"""Bad rows: stop at them with file and line, or keep them aside with the reason."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from align.data.rows import BadRow
from align.errors import DataError
from align.processes import first_process

SHOWN = 5  # bad rows an error names


def settle_bad_rows(
    bad: Sequence[BadRow],
    rows_read: int,
    policy: Literal["strict", "quarantine"],
    path: Path | None,
) -> bool:
    """Stop at bad rows, or write them to a JSON-lines file with position and reason.

    Returns:
        Whether a file was written.

    Raises:
        DataError: there are bad rows and the policy is strict; it names the first ones.
    """
    if bad and policy == "strict":
        shown = "\n".join(
            f"  - {row.where}: {row.reason}" + (f" ({row.detail})" if row.detail else "")
            for row in bad[:SHOWN]
        )
        more = f"\n  ... and {len(bad) - SHOWN:,} more" if len(bad) > SHOWN else ""
        raise DataError(
            f"{len(bad):,} of {rows_read:,} rows cannot be used:\n{shown}{more}\n"
            "Fix: mend them, or set data.bad_rows=quarantine to keep them aside and go on."
        )
    if not bad or path is None:
        return False
    if first_process():  # every process of a launch reads the same data
        _write(bad, path)
    return True


def _write(bad: Sequence[BadRow], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        for row in bad:
            line = {"where": row.where, "reason": row.reason, "detail": row.detail, "row": row.row}
            stream.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
    temporary.replace(path)
