"""`data.balance`: training rows with classes or sources in balance, and what it came to.

Which rows a batch is drawn from is the samplers' matter; here rows are repeated, left out, or given
the weight that `align reward` reads. Tomek links and edited neighbours leave rows out where classes
meet; near is what shares rare words, since no model is there yet to embed a row. SMOTE and ADASYN
are not here: the points they make have no text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from align.config.augment import BalanceSection
from align.data.augment.lineage import fingerprint, lineage_of
from align.data.dedup import row_texts
from align.data.imbalance.embeddings import Cleaning, check_installed, resample
from align.data.imbalance.resample import class_weights, over_sample, under_sample
from align.data.rows import Kind, Row
from align.errors import ConfigError, Problem

WEIGHED: tuple[Kind, ...] = ("preference", "ranking", "rating", "steps")  # kinds with a weight
WIDTH = 1024  # columns of a row's words: so many that short texts seldom share one by chance
VOTERS = 3  # neighbours that enn asks, as Wilson did
MANY = 100  # classes that are more likely a column of ids


@dataclass
class Balanced:
    """What balancing did; a part of the data card."""

    by: str
    method: str
    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def check_balance(section: BalanceSection, kind: Kind) -> None:
    """Refuse weights where no stage would read them, and cleaning without its library.

    Raises:
        ConfigError: `method: weights` for SFT rows or prompts.
        MissingDependencyError: imbalanced-learn is not installed.
    """
    if section.method in ("tomek", "enn"):
        check_installed(f"data.balance.method: {section.method}")
    if section.method == "weights" and kind not in WEIGHED:
        what = f"weights: nothing that trains on {kind} rows reads a weight."
        raise ConfigError([Problem("data.balance.method", what, "use over or under.")])


def balance_rows(rows: Sequence[Row], section: BalanceSection) -> tuple[list[Row], Balanced]:
    """Rows with their groups in balance.

    Raises:
        ConfigError: there is one group, or nearly as many as rows; or too few rows to clean.
    """
    groups = [row.group for row in rows]
    counts = Counter(groups)
    _check_groups(counts, section)
    report = Balanced(section.by, section.method, dict(counts.most_common()))
    ids = [fingerprint(row.values) for row in rows]
    if section.method == "weights":
        report.weights = class_weights(
            counts, power=section.power, beta=section.beta, most=section.most
        )
        made = [_weighed(row, report.weights[row.group]) for row in rows]
    elif section.method == "under":
        kept = under_sample(groups, ids, power=section.power, seed=section.seed)
        made = [rows[index] for index in kept]
    elif section.method in ("tomek", "enn"):
        made = [rows[index] for index in _cleaned(rows, groups, section)]
    else:
        again = over_sample(groups, ids, power=section.power, most=section.most, seed=section.seed)
        made = [*rows, *_repeated(rows, again, section)]
    report.after = dict(Counter(row.group for row in made).most_common())
    return made, report


def _check_groups(counts: Counter[str], section: BalanceSection) -> None:
    total = sum(counts.values())
    if len(counts) < 2:
        what = f"{section.by}: all {total} training rows are of one class, {next(iter(counts))!r}."
        raise ConfigError([Problem("data.balance.by", what, "name a column, or leave it out.")])
    if len(counts) > max(MANY, total // 2):
        what = f"{section.by}: {len(counts)} classes for {total} training rows."
        raise ConfigError([Problem("data.balance.by", what, "name a column with few values.")])


def _cleaned(rows: Sequence[Row], groups: Sequence[str], section: BalanceSection) -> list[int]:
    """The rows that cleaning leaves, in their order."""
    from feedback.acquisition.prompts import embed_texts  # heavy, and seldom wanted

    if len(rows) <= VOTERS:
        what = f"{section.method}: there are {len(rows)} training rows, and a row needs neighbours."
        raise ConfigError([Problem("data.balance.method", what, "leave it out.")])
    points = embed_texts(["\n".join(row_texts(row)) for row in rows], WIDTH)
    method: Cleaning = "enn" if section.method == "enn" else "tomek"
    found = resample(points, groups, method, neighbours=VOTERS)
    return sorted(found.rows.tolist())


def _weighed(row: Row, weight: float) -> Row:
    old = row.values.get("weight")
    values = row.values | {"weight": weight * (1.0 if old is None else float(old))}
    return Row(row.where, row.source, values, row.key, lineage=row.lineage, group=row.group)


def _repeated(rows: Sequence[Row], again: Sequence[int], section: BalanceSection) -> list[Row]:
    counts: Counter[int] = Counter()
    made = []
    for index in again:
        row = rows[index]
        counts[index] += 1
        options = {"by": section.by, "power": section.power, "most": section.most}
        lineage = lineage_of(row, "repeat", section.seed, options, counts[index])
        where = f"{row.where} (repeat {counts[index]})"
        made.append(Row(where, row.source, row.values, row.key, lineage=lineage, group=row.group))
    return made
