"""Small edits that leave the meaning of a text as it is: spaces, contractions, a few synonyms.

They stand in for real paraphrases where nobody wrote any, and only touch what is safe to exchange
without reading the sentence: "I'm" becomes "I am", but not the other way, for the sake of "Yes, I
am." Code is left alone.
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
    ("for example", "for instance"),
    ("maybe", "perhaps"),
    ("usually", "normally"),
)
ONE_WAY = (
    ("you're", "you are"),
    ("they're", "they are"),
    ("we're", "we are"),
    ("I'm", "I am"),
    ("therefore", "so"),
    ("such as", "like"),
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
    r"\b(?:" + "|".join(sorted(map(re.escape, _EXCHANGE), key=len, reverse=True)) + r")\b"
    r"(?!\s+(?-i:None|True|False|null|nil)\b)",  # a line of code without its fence
    re.IGNORECASE,
)
_ASKS = re.compile(r"\s+(?:you|it|he|she|they|we|i|that|this|there)\b", re.IGNORECASE)
_CODE = re.compile(
    r"(```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)"  # fenced
    r"|`[^`\n]*`"
    r"|^(?: {4}|\t)[^\n]*$"  # indented
    r"|^[ \t]*(?:def|class|if|elif|else|for|while|with|try|except|return|assert|raise|import|from"
    r"|function|const|let|var|print|public|private|static|void)\b[^\n]*[:;{})\]][ \t]*$)",
    re.DOTALL | re.MULTILINE,
)


def respace(text: str, draw: random.Random) -> str:
    """Some spaces doubled, and a line end after the text."""
    return probes.whitespace(text, "", draw) or text


def reword(text: str, draw: random.Random) -> str:
    """Contractions made or undone, and a few words exchanged for others of the same meaning."""
    pieces = _CODE.split(text)  # prose at the even places, code between
    return "".join(piece if i % 2 else _reworded(piece) for i, piece in enumerate(pieces))


def misspell(text: str, draw: random.Random) -> str:
    """Letters exchanged in one word of twelve."""
    return probes.typos(text, "", draw) or text


EDITS: dict[str, Rewrite] = {"whitespace": respace, "reworded": reword, "typos": misspell}


def _reworded(prose: str) -> str:
    straight = prose.replace("\u2019", "'")
    return _PHRASES.sub(_other, straight) if _PHRASES.search(straight) else prose


def _other(found: re.Match[str]) -> str:
    if found[0].lower().endswith("n't") and _ASKS.match(found.string, found.end()):
        return found[0]  # "Isn't it nice?"
    word = _EXCHANGE[found[0].lower()]
    return word[0].upper() + word[1:] if found[0][0].isupper() else word
