"""PandaLM: an instruction, two responses, and the votes of annotator1, annotator2, annotator3.

A vote is 0 (tie), 1 or 2. The prompt is the instruction, and below it the input where there is one.
An empty response is kept: a model gave it and people judged it.
"""

from __future__ import annotations

from collections.abc import Iterator

from feedback.dialogue import RowProblem
from feedback.formats.found import Found, Misfit, check_storable
from feedback.formats.result import Values
from feedback.formats.text import different, read_integer, read_string
from feedback.schema import Comparison, Label, pair_id

VOTES: dict[int, Label] = {0: "tie", 1: "a", 2: "b"}


def voters(row: Values) -> list[str]:
    """The columns that hold votes."""
    return [key for key in row if key.startswith("annotator") and key[9:].isdigit()]


def parse(row: Values) -> Iterator[Found | Misfit]:
    """One comparison per vote; the annotator is the column's name.

    Raises:
        RowProblem: the texts do not fit. A vote that does not fit is set aside alone.
    """
    check_storable(row)
    parts = [read_string(row, "instruction", empty=True)]
    if row.get("input") is not None:
        parts.append(read_string(row, "input", empty=True))
    prompt = "\n\n".join(part for part in parts if part.strip())
    if not prompt:
        raise RowProblem("instruction is empty", "and so is input; expected a prompt")
    first = read_string(row, "response1", empty=True)
    second = read_string(row, "response2", empty=True)
    different(first, second, "response1 and response2")
    if not voters(row):
        raise RowProblem("nobody voted", "expected annotator1, annotator2, ...")
    models = str(row.get("cmp_key", "")).split("_")
    sources = models if len(models) == 2 else ["", ""]
    for annotator in voters(row):
        try:
            label = VOTES[read_integer(row, annotator, 0, 2)]
        except RowProblem as problem:
            yield Misfit(problem, row)
            continue
        judgement = Comparison(
            prompt,
            first,
            second,
            label,
            annotator,
            strength=0 if label == "tie" else 1,
            pair=pair_id(prompt, first, second),
            source_a=sources[0],
            source_b=sources[1],
        )
        yield Found(judgement, row)
