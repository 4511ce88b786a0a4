"""Rows from templates: every text with its slots filled, drawn at random without repetition.

```yaml
slots:
  city: [Oslo, Lima, Pune]
  day: [today, tomorrow]
rows:
  - {prompt: "Will it rain in {city} {day}?", completion: "I cannot see the weather of {city}."}
```

A slot has one value in the whole row. Doubled braces are braces.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex
import yaml

from align.data.augment.lineage import fingerprint, rng
from align.data.rows import Values
from align.errors import DataError

_SLOT = regex.compile(r"\{\{|\}\}|\{([A-Za-z_]\w*)\}")
TRIES = 20  # draws for each row that is wanted, before a template counts as used up


@dataclass(frozen=True)
class TemplateFile:
    """Templates and what fills them."""

    path: Path
    slots: dict[str, list[str]]
    rows: list[Values]


def read_templates(path: str | Path) -> TemplateFile:
    """Read a file of templates.

    Raises:
        DataError: it is missing or is none, a slot is not defined, empty or never used; all of it
            together, by name.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"templates {path}: no such file. Fix: check the path.")
    try:
        whole = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"templates {path}: cannot be read ({error}). Fix: mend it.") from error
    if not isinstance(whole, dict) or set(whole) != {"rows", "slots"}:
        raise DataError(f"templates {path}: expected two keys, `rows` and `slots`.")
    slots, rows = whole["slots"], whole["rows"]
    if not isinstance(slots, dict) or not isinstance(rows, list) or not rows:
        raise DataError(f"templates {path}: expected `slots`, an object, and `rows`, a list.")
    problems = [
        f"slot {name!r} has no list of values"
        for name, values in slots.items()
        if not isinstance(values, list) or not values
    ]
    used = set[str]()
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            problems.append(f"row {number} is no object")
            continue
        names = set(slots_of(row))
        used |= names
        problems += [f"row {number} has an unknown slot {n!r}" for n in sorted(names - set(slots))]
    problems += [f"slot {name!r} is in no row" for name in sorted(set(slots) - used)]
    if problems:
        raise DataError(f"templates {path}: {'; '.join(problems)}. Fix: mend the file.")
    values = {name: [str(value) for value in values] for name, values in slots.items()}
    return TemplateFile(path, values, rows)


def slots_of(value: Any) -> list[str]:
    """The slots in all texts of a template, each once, in order."""
    found = dict[str, None]()
    for text in _texts(value):
        found.update(dict.fromkeys(m.group(1) for m in _SLOT.finditer(text) if m.group(1)))
    return list(found)


def fill(value: Any, chosen: Mapping[str, str]) -> Any:
    """A template with its slots filled."""
    if isinstance(value, str):
        return _SLOT.sub(lambda m: chosen[m.group(1)] if m.group(1) else m.group()[0], value)
    if isinstance(value, list):
        return [fill(item, chosen) for item in value]
    if isinstance(value, dict):
        return {key: fill(item, chosen) for key, item in value.items()}
    return value


def fillings(
    templates: TemplateFile, count: int, seed: int
) -> Iterator[tuple[Values, int, dict[str, str]]]:
    """Up to `count` rows, as evenly over the templates as their slots allow.

    Yields:
        The row, the number of its template (from 1), and what fills its slots.
    """
    supplies = [
        _combinations(templates, row, rng(seed, "templates", fingerprint(row)))
        for row in templates.rows
    ]
    numbered = list(enumerate(supplies, start=1))
    made = 0
    while numbered and made < count:
        for entry in list(numbered):
            chosen = next(entry[1], None)
            if chosen is None:
                numbered.remove(entry)
                continue
            yield fill(templates.rows[entry[0] - 1], chosen), entry[0], chosen
            made += 1
            if made == count:
                return


def _combinations(
    templates: TemplateFile, row: Values, draw: random.Random
) -> Iterator[dict[str, str]]:
    """Each combination of a template's slots once: shuffled where they are few, drawn if many."""
    names = slots_of(row)
    values = [templates.slots[name] for name in names]
    total = math.prod(map(len, values))
    if total <= 10_000:
        every = list(itertools.product(*values))
        draw.shuffle(every)
        for chosen in every:
            yield dict(zip(names, chosen, strict=True))
        return
    seen = set[str]()
    misses = 0
    while misses < TRIES:
        drawn = {name: draw.choice(options) for name, options in zip(names, values, strict=True)}
        key = json.dumps(drawn, sort_keys=True)
        misses = misses + 1 if key in seen else 0
        if key not in seen:
            seen.add(key)
            yield drawn


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value if isinstance(value, list) else value.values():
            yield from _texts(item)
