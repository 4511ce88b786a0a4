"""What no edit may touch: code, addresses, markup and numbers; and the words that are left.

A number is the whole token around it (`$5,`, `gpt2`, `x^2`), so that no edit beside it can change
what it says. Scripts without spaces are cut into characters, each a word of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from functools import lru_cache

import regex

from align.config.augment import PROTECT

Span = tuple[int, int]  # start and end in a text

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_PATTERNS = {
    "code": r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]+`|^(?: {4}|\t)[^\n]*$",
    "urls": r"(?:https?|ftp)://[^\s<>]+|\bwww\.[^\s<>]+|[\w.+-]+@[\w-]+(?:\.[\w-]+)+",
    "markup": r"<\|[^|<>\n]*\|>|<<[^<>\n]*>>|</?[A-Za-z][^<>\n]*>|\$\$.+?\$\$|\\\(.+?\\\)"
    r"|\\\[.+?\\\]|####|\{[\w.]+\}",
    "numbers": rf"[^\s{_UNSPACED}]*\p{{N}}[^\s{_UNSPACED}]*",
}
WORD = regex.compile(
    rf"[{_UNSPACED}]\p{{M}}*|(?:(?![{_UNSPACED}])[\p{{L}}\p{{M}}\p{{N}}_])+"
    rf"(?:['\u2019-](?:(?![{_UNSPACED}])[\p{{L}}\p{{M}}\p{{N}}_])+)*"
)
_CHARACTER = regex.compile(rf"[{_UNSPACED}]")
_EDGES = ".,;:!?()[]{}'\"\u2019\u201c\u201d*_"


@lru_cache(maxsize=16)
def _pattern(protect: frozenset[str]) -> regex.Pattern[str]:
    chosen = [f"(?:{_PATTERNS[name]})" for name in PROTECT if name in protect]
    return regex.compile("|".join(chosen) or r"(?!)", regex.DOTALL | regex.MULTILINE)


def protected(text: str, protect: Collection[str] = PROTECT) -> list[Span]:
    """Where protected text stands, in order and apart from each other."""
    return [m.span() for m in _pattern(frozenset(protect)).finditer(text) if m.group()]


def prose(text: str, protect: Collection[str] = PROTECT) -> list[Span]:
    """What is left between protected text."""
    spans, at = list[Span](), 0
    for start, end in protected(text, protect):
        if start > at:
            spans.append((at, start))
        at = end
    return [*spans, (at, len(text))] if at < len(text) else spans


def words(text: str, protect: Collection[str] = PROTECT) -> list[Span]:
    """Where words stand outside protected text."""
    return [
        match.span()
        for start, end in prose(text, protect)
        for match in WORD.finditer(text, start, end)
    ]


def is_unspaced(word: str) -> bool:
    """Whether a word is a character of a script that is written without spaces."""
    return bool(_CHARACTER.match(word))


def replace(text: str, edits: Mapping[Span, str]) -> str:
    """The text with spans, none of which overlap, replaced; an empty one inserts."""
    parts, at = list[str](), 0
    for (start, end), new in sorted(edits.items()):
        parts += [text[at:start], new]
        at = end
    return "".join([*parts, text[at:]])


def keeps_protected(source: str, made: str, protect: Collection[str] = PROTECT) -> bool:
    """Whether every protected piece of one text is in another, as often."""
    wanted, found = (_pieces(text, protect) for text in (source, made))
    return all(found[piece] >= count for piece, count in wanted.items())


def _pieces(text: str, protect: Collection[str]) -> Counter[str]:
    """Protected pieces without the punctuation of the sentence around them."""
    return Counter(text[start:end].strip(_EDGES) for start, end in protected(text, protect))


def like_case(word: str, model: str) -> str:
    """A word in the case of another: HE and She from he and she."""
    if len(model) > 1 and model.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if model[:1].isupper() else word
