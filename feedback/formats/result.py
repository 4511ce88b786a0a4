"""What reading a feedback file gives: judgements as read, and rows set aside with the reason."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

from feedback.errors import DataError
from feedback.schema import Comparison, Correction, Item, Judgement, Ranking, Rating, Thumb

Values: TypeAlias = dict[str, Any]  # one JSON object: whatever keys a file has
J = TypeVar("J", Comparison, Ranking, Rating, Thumb, Correction)
J_co = TypeVar("J_co", bound=Judgement, covariant=True)
SHOWN = 5  # bad rows an error names


@dataclass(frozen=True)
class Read(Generic[J_co]):
    """One judgement as read.

    `annotation` depends on what the row says and not on the file, so that reading it again, from a
    copy or under another name, gives the same: hand it to `FeedbackStore.add_comparisons`.
    """

    judgement: J_co
    annotation: str  # 32 hex digits, or the id the row itself states
    where: str  # "file:line"
    raw: Mapping[str, Any]  # the row (for Label Studio: the annotation) as it was
    adjudicated: bool = False  # it settles what others disagreed on


@dataclass(frozen=True)
class BadRow:
    """A row, or one judgement of a row, set aside."""

    file: str
    line: int
    reason: str
    detail: str
    row: object  # as read; text where it could not be parsed

    @property
    def where(self) -> str:
        """`file:line`."""
        return f"{self.file}:{self.line}"

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True)
class Skip:
    """An annotation by which a person declined to judge."""

    item: Item
    annotator: str
    annotation: str
    where: str
    raw: Mapping[str, Any]


@dataclass
class ReadResult:
    """Everything a file said: `rows` were read, each ends in reads, skips or bad."""

    file: str
    format: str
    rows: int = 0
    reads: list[Read[Judgement]] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)

    def of(self, kind: type[J]) -> list[Read[J]]:
        """The reads whose judgement is a `Comparison`, a `Ranking`, ..., in the file's order."""
        return [read for read in self.reads if isinstance(read.judgement, kind)]  # type: ignore[misc]

    @property
    def reasons(self) -> dict[str, int]:
        """How often each reason set something aside, most frequent first."""
        return dict(Counter(row.reason for row in self.bad).most_common())

    def check(self) -> None:
        """Refuse bad rows.

        Raises:
            DataError: there are some; it names the first ones and their number.
        """
        if not self.bad:
            return
        shown = "\n".join(f"  - {row}" for row in self.bad[:SHOWN])
        more = f"\n  ... and {len(self.bad) - SHOWN:,} more" if len(self.bad) > SHOWN else ""
        raise DataError(
            f"{self.file}: {len(self.bad):,} judgements or rows cannot be used, read as "
            f"{self.format}:\n{shown}{more}\n"
            "Fix: mend them, or set them aside and go on: --quarantine, in Python "
            "bad_rows='quarantine'."
        )

    def write_quarantine(self, path: str | Path) -> bool:
        """Write the bad rows as JSON lines with file, line, reason and row; whether any were.

        Raises:
            DataError: the file cannot be written.
        """
        if not self.bad:
            return False
        path = Path(path)
        temporary = path.with_name(path.name + ".tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # A lone surrogate, one reason to be here, becomes the JSON escape that it came from.
            with temporary.open("w", encoding="utf-8", errors="backslashreplace") as stream:
                for row in self.bad:
                    line = {
                        "file": row.file,
                        "line": row.line,
                        "reason": row.reason,
                        "detail": row.detail,
                        "row": row.row,
                    }
                    stream.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
            os.replace(temporary, path)
        except OSError as error:
            raise DataError(
                f"{path}: the quarantined rows cannot be written ({error.strerror}). "
                "Fix: check the folder's permissions and the disk."
            ) from error
        return True
