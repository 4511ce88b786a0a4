"""Marks, slips and misreadings: punctuation between words, typing errors, scanning errors.

AEDA: Karimi, Rossi & Prati 2021, "AEDA: An Easier Data Augmentation Technique for Text
Classification" (arXiv 2108.13230), section 3.
"""

from __future__ import annotations

import random
from collections.abc import Collection

import regex

from align.config.augment import PROTECT
from align.data.augment.protect import Span, prose, replace, words

ROWS = {
    "qwerty": ("qwertyuiop", "asdfghjkl", "zxcvbnm"),
    "qwertz": ("qwertzuiop", "asdfghjkl", "yxcvbnm"),
    "azerty": ("azertyuiop", "qsdfghjklm", "wxcvbn"),
}
# What scanners take for what, both ways; the longer first. No digits: made ones would be numbers.
CONFUSIONS = (
    *(("rn", "m"), ("cl", "d"), ("vv", "w"), ("nn", "m"), ("li", "h"), ("ri", "n")),
    *(("e", "c"), ("a", "o"), ("h", "b"), ("n", "u"), ("f", "t"), ("l", "I"), ("i", "j")),
    *(("g", "q"), ("v", "y"), ("O", "Q"), ("E", "F"), ("B", "R"), ("C", "G"), ("U", "V")),
)


def _neighbours() -> dict[str, dict[str, str]]:
    """Of each layout and key the keys that touch it; each row stands half a key further right."""
    layouts = {}
    for layout, rows in ROWS.items():
        at = {key: (x + y / 2, y) for y, row in enumerate(rows) for x, key in enumerate(row)}
        layouts[layout] = {
            key: "".join(
                other
                for other, (p, q) in at.items()
                if other != key and abs(p - x) <= 1 and abs(q - y) <= 1
            )
            for key, (x, y) in at.items()
        }
    return layouts


NEIGHBOURS = _neighbours()
_MISREAD: dict[str, list[str]] = {}
for _one, _other in CONFUSIONS:
    _MISREAD.setdefault(_one, []).append(_other)
    _MISREAD.setdefault(_other, []).append(_one)
_PLACES = regex.compile("|".join(sorted(map(regex.escape, _MISREAD), key=len, reverse=True)))


def punctuation(
    text: str,
    draw: random.Random,
    rate: float = 0.3,
    marks: str = ".,;:!?",
    protect: Collection[str] = PROTECT,
) -> str:
    """1 to `rate` times as many marks as there are words, before words drawn at random.

    Words and their order stay as they are (AEDA's 1/3 of the words is 0.3 here).
    """
    places = words(text, protect)
    if not places:
        return text
    most = max(1, int(rate * len(places)))
    chosen = draw.sample(places, min(len(places), draw.randint(1, most)))
    edits: dict[Span, str] = {(start, start): f"{draw.choice(marks)} " for start, _ in chosen}
    return replace(text, edits)


def typos(
    text: str,
    draw: random.Random,
    rate: float = 0.05,
    layout: str = "qwerty",
    protect: Collection[str] = PROTECT,
) -> str:
    """Each letter, with chance `rate`, hit beside its key, twice, not at all, or too early.

    A letter that is on no key of the layout is only doubled, left out or turned with the next.
    Words of one or two letters keep them all.
    """
    edits: dict[Span, str] = {}
    near = NEIGHBOURS[layout]
    for start, end in words(text, protect):
        word, at = text[start:end], 0
        made = ""
        while at < len(word):
            letter = word[at]
            if not letter.isalpha() or draw.random() >= rate:
                made, at = made + letter, at + 1
                continue
            ways = ["twice"]
            ways += ["beside"] if letter.lower() in near else []
            ways += ["left out"] if len(word) > 2 else []
            ways += ["early"] if word[at + 1 : at + 2].isalpha() else []
            way = draw.choice(ways)
            if way == "early":
                made, at = made + word[at + 1] + letter, at + 2
                continue
            if way == "twice":
                made += letter * 2
            elif way == "beside":
                other = draw.choice(near[letter.lower()])
                made += other.upper() if letter.isupper() else other
            at += 1
        edits[start, end] = made or word
    return replace(text, edits)


def ocr(
    text: str, draw: random.Random, rate: float = 0.05, protect: Collection[str] = PROTECT
) -> str:
    """Each place that can be misread (`rn` and `m`, `e` and `c`, ...) is, with chance `rate`."""
    edits = {
        match.span(): draw.choice(_MISREAD[match.group()])
        for start, end in prose(text, protect)
        for match in _PLACES.finditer(text, start, end)
        if draw.random() < rate
    }
    return replace(text, edits)
