"""What completions look like without a judge: length, variety, repetition, endings.

Pure functions. Variety is counted on words (runs of letters and digits, or single marks), not on
tokens, so that models with different tokenizers can be compared.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

import numpy as np

from align.errors import DataError
from align.types import Text

WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


def plain(text: Text) -> str:
    """The words of a text: itself, or its messages' contents one after the other."""
    if isinstance(text, str):
        return text
    return "\n".join(message.get("content") or "" for message in text)


def words(text: Text) -> list[str]:
    """Lower-case words and punctuation marks."""
    return WORD.findall(plain(text).lower())


def distinct_n(sequences: Sequence[Sequence[Hashable]], n: int) -> float:
    """Distinct n-grams of all sequences over all their n-grams; 0 if there is none.

    Li et al. (2016), arXiv 1510.03055, section 5.2. Falls with the amount of text: compare models
    on the same prompts, and mind their lengths.
    """
    grams = [gram for sequence in sequences for gram in _ngrams(sequence, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition_rate(sequences: Sequence[Sequence[Hashable]], n: int) -> float:
    """Share of n-grams already seen in the *same* sequence, mean over sequences.

    "seq-rep-n" of Welleck et al. (2020), arXiv 1908.04319, section 6. Sequences shorter than n are
    left out; 0 if there is no other.
    """
    rates = []
    for sequence in sequences:
        grams = _ngrams(sequence, n)
        if grams:
            rates.append(1 - len(set(grams)) / len(grams))
    return float(np.mean(rates)) if rates else 0.0


def text_metrics(
    completions: Sequence[Text], tokens: Sequence[int], finished: Sequence[bool]
) -> dict[str, float]:
    """Describe one model's completions.

    Args:
        completions: N texts.
        tokens: N lengths in tokens, the end-of-turn token included.
        finished: N flags, True where the model ended by itself rather than being cut off.

    Returns:
        `length_mean`, `length_std`, `length_median`, `length_p95` (tokens), `words_mean`,
        `distinct_1`, `distinct_2`, `distinct_3`, `repetition_4`, `duplicate_rate` (completions
        equal to an earlier one), `empty_rate`, `finished_rate`.

    Raises:
        DataError: no completions, or lists of different lengths.
    """
    if not completions or not len(completions) == len(tokens) == len(finished):
        raise DataError(
            f"text metrics need as many lengths and flags as completions, and at least one; got "
            f"{len(completions)} completions, {len(tokens)} lengths, {len(finished)} flags."
        )
    sequences = [words(completion) for completion in completions]
    texts = [plain(completion).strip() for completion in completions]
    lengths = np.asarray(tokens, dtype=np.float64)
    alphanumeric = [sum(word[0].isalnum() for word in sequence) for sequence in sequences]
    return {
        "length_mean": float(lengths.mean()),
        "length_std": float(lengths.std()),
        "length_median": float(np.median(lengths)),
        "length_p95": float(np.quantile(lengths, 0.95)),
        "words_mean": float(np.mean(alphanumeric)),
        "distinct_1": distinct_n(sequences, 1),
        "distinct_2": distinct_n(sequences, 2),
        "distinct_3": distinct_n(sequences, 3),
        "repetition_4": repetition_rate(sequences, 4),
        "duplicate_rate": 1 - len(set(texts)) / len(texts),
        "empty_rate": sum(not text for text in texts) / len(texts),
        "finished_rate": float(np.mean(np.asarray(finished, dtype=bool))),
    }


def _ngrams(sequence: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    if n < 1:
        raise DataError(f"n-grams have at least one word; got n = {n}.")
    return [tuple(sequence[start : start + n]) for start in range(len(sequence) - n + 1)]
