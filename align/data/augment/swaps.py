"""Counterfactual data: the words of an attribute exchanged for their partners, everywhere in a row.

Zmigrod et al. 2019, "Counterfactual Data Augmentation for Mitigating Gender Stereotypes in
Languages with Rich Morphology" (arXiv 1906.04571); Maudslay et al. 2019, "It's All in the Name"
(arXiv 1909.00871). Nothing is inflected and no sentence is read: a word that has two partners
("her" for "him" and "his") is refused, since only its sentence says which is meant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import regex

from align.data.augment.protect import like_case, protected


def pair_problems(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """What is wrong with a list of pairs, in words."""
    problems = []
    flat = [word.casefold().strip() for pair in pairs for word in pair]
    for word, count in Counter(flat).items():
        if not word:
            problems.append("a pair has an empty word")
        elif count > 1:
            problems.append(
                f"{word!r} is in {count} places: with more than one partner, only the sentence "
                "says which is meant. Keep one pair of it"
            )
    return problems


def counterfactual(
    pairs: Sequence[tuple[str, str]], protect: Sequence[str] = ("code", "urls", "markup")
) -> Callable[[str], str]:
    """A function that exchanges the words of each pair, both ways, whole words only.

    Case is kept: he, He and HE become she, She and SHE. Applied twice it gives the text back, as
    long as a word is written in one of these three ways.

    Raises:
        ValueError: a word is empty, or in more than one pair.
    """
    problems = pair_problems(pairs)
    if problems:
        raise ValueError("; ".join(problems))
    partner = {}
    for one, other in pairs:
        partner[one.casefold()] = other
        partner[other.casefold()] = one
    longest = sorted(map(regex.escape, partner), key=len, reverse=True)
    found = regex.compile(
        rf"(?<![\p{{L}}\p{{M}}\p{{N}}_])(?:{'|'.join(longest)})(?![\p{{L}}\p{{M}}\p{{N}}_])",
        regex.IGNORECASE,
    )

    def exchange(text: str) -> str:
        held = protected(text, protect)

        def other(match: regex.Match[str]) -> str:
            word = match.group()
            if any(start < match.end() and match.start() < end for start, end in held):
                return word
            return _cased(partner[word.casefold()], word, partner)

        return found.sub(other, text)

    return exchange


def _cased(new: str, old: str, partner: dict[str, str]) -> str:
    """The partner in the case of the word; one that is written with capitals keeps them."""
    written = partner[new.casefold()]  # the old word as the pair has it
    return new if old == written else like_case(new.lower() if old.islower() else new, old)
