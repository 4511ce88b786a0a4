"""The pool: prompts with their answers, and which two of a prompt's answers may be compared.

Answers are put into an order that says nothing of their quality: files name the better one first,
and whoever reads a reason ("it gives the first answer 90%") must not learn the label from it. What
a file says of the better answer is kept apart, as ranks, for simulated annotators alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from align.data.formats import check_serves, convert, detect_format
from align.data.quarantine import settle_bad_rows
from align.data.remote import read_source
from align.data.rows import BadRow, Values, plain_text, prompt_key, shorten
from align.errors import DataError
from align.run import read_jsonl
from feedback.acquisition.pool import Pool
from feedback.acquisition.prompts import embed_texts
from feedback.dialogue import RowProblem
from feedback.schema import Item, Text, item_id, pair_id

WORDS_A_MINUTE = 240  # that a person reads
OURS = ("prompt", "responses", "ranks", "order", "chosen", "rejected", "response_a", "response_b")
UNLABELLED = "response_a and response_b, or responses"  # what may serve beside the formats
RANKS = {"a": (1.0, 2.0), "b": (2.0, 1.0), "tie": (1.0, 1.0)}  # of a table's two answers, by label


@dataclass(frozen=True)
class Group:
    """A prompt with K answers."""

    prompt: Text
    answers: tuple[str, ...]
    ranks: tuple[float, ...] = ()  # what the data say of them, 1 best; empty: nothing
    sources: tuple[str, ...] = ()  # the policies that wrote them
    stratum: str = ""
    columns: dict[str, Any] = field(default_factory=dict)  # further columns, for a `truth`

    def item(self, places: Sequence[int], round: str, seed: int) -> Item:
        """The question about these answers: a pair, or of more than two a ranking."""
        from feedback.records import new_item

        texts = [self.answers[i] for i in places]
        names = [self.sources[i] for i in places] if self.sources else []
        kind = "pair" if len(texts) == 2 else "ranking"
        return new_item(kind, self.prompt, texts, names, self.columns, seed, round)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Candidate:
    """Two answers of a group that may be compared."""

    id: str  # of the pair, as in the store
    group: int
    first: int
    second: int


@dataclass(frozen=True, eq=False)
class PairPool:
    """All groups, with their pairs; a pair that several groups hold belongs to the first."""

    groups: tuple[Group, ...]

    @cached_property
    def pairs(self) -> tuple[Candidate, ...]:
        """Every pair of every group, N."""
        found: dict[str, Candidate] = {}
        for place, group in enumerate(self.groups):
            for i, j in combinations(range(len(group.answers)), 2):
                name = pair_id(group.prompt, group.answers[i], group.answers[j])
                found.setdefault(name, Candidate(name, place, i, j))
        return tuple(found.values())

    @cached_property
    def place(self) -> dict[str, int]:
        """Where a pair is, by its id."""
        return {pair.id: n for n, pair in enumerate(self.pairs)}

    @cached_property
    def offsets(self) -> np.ndarray:
        """(G + 1,) where each group's answers begin among all R answers."""
        return np.cumsum([0, *(len(group.answers) for group in self.groups)])

    @cached_property
    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each pair, the places of its first and second answer among all R, (N,) both."""
        start = [int(self.offsets[pair.group]) for pair in self.pairs]
        first = [s + pair.first for s, pair in zip(start, self.pairs, strict=True)]
        second = [s + pair.second for s, pair in zip(start, self.pairs, strict=True)]
        return np.array(first, dtype=np.intp), np.array(second, dtype=np.intp)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Of each pair, what makes its prompt the same prompt, N: the holdout splits by it."""
        made = [prompt_key(group.prompt) for group in self.groups]
        return tuple(made[pair.group] for pair in self.pairs)

    @cached_property
    def vectors(self) -> np.ndarray:
        """(G, E) embeddings of the groups' prompts, by their words."""
        return embed_texts([plain_text(group.prompt) for group in self.groups])

    def names(self) -> Pool:
        """The pairs by name and prompt alone: what a holdout reads."""
        return Pool([pair.id for pair in self.pairs], prompt_ids=self.keys)

    @property
    def prompts(self) -> list[Text]:
        """The prompt of each of the R answers."""
        return [group.prompt for group in self.groups for _ in group.answers]

    @property
    def answers(self) -> list[str]:
        """The R answers, group by group."""
        return [text for group in self.groups for text in group.answers]

    def with_groups(self, more: Iterable[Group]) -> PairPool:
        """The pool with further groups behind its own."""
        return PairPool((*self.groups, *more))

    def ranking_id(self, group: int) -> str:
        """The id of the question that ranks all answers of a group."""
        one = self.groups[group]
        return item_id("ranking", one.prompt, one.answers)

    def acquisition(
        self, places: Sequence[int], differences: np.ndarray | None, cost: str = "one"
    ) -> Pool:
        """Some pairs as `feedback.acquisition` reads them.

        Args:
            places: of the pairs, n.
            differences: (N, D) of all pairs, or None.
            cost: "one", or "reading": minutes.
        """
        chosen = [self.pairs[i] for i in places]
        strata = [self.groups[pair.group].stratum for pair in chosen]
        return Pool(
            ids=[pair.id for pair in chosen],
            differences=None if differences is None else differences[list(places)],
            prompts=self.vectors[[pair.group for pair in chosen]],
            prompt_ids=[self.keys[i] for i in places],
            strata=strata if any(strata) else None,
            costs=None if cost == "one" else [self.minutes(pair) for pair in chosen],
        )

    def minutes(self, pair: Candidate) -> float:
        """How long it takes to read a pair and to answer."""
        group = self.groups[pair.group]
        texts = (plain_text(group.prompt), group.answers[pair.first], group.answers[pair.second])
        return 1 / 30 + sum(len(text.split()) for text in texts) / WORDS_A_MINUTE


