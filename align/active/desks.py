"""Who answers: what every desk does, simulated annotators, and a file that somebody fills in.

A desk is asked to put questions and to bring answers; both may be repeated at any time, and do
nothing that is done. Label Studio's desk: `align.active.desk_label_studio`.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from align.active.pool import WORDS_A_MINUTE, Group
from align.data.rows import plain_text
from align.errors import DataError
from feedback.records import pair_of
from feedback.schema import Comparison, Item, Label, Ranking
from feedback.simulate import SimulatedAnnotator
from feedback.store import FeedbackStore

Utilities = Callable[[Group], Sequence[float]]  # what each answer of a group is worth


@dataclass(frozen=True)
class Question:
    """One question of a round."""

    item: Item
    group: Group
    queue: float  # the greatest is asked first
    annotator: str | None = None  # who is to answer; None: anyone


class Desk(Protocol):
    """Where people are asked."""

    @property
    def needed(self) -> int:
        """Answers to each question."""

    def ask(self, questions: Sequence[Question], round: int) -> str:
        """Put questions; what to do next, in words."""

    def collect(self, questions: Sequence[Question], round: int) -> None:
        """Bring into the store what was answered so far."""


@dataclass(frozen=True, eq=False)
class SimulatedDesk:
    """Annotators that know what answers are worth, through noise of their own."""

    store: FeedbackStore
    people: Sequence[SimulatedAnnotator]
    utilities: Utilities

    @property
    def needed(self) -> int:
        """Everybody answers everything, but for what a budget gave to one of them."""
        return len(self.people)

    def ask(self, questions: Sequence[Question], round: int) -> str:
        """Nothing to do: they answer when they are collected."""
        return ""

    def collect(self, questions: Sequence[Question], round: int) -> None:
        """Everybody's answer to every question, each once: the same question has the same one."""
        said: list[Comparison | Ranking] = []
        names = []
        for question in questions:
            known = {person.name for person in self.people}
            for person in self.people:
                if question.annotator in known and question.annotator != person.name:
                    continue
                said.append(self.answer(question, person))
                names.append(f"simulated/{person.name}/{question.item.id}")
        self.store.add_judgements(said, annotations=names)

    def answer(self, question: Question, person: SimulatedAnnotator) -> Comparison | Ranking:
        """What one person says."""
        group, item = question.group, question.item
        worth = dict(zip(group.answers, self.utilities(group), strict=True))
        words = len(" ".join([plain_text(item.prompt), *item.responses]).split())
        seconds = 2.0 + 60 * words / WORDS_A_MINUTE
        if item.kind == "pair":
            a, b = (worth[text] for text in item.responses)
            said = replace(person.judge(pair_of(item), a, b), lead_time=seconds)
            if a == b and self.utilities is of_ranks:  # a labelled tie is no toss-up
                said = replace(said, label="tie", strength=0)
            return said
        # Gumbel noise makes an order of Plackett and Luce.
        draw = random.Random(f"{person.seed}|{person.name}|{item.id}")
        noisy = []
        for text in item.responses:
            uniform = min(max(draw.random(), 1e-12), 1 - 1e-12)
            noisy.append(worth[text] / person.temperature - math.log(-math.log(uniform)))
        order = sorted(range(len(noisy)), key=lambda i: -noisy[i])
        return Ranking(
            item.prompt, item.responses, tuple(order), person.name, item.id, lead_time=seconds
        )


def of_ranks(group: Group) -> list[float]:
    """What the pool's own labels make of answers: so far apart that nobody errs.

    Raises:
        DataError: the group has no labels.
    """
    if not group.ranks:
        raise DataError(
            f"the answers to {plain_text(group.prompt)[:60]!r} have no label. Fix: give labelled "
            "pairs, or another annotators.truth."
        )
    return [-1e6 * rank for rank in group.ranks]


ANSWERS = ("first", "second", "tie", "skip")


