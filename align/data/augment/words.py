"""Easy data augmentation: words exchanged, inserted, left out, or in other places.

Wei & Zou 2019, "EDA: Easy Data Augmentation Techniques for Boosting Performance on Text
Classification Tasks" (arXiv 1901.11196), section 2. Simplified: there are no stop words, since the
thesaurus decides what may be exchanged; and the number of edits is `rate` times the words that can
be edited, at least one.
"""

from __future__ import annotations

import random
from collections.abc import Collection

from align.config.augment import PROTECT
from align.data.augment.protect import Span, is_unspaced, like_case, replace, words
from align.data.augment.thesaurus import Thesaurus


def synonyms(
    text: str,
    draw: random.Random,
    thesaurus: Thesaurus,
    rate: float = 0.1,
    protect: Collection[str] = PROTECT,
) -> str:
    """Some of the words that the thesaurus knows exchanged for one of its synonyms each."""
    known = [span for span in words(text, protect) if _word(text, span) in thesaurus]
    edits = {}
    for span in _some(known, rate, draw):
        other = draw.choice(thesaurus[_word(text, span)])
        edits[span] = like_case(other, text[slice(*span)])
    return replace(text, edits)


def insertion(
    text: str,
    draw: random.Random,
    thesaurus: Thesaurus | None = None,
    rate: float = 0.1,
    protect: Collection[str] = PROTECT,
) -> str:
    """A synonym of some words put before others; without a thesaurus, the words once more."""
    places = words(text, protect)
    known = [s for s in places if thesaurus is None or _word(text, s) in thesaurus]
    edits: dict[Span, str] = {}
    for span in _some(known, rate, draw, of=len(places)):
        word = _word(text, span)
        new = word if thesaurus is None else draw.choice(thesaurus[word])
        start, _ = draw.choice(places)
        edits[start, start] = edits.get((start, start), "") + new + " "
    return replace(text, edits)


def deletion(
    text: str, draw: random.Random, rate: float = 0.1, protect: Collection[str] = PROTECT
) -> str:
    """Each word left out with chance `rate`, with the space beside it; one always stays."""
    places = words(text, protect)
    gone = [span for span in places if draw.random() < rate]
    if len(gone) == len(places) and gone:
        gone.remove(draw.choice(gone))
    edits: dict[Span, str] = {}
    for start, end in gone:
        before = text[:start].rstrip(" ")
        if text[end : end + 1] == " ":
            end += 1
        elif text[start - 1 : start] == " " and before[-1:] not in ("", "\n"):
            start -= 1
        edits[start, end] = ""
    return replace(text, _apart(edits))


def swap(
    text: str, draw: random.Random, rate: float = 0.1, protect: Collection[str] = PROTECT
) -> str:
    """Pairs of words change places; capitals stay where they are.

    Characters of a script without spaces only change with each other: words of another in their
    place would run together.
    """
    places = words(text, protect)
    order = [text[slice(*span)] for span in places]
    alike: dict[bool, list[int]] = {True: [], False: []}
    for at, word in enumerate(order):
        alike[is_unspaced(word)].append(at)
    free = [at for group in alike.values() if len(group) > 1 for at in group]
    if not free:
        return text
    for _ in range(max(1, round(rate * len(places)))):
        one, other = draw.sample(alike[is_unspaced(order[draw.choice(free)])], 2)
        order[one], order[other] = order[other], order[one]
    edits = {
        span: text[slice(*span)] if new == text[slice(*span)] else _settled(new, text[slice(*span)])
        for span, new in zip(places, order, strict=True)
    }
    return replace(text, edits)


def _word(text: str, span: Span) -> str:
    return text[slice(*span)].casefold()


def _some(spans: list[Span], rate: float, draw: random.Random, of: int | None = None) -> list[Span]:
    """`rate` of the spans (or of so many places), at least one where there is one."""
    count = min(len(spans), max(1, round(rate * (len(spans) if of is None else of))))
    return draw.sample(spans, count)


def _settled(word: str, place: str) -> str:
    """A word moved to where another stood: a sentence's capital stays at its beginning."""
    if place[:1].isupper() and place[1:].islower() and word.islower():
        return word[:1].upper() + word[1:]
    return word


def _apart(edits: dict[Span, str]) -> dict[Span, str]:
    """Spans that share a space: the second begins where the first ends."""
    apart: dict[Span, str] = {}
    at = 0
    for (start, end), new in sorted(edits.items()):
        apart[max(start, at), end] = new
        at = end
    return apart
