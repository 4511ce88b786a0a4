"""Rows made from rows: noise, synonyms, other words, other attributes; and rows made from none.

`augment` does for a dataset what `data.augment` does for a stage. The functions on single texts
(`typos(text, random.Random(0))`) and `mixup` on arrays serve by themselves.
"""

from align.data.augment.apply import Augmented
from align.data.augment.filters import filter_rows, heuristic_problem, repetition
from align.data.augment.labels import allowed
from align.data.augment.mixup import Mixed, mixup
from align.data.augment.noise import ocr, punctuation, typos
from align.data.augment.plan import augment, check_augment
from align.data.augment.protect import keeps_protected, protected
from align.data.augment.sentences import shuffle
from align.data.augment.swaps import counterfactual
from align.data.augment.thesaurus import read_thesaurus
from align.data.augment.words import deletion, insertion, swap, synonyms

__all__ = [
    "Augmented",
    "Mixed",
    "allowed",
    "augment",
    "check_augment",
    "counterfactual",
    "deletion",
    "filter_rows",
    "heuristic_problem",
    "insertion",
    "keeps_protected",
    "mixup",
    "ocr",
    "protected",
    "punctuation",
    "read_thesaurus",
    "repetition",
    "shuffle",
    "swap",
    "synonyms",
    "typos",
]
