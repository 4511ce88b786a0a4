"""Sentences in another order, within their paragraph.

What is no running text keeps its place: code, and lines of lists, headings, tables and quotations.
"""

from __future__ import annotations

import random
from collections.abc import Collection

import regex

from align.config.augment import PROTECT
from align.data.augment.protect import protected

_WIDE = "\u3002\uff01\uff1f"  # marks after which no space is needed
_END = regex.compile(
    r"(?<=[.!?\u2026]['\")\]\u201d\u2019]*)[ \t]+(?=\S)|" + rf"(?<=[{_WIDE}])[ \t]*"
)
_PARAGRAPH = regex.compile(r"[^\n]+")
_NO_PROSE = regex.compile(r"\s*(?:[-*+#>|]|\d+[.)]\s|[A-Za-z][.)]\s)|\s{4,}")


def shuffle(text: str, draw: random.Random, protect: Collection[str] = PROTECT) -> str:
    """The sentences of each line of running text in an order drawn at random."""
    held = protected(text, protect)
    parts, at = list[str](), 0
    for line in _PARAGRAPH.finditer(text):
        start, end = line.span()
        across = any(a < end and start < b and "\n" in text[a:b] for a, b in held)
        if across or _NO_PROSE.match(text, start, end):
            continue
        parts += [text[at:start], _shuffled(text, start, end, held, draw)]
        at = end
    return "".join([*parts, text[at:]])


def _shuffled(
    text: str, start: int, end: int, held: list[tuple[int, int]], draw: random.Random
) -> str:
    """One line: sentences move, the spaces between them stay where they are."""
    sentences, gaps, at = list[str](), list[str](), start
    for gap in _END.finditer(text, start, end):
        inside = any(a < gap.start() < b for a, b in held)
        if inside or gap.start() in (start, end) or gap.end() == end:
            continue
        sentences.append(text[at : gap.start()])
        gaps.append(gap.group())
        at = gap.end()
    sentences.append(text[at:end].rstrip())
    gaps.append(text[at:end][len(sentences[-1]) :])
    if "" in gaps[:-1] and not all(one.endswith(tuple(_WIDE)) for one in sentences):
        return text[start:end]  # words would come to stand together
    draw.shuffle(sentences)
    return "".join(s + g for s, g in zip(sentences, gaps, strict=True))