def read_pairs(
    path: str,
    columns: dict[str, str],
    limit: int | None,
    stratum: str | None,
    quarantine: Path | None = None,
) -> PairPool:
    """A pool from a file of pairs: `response_a` and `response_b`, `responses`, or labelled ones.

    A table of comparisons says in `label` which of its two answers is better: a, b, tie or nothing.

    Args:
        path: whatever `data.train` takes.
        columns: ours: theirs.
        limit: first rows only.
        stratum: the column that says a row's stratum.
        quarantine: where bad rows are written; None: they are refused.

    Raises:
        DataError: the source cannot be read or is of another kind, a row is bad, or no pair is
            there.
    """
    records = read_source(path, limit=limit, kind="ranking").records
    given = [record.values for record in records if record.values is not None]
    format = detect_format(given, columns, path) if given and not _bare(given[0], columns) else ""
    if format:
        check_serves(format, "ranking", path, UNLABELLED)
    groups, bad = [], []
    for record in records:
        try:
            if record.values is None:
                raise record.problem or RowProblem("unreadable")
            groups.append(_group(record.values, format, columns, stratum))
        except RowProblem as problem:
            held = record.raw if record.values is None else record.values
            bad.append(BadRow(record.where, problem.reason, problem.detail, held))
    if quarantine is not None:
        settle_bad_rows(bad, len(records), "quarantine", quarantine)
    elif bad:
        raise DataError(
            f"{bad[0].where}: {bad[0].reason}: {bad[0].detail} ({len(bad)} bad rows of "
            f"{len(records)}). Fix: mend them, or set pool.bad_rows=quarantine to leave them out."
        )
    pool = PairPool(tuple(group for group in groups if len(group.answers) > 1))
    if not pool.pairs:
        raise DataError(f"{path}: holds no pair of different answers. Fix: check the file.")
    return pool


def check_labels(pool: PairPool, path: str) -> None:
    """Refuse a pool whose labels are to be the truth, and that lacks some.

    Raises:
        DataError: with how many there are, and the first prompt without one.
    """
    without = [group for group in pool.groups if not group.ranks]
    if without:
        raise DataError(
            f"{path}: {len(without):,} of {len(pool.groups):,} rows say nothing of which answer is "
            f"better, the first of them about {plain_text(without[0].prompt)[:60]!r}, and "
            "annotators.truth is labels. Fix: add a column label (a, b or tie) to response_a and "
            "response_b, give preferences or rankings, or name another annotators.truth."
        )


