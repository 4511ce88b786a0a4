"""Small edits that leave the meaning of a text as it is: spaces, contractions, a few synonyms.

They stand in for real paraphrases where nobody wrote any, and only touch what is safe to exchange
without reading the sentence.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from reward import probes

Rewrite = Callable[[str, random.Random], str]

BOTH_WAYS = (
    ("do not", "don't"),
    ("does not", "doesn't"),
    ("did not", "didn't"),
    ("is not", "isn't"),
    ("are not", "aren't"),
    ("was not", "wasn't"),
    ("cannot", "can't"),
    ("will not", "won't"),
    ("would not", "wouldn't"),
    ("should not", "shouldn't"),
    ("you are", "you're"),
    ("they are", "they're"),
    ("we are", "we're"),
    ("I am", "I'm"),
    ("for example", "for instance"),
    ("maybe", "perhaps"),
    ("usually", "normally"),
)
ONE_WAY = (
    ("therefore", "so"),
    ("such as", "like"),
    ("purchase", "buy"),
    ("assistance", "help"),
    ("additionally", "besides"),
    ("approximately", "about"),
    ("in order to", "to"),
)
_EXCHANGE = {
    **{one.lower(): other for one, other in (*BOTH_WAYS, *ONE_WAY)},
    **{other.lower(): one for one, other in BOTH_WAYS},
}
_PHRASES = re.compile(
    r"\b(?:" + "|".join(sorted(map(re.escape, _EXCHANGE), key=len, reverse=True)) + r")\b",
    re.IGNORECASE,
)


def respace(text: str, draw: random.Random) -> str:
    """Some spaces doubled, and a line end after the text."""
    return probes.whitespace(text, "", draw) or text


def reword(text: str, draw: random.Random) -> str:
    """Contractions made or undone, and a few words exchanged for others of the same meaning."""
    straight = text.replace("\u2019", "'")
    return _PHRASES.sub(_other, straight) if _PHRASES.search(straight) else text


def misspell(text: str, draw: random.Random) -> str:
    """Letters exchanged in one word of twelve."""
    return probes.typos(text, "", draw) or text


EDITS: dict[str, Rewrite] = {"whitespace": respace, "reworded": reword, "typos": misspell}


def _other(found: re.Match[str]) -> str:
    word = _EXCHANGE[found[0].lower()]
    return word[0].upper() + word[1:] if found[0][0].isupper() else word