@dataclass(frozen=True, eq=False)
class FileDesk:
    """A file of questions for each round; whoever answers fills in `answer` and saves it."""

    store: FeedbackStore
    folder: Path
    needed = 1

    def ask(self, questions: Sequence[Question], round: int) -> str:
        """Write the round's file, unless it is there: it may hold answers already."""
        path = self._path(round)
        if not path.is_file():
            ordered = sorted(questions, key=lambda question: -question.queue)
            lines = [json.dumps(_line(one), ensure_ascii=False) + "\n" for one in ordered]
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".tmp")
            temporary.write_text("".join(lines), encoding="utf-8")
            temporary.replace(path)
        return (
            f"write an answer into each line of {path}: first, second, tie or skip; of a ranking, "
            "the places best first, such as [2, 1, 3]"
        )

    def collect(self, questions: Sequence[Question], round: int) -> None:
        """Record the answers of a round's file; an answer that was changed is a new version.

        Raises:
            DataError: the file is gone, or a line cannot be read; the message names the line.
        """
        path = self._path(round)
        if not path.is_file():
            raise DataError(f"{path}: the round's questions are gone. Fix: put the file back.")
        known = {question.item.id: question.item for question in questions}
        said: list[Comparison | Ranking] = []
        names, skips = [], []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            item, answer, row = _read_line(f"{path}:{number}", line, known)
            if answer is None:
                continue
            name = f"file/{round}/{item.id}"
            who = str(row.get("annotator") or "file")
            if answer == "skip":
                skips.append((item.id, who, name, None))
            else:
                said.append(_judgement(item, answer, who, row.get("seconds")))
                names.append(name)
        self.store.add_judgements(said, annotations=names)
        self.store.add_skips(skips)

    def _path(self, round: int) -> Path:
        return self.folder / f"round-{round:03d}.jsonl"


def _line(question: Question) -> dict[str, Any]:
    item = question.item
    shown = [item.responses[place] for place in item.shown]
    line: dict[str, Any] = {"id": item.id, "prompt": item.prompt}
    if item.kind == "pair":
        line |= {"first": shown[0], "second": shown[1]}
    else:
        line |= {"answers": shown}
    return line | {"answer": None, "annotator": question.annotator}


def _read_line(
    where: str, line: str, known: Mapping[str, Item]
) -> tuple[Item, str | list[int] | None, dict[str, Any]]:
    """The question, its answer (None: not yet) and the whole row."""
    try:
        row = json.loads(line)
        item = known[row["id"]]
    except (ValueError, KeyError, TypeError):
        raise DataError(
            f"{where}: is no question of this round. Fix: change nothing but `answer`, `annotator` "
            "and `seconds`."
        ) from None
    answer = row.get("answer")
    if answer is None or answer == "" or answer == "skip":
        return item, answer or None, row
    count = len(item.responses)
    whole = isinstance(answer, list) and sorted(map(str, answer)) == sorted(
        str(n + 1) for n in range(count)
    )
    if whole if item.kind == "ranking" else answer in ANSWERS:
        return item, answer, row
    wanted = ", ".join(ANSWERS) if item.kind == "pair" else f"places 1 to {count}, best first"
    raise DataError(f"{where}: the answer is {answer!r}. Fix: {wanted}.")


def _judgement(
    item: Item, answer: str | list[int], who: str, seconds: float | None
) -> Comparison | Ranking:
    if item.kind == "ranking":
        order = tuple(item.shown[int(place) - 1] for place in answer)
        return Ranking(item.prompt, item.responses, order, who, item.id, lead_time=seconds)
    turned = item.shown == (1, 0)
    label: Label = "tie"
    if answer != "tie":
        label = "b" if (answer == "second") != turned else "a"
    first, second = item.responses
    return Comparison(
        item.prompt,
        first,
        second,
        label,
        who,
        strength=0 if label == "tie" else 1,
        swapped=turned,
        pair=item.id,
        lead_time=seconds,
    )
