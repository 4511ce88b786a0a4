"""A user's own thesaurus: words and what may stand for them.

| file         | a line or entry                  | read as                              |
|--------------|----------------------------------|--------------------------------------|
| .json        | {"big": ["large", "great"]}      | large and great may stand for big    |
| .csv, .tsv   | big,large,great                  | the same                             |
| .txt         | big, large, great                | each may stand for each of the others |

None is shipped: which words mean the same depends on the subject.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from align.errors import DataError

Thesaurus = Mapping[str, tuple[str, ...]]  # a word in lower case: what may stand for it


def read_thesaurus(path: str | Path) -> Thesaurus:
    """Read a thesaurus; entries of one word are joined.

    Raises:
        DataError: no such file, another ending, or an entry that is none; it names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"thesaurus {path}: no such file. Fix: check the path.")
    if path.suffix not in (".json", ".csv", ".tsv", ".txt"):
        raise DataError(f"thesaurus {path}: expected .json, .csv, .tsv or .txt. Fix: rename it.")
    found: dict[str, dict[str, None]] = {}
    try:
        for word, others in _entries(path, path.read_text(encoding="utf-8")):
            kept = found.setdefault(word.casefold(), {})
            kept.update(dict.fromkeys(o for o in others if o.casefold() != word.casefold()))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"thesaurus {path}: cannot be read ({error}). Fix: mend it.") from error
    entries = {word: tuple(others) for word, others in found.items() if others}
    if not entries:
        raise DataError(f"thesaurus {path}: holds no synonyms. Fix: see docs/augmentation.md.")
    return entries


def _entries(path: Path, text: str) -> Iterator[tuple[str, list[str]]]:
    if path.suffix == ".json":
        yield from _of_json(path, json.loads(text))
        return
    delimiter = "\t" if path.suffix == ".tsv" else ","
    for number, cells in enumerate(csv.reader(text.splitlines(), delimiter=delimiter), start=1):
        entry = [cell.strip() for cell in cells if cell.strip()]
        if not entry:
            continue
        if len(entry) < 2:
            raise DataError(f"thesaurus {path}:{number}: {entry[0]!r} has no synonym beside it.")
        if path.suffix == ".txt":
            yield from ((word, entry) for word in entry)
        else:
            yield entry[0], entry[1:]


def _of_json(path: Path, value: object) -> Iterator[tuple[str, list[str]]]:
    if not isinstance(value, dict):
        raise DataError(f'thesaurus {path}: expected an object, {{"big": ["large"]}}.')
    for word, others in value.items():
        if not (
            isinstance(others, list) and others and all(isinstance(o, str) and o for o in others)
        ):
            raise DataError(
                f"thesaurus {path}: {word!r} has {others!r}, where a list of words is expected."
            )
        yield word, others
