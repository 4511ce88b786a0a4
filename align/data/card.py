"""The data card: what was read, what was left out and why, and what the stages train on.

For every source, rows read = bad + left out + exact + near duplicates + leaks + unused + used. What
`data.augment` makes and `data.balance` repeats or leaves out is counted in the splits, beside that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from align.data.rows import BadRow, Kind, Row

if TYPE_CHECKING:
    from rich.console import Group

    from align.data.lengths import TokenStatistics


@dataclass
class SourceCard:
    """One source, row by row accounted for."""

    path: str
    role: str  # train, validation or test
    format: str
    sha256: str
    read: int = 0
    bad: int = 0
    left_out: int = 0  # good rows that the kind does not use: answers labelled bad, in SFT
    exact_duplicates: int = 0
    near_duplicates: int = 0
    leaks: int = 0  # rows whose prompt is in a held-out source
    unused: int = 0  # rows that the weights leave no room for
    used: int = 0
    share: float = 0.0  # of the rows used in its role
    weight: float | None = None


@dataclass
class DataCard:
    """What the data were. `as_dict` is saved as data_card.json; `render` is printed."""

    kind: Kind
    layout: str = ""  # text, plain or conversation
    sources: list[SourceCard] = field(default_factory=list)
    splits: dict[str, int] = field(default_factory=dict)  # rows, overlong ones included
    prompts: dict[str, int] = field(default_factory=dict)  # distinct prompts
    reasons: dict[str, int] = field(default_factory=dict)  # of bad rows
    quarantine: str | None = None  # the file that bad rows were written to
    ties: int = 0  # pairs of a store without a winner, and rows whose answers are equal
    contested: int = 0  # pairs of a store on which people disagree; `labels` says what decides
    contradictions: int = 0  # preferences whose opposite is in the data too
    augmented: list[dict[str, Any]] = field(default_factory=list)  # one for each data.augment
    balanced: dict[str, Any] | None = None  # data.balance: classes before and after
    options: dict[str, Any] = field(default_factory=dict)  # the settings that decided all this
    order: dict[str, Any] = field(default_factory=dict)  # of a curriculum and samplers
    tokens: dict[str, dict[str, Any]] = field(default_factory=dict)  # by split
    warnings: list[str] = field(default_factory=list)

    @property
    def rows_read(self) -> int:
        """Rows in all sources."""
        return sum(source.read for source in self.sources)

    @property
    def rows_used(self) -> int:
        """Rows in all splits."""
        return sum(self.splits.values())

    def count(self, name: str) -> int:
        """The sum of one of the sources' counts, e.g. "near_duplicates"."""
        return sum(getattr(source, name) for source in self.sources)

    def count_rows(self, role: str, name: str, rows: Iterable[Row]) -> None:
        """Add rows to one of the counts of the sources that they came from."""
        sources = [source for source in self.sources if source.role == role]
        for index, count in Counter(row.source for row in rows).items():
            setattr(sources[index], name, getattr(sources[index], name) + count)

    def add_bad(self, bad: Iterable[BadRow]) -> None:
        """Count reasons."""
        counts = Counter(self.reasons) + Counter(row.reason for row in bad)
        self.reasons = dict(counts.most_common())

    def add_tokens(self, split: str, statistics: TokenStatistics) -> None:
        """Record a split's token statistics, from `fit_length`."""
        self.tokens[split] = statistics.as_dict()
        if statistics.merged_boundaries:
            self.warn(
                f"{split}: {statistics.merged_boundaries} of {statistics.rows} prompts end inside "
                "a token of the training sequence, so sampling starts from other tokens than "
                "training did. Let prompts, or the chat template's opening of an answer, end with "
                "a newline, not with a space or inside a word."
            )

    def warn(self, message: str) -> None:
        """Keep a warning, once."""
        if message not in self.warnings:
            self.warnings.append(message)

    def as_dict(self) -> dict[str, Any]:
        """As JSON values, with the totals of the sources."""
        names = ("bad", "left_out", "exact_duplicates", "near_duplicates", "leaks", "unused")
        totals = {"read": self.rows_read} | {name: self.count(name) for name in names}
        return asdict(self) | {"totals": totals | {"used": self.rows_used}}

    def render(self) -> Group:
        """Tables for `rich.print`."""
        from align.data.card_view import render

        return render(self)
