"""Word problems whose answers can be checked: a world that a small model solves in part.

A problem is a chain of additions, subtractions and small products about somebody's things; its
solution works the chain out line by line and ends as GSM8K's do, `#### 31`. Demonstrations are few
and questions are many, as where writing a solution costs and an answer key does not.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

NAMES = ("Ann", "Bob", "Eva", "Max", "Ida", "Tom")
THINGS = ("pens", "eggs", "books", "cards", "coins", "apples")
MORE = ("{who} buys {n} more.", "{who} finds {n} more.", "A friend gives {who} {n}.")
LESS = ("{who} gives away {n}.", "{who} loses {n}.", "{who} sells {n}.")
TIMES = ("Then {who} has {n} times as many.",)


@dataclass(frozen=True)
class Level:
    """How hard problems are."""

    steps: tuple[int, int] = (2, 4)  # fewest and most
    largest: int = 99  # of any number on the way
    added: int = 30  # the largest number added or taken away


def make_problem(draw: random.Random, level: Level) -> dict[str, Any]:
    """One problem: `prompt`, the worked `completion` and the `answer`."""
    who, things = draw.choice(NAMES), draw.choice(THINGS)
    value = draw.randint(2, level.added)
    said, worked = [f"{who} has {value} {things}."], []
    for _ in range(draw.randint(*level.steps)):
        kinds = ["more"] * (value < level.largest - 2) + ["less"] * (value > 4)
        kinds += ["times"] * (2 <= value <= level.largest // 3)
        kind = draw.choice(kinds)
        if kind == "more":
            n = draw.randint(2, min(level.added, level.largest - value))
            words, sign, new = draw.choice(MORE), "+", value + n
        elif kind == "less":
            n = draw.randint(2, min(level.added, value - 1))
            words, sign, new = draw.choice(LESS), "-", value - n
        else:
            n = draw.randint(2, min(3, level.largest // value))
            words, sign, new = draw.choice(TIMES), "*", value * n
        said.append(words.format(who=who, n=n))
        worked.append(f"{value}{sign}{n}={new}")
        value = new
    prompt = " ".join(said) + f" How many {things} has {who} now?\n"
    return {
        "prompt": prompt,
        "completion": "\n".join([*worked, f"#### {value}"]),
        "answer": str(value),
    }


def make_world(seed: int, counts: dict[str, int], level: Level) -> dict[str, list[dict[str, Any]]]:
    """Different problems in parts of the sizes asked for; no problem is in two parts."""
    draw = random.Random(f"selftrain-{seed}")
    seen: set[str] = set()
    parts: dict[str, list[dict[str, Any]]] = {}
    for name, count in counts.items():
        rows: list[dict[str, Any]] = []
        while len(rows) < count:
            row = make_problem(draw, level)
            if row["prompt"] not in seen:
                seen.add(row["prompt"])
                rows.append(row)
        parts[name] = rows
    return parts
