"""Finished batches of a long evaluation, one JSON line each, so that a crash loses one batch.

The key names everything the results depend on; a file with another key is started afresh, because
a stale cache is worse than none.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from align.run import append_jsonl, read_jsonl


class BatchCache:
    """Rows of finished batches by the number of their first row. Without a path nothing is kept."""

    def __init__(self, path: Path | None, key: str):
        self.path = path
        self._batches: dict[int, list[Any]] = {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = read_jsonl(path)
        kept = lines[1:] if lines and lines[0].get("key") == key else []
        self._batches = {line["start"]: line["rows"] for line in kept if "start" in line}
        # Written anew even when it is continued: a torn last line must not swallow the next one.
        temporary = path.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        append_jsonl(temporary, {"key": key})
        for start, rows in self._batches.items():
            append_jsonl(temporary, {"start": start, "rows": rows})
        temporary.replace(path)

    def get(self, start: int) -> list[Any] | None:
        """The rows of the batch that starts at row `start`, if it was finished."""
        return self._batches.get(start)

    def put(self, start: int, rows: list[Any]) -> None:
        """Keep a finished batch."""
        if self.path is not None:
            append_jsonl(self.path, {"start": start, "rows": rows})


def cache_key(*parts: Any) -> str:
    """SHA-256 (32 hex digits) of JSON-like values."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def cache_file(run_dir: Path | None, kind: str, *names: str) -> Path | None:
    """A file for these names, None without a directory; names that differ never share one."""
    if run_dir is None:
        return None
    readable = "-".join(re.sub(r"[^\w.]+", "_", name) for name in names)[:80]
    return run_dir / "cache" / f"{kind}-{readable}-{cache_key(*names)[:6]}.jsonl"
