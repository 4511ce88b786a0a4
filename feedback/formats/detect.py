"""Which format a file is in, from the keys of its first rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, get_args

from feedback.dialogue import is_dialogue
from feedback.errors import DataError
from feedback.formats import hh, label_studio, neutral, pandalm, trl
from feedback.formats.files import Record
from feedback.formats.found import Parser
from feedback.formats.result import Values

Format = Literal["auto", "align", "label-studio", "hh", "pandalm", "trl"]
FORMATS: tuple[Format, ...] = get_args(Format)
PARSERS: dict[str, Parser] = {
    "align": neutral.parse,
    "label-studio": label_studio.parse,
    "hh": hh.parse,
    "pandalm": pandalm.parse,
    "trl": trl.parse,
}
SIGNS = {  # what each format is known by, as told to people
    "align": "kind; or prompt, response_a, response_b, label",
    "label-studio": "data, annotations",
    "hh": "chosen, rejected as raw Human/Assistant dialogues",
    "pandalm": "instruction, response1, response2, annotator1",
    "trl": "chosen, rejected; or prompt, completion",
}
SNIFF = 50  # rows that the format is guessed from


def detect_format(records: Sequence[Record], file: str) -> str:
    """The format that most of the rows have.

    Raises:
        DataError: no row can be read, none has a known format, or two formats are equally many;
            the message names what was seen.
    """
    rows = [record.values for record in records if record.values is not None]
    if not rows:
        first = records[0]
        raise DataError(
            f"{file}:{first.line}: the format cannot be told, no row can be read: {first.problem}. "
            "Fix: mend the file, or say its format."
        )
    votes = Counter(name for row in rows if (name := format_of(row)))
    best = votes.most_common(2)
    if not best:
        raise DataError(
            f"{file}: the format cannot be told. Its rows hold {_seen(rows)}.{_guess(rows[0])} "
            f"Known formats and what they hold:\n{_known()}\n"
            "Fix: rename the columns, or say the format to see what is wrong with each row."
        )
    if len(best) == 2 and best[0][1] == best[1][1]:
        found = " and ".join(f"{count} in {name}" for name, count in best)
        raise DataError(
            f"{file}: the format cannot be told: of the first {len(rows)} rows {found}. "
            "Fix: split the file, or say the format."
        )
    return best[0][0]


def format_of(row: Values) -> str | None:
    """The format whose keys a row has."""
    keys = row.keys()
    if "data" in keys and "annotations" in keys:
        return "label-studio"
    if {"instruction", "response1", "response2"} <= keys and pandalm.voters(row):
        return "pandalm"
    if {"prompt", "response_a", "response_b", "label"} <= keys:
        return "align"
    if isinstance(row.get("kind"), str) and row["kind"] in neutral.ROW_KINDS and "prompt" in keys:
        return "align"
    if {"chosen", "rejected"} <= keys:
        alone = row.get("prompt") in (None, "")
        return "hh" if alone and is_dialogue(row["chosen"]) else "trl"
    return "trl" if {"prompt", "completion"} <= keys else None


def _seen(rows: Sequence[Values]) -> str:
    keys = Counter(key for row in rows for key in row)
    names = [key if len(key) <= 40 else key[:40] + "..." for key, _ in keys.most_common(12)]
    return ", ".join(names) + (", ..." if len(keys) > 12 else "") if names else "no columns"


def _guess(row: Values) -> str:
    """A hint for files that people often bring."""
    if "annotation_id" in row and "annotator" in row:
        return " This looks like Label Studio's JSON_MIN or CSV export: export as JSON instead."
    if "data" in row and "predictions" in row:
        return " This looks like Label Studio tasks without annotations: export as JSON instead."
    if "messages" in row or "conversations" in row:
        return " Whole conversations are training data, not judgements: name them in data.train."
    return ""


def _known() -> str:
    return "\n".join(f"  - {name}: {sign}" for name, sign in SIGNS.items())