def of_items(items: Iterable[Item], stratum: str | None) -> PairPool:
    """A pool of a store's pairs, in the order in which the store has their answers."""
    groups = []
    for item in items:
        name = str(item.columns.get(stratum, "")) if stratum else ""
        groups.append(Group(item.prompt, item.responses, (), item.sources, name, item.columns))
    return PairPool(tuple(groups))


def save_pool(path: Path, groups: Sequence[Group]) -> None:
    """Write groups as JSON lines, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    lines = [json.dumps(vars(group), ensure_ascii=False) for group in groups]
    temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    temporary.replace(path)


def load_pool(path: Path) -> list[Group]:
    """Read what `save_pool` wrote."""
    tuples = ("answers", "ranks", "sources")
    return [
        Group(**(row | {name: tuple(row[name]) for name in tuples})) for row in read_jsonl(path)
    ]


def shuffled(prompt: Text, answers: Sequence[str], ranks: Sequence[float] = ()) -> dict[str, Any]:
    """`answers` and `ranks`, each different answer once, in an order that a hash decides."""
    known: dict[str, float] = {}
    seen = set()  # by their words: white space around them makes no other answer
    for text, rank in zip(answers, ranks or [0.0] * len(answers), strict=True):
        if text.strip() not in seen:
            known[text] = rank
            seen.add(text.strip())
    key = json.dumps(prompt, sort_keys=True)
    order = sorted(known, key=lambda text: hashlib.blake2b(f"{key}|{text}".encode()).digest())
    return {
        "answers": tuple(order),
        "ranks": tuple(known[text] for text in order) if ranks else (),
    }


def _bare(values: Values, columns: dict[str, str]) -> bool:
    """Whether a row has answers and says nothing of which is better."""
    names = {columns.get(name, name) for name in ("order", "ranks", "chosen")}
    return not names & set(values) and (
        columns.get("responses", "responses") in values
        or columns.get("response_a", "response_a") in values
    )


def _group(values: Values, format: str, columns: dict[str, str], stratum: str | None) -> Group:
    read, taken = values, {*OURS, *columns.values()}
    ranks: tuple[float, ...] = ()
    if not format:
        ranks = _stated(values, columns)
        if ranks:  # what knows the better answer is kept from the questions
            taken.add("label")
        names = [columns.get(name, name) for name in ("response_a", "response_b")]
        theirs = columns.get("responses", "responses")
        texts = values.get(theirs, [values.get(name) for name in names])
        if not isinstance(texts, list):
            raise RowProblem(f"{theirs} is no list of answers", str(texts)[:80])
        if all(isinstance(text, str) for text in texts):
            texts = list(dict.fromkeys(texts))
        # Ranks make it a ranking that the parser checks; they are thrown away.
        read = {k: v for k, v in values.items() if k not in (*names, theirs)}
        read |= {theirs: texts, "ranks": list(range(1, len(texts) + 1))}
        columns = {k: v for k, v in columns.items() if not k.startswith("response_")}
    found = convert(read, format or "ranking", "ranking", columns)
    if found is None:
        raise RowProblem("names no better answer", "a soft label of one half")
    answers = [
        text if isinstance(text, str) else text[-1]["content"] for text in found["responses"]
    ]
    extra = {k: v for k, v in values.items() if k not in taken}
    prompt = found["prompt"]
    made = shuffled(prompt, answers, [float(r) for r in found["ranks"]] if format else ranks)
    name = str(values.get(stratum, "")) if stratum else ""
    return Group(prompt, stratum=name, columns=extra, **made)


def _stated(values: Values, columns: dict[str, str]) -> tuple[float, ...]:
    """The ranks of a table's two answers, where its row says which one is better."""
    label = values.get(columns.get("label", "label"))
    if label in (None, "") or columns.get("response_a", "response_a") not in values:
        return ()
    if not isinstance(label, str) or label.strip().lower() not in RANKS:
        raise RowProblem("label is unknown", f"{shorten(str(label))}; expected {', '.join(RANKS)}")
    return RANKS[label.strip().lower()]
