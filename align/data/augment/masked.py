"""Words that a masked language model would put in their place.

Kobayashi 2018, "Contextual Augmentation" (arXiv 1805.06201), without its label condition: the model
sees the sentence and nothing of the label, so "a good film" may become "a bad film". Hence it is
lossy here, and refused for what a label is about (`align.data.augment.labels`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from typing import Any

from align.config.augment import PROTECT
from align.data.augment.protect import Span, like_case, replace, words
from align.errors import ModelError

MaskedRewrite = Callable[[str, random.Random], str]


def contextual(
    model: Any,
    tokenizer: Any,
    rate: float = 0.1,
    top_k: int = 10,
    protect: Collection[str] = PROTECT,
) -> MaskedRewrite:
    """A function that exchanges `rate` of a text's words for likely ones, one text at a time.

    One word after the other is masked, in the text as it stands by then, and drawn from the `top_k`
    likeliest words, by their probability; the word itself and pieces of words are left out. Only
    words that are one token can be put in.

    Args:
        model: a masked language model.
        tokenizer: its own, fast or not.
        rate: of the words, at least one.
        top_k: candidates that are drawn from.
        protect: what is left alone.

    Raises:
        ModelError: the tokenizer has no mask.
    """
    if tokenizer.mask_token_id is None:
        raise ModelError(
            "the contextual augmentation needs a masked language model (BERT, RoBERTa, ...); this "
            "tokenizer has no mask token. Fix: name such a model, or use synonyms."
        )
    model.eval()
    limit = _limit(model, tokenizer)

    def rewrite(text: str, draw: random.Random) -> str:
        places = words(text, protect)
        if not places:
            return text
        count = min(len(places), max(1, round(rate * len(places))))
        edits: dict[Span, str] = {}
        for span in sorted(draw.sample(places, count)):
            new = _drawn(_window(text, span, edits), tokenizer, model, draw, top_k, limit)
            if new is not None:
                edits[span] = like_case(new, text[slice(*span)])
        return replace(text, edits)

    return rewrite


def load_masked(path: str) -> tuple[Any, Any]:
    """A masked language model and its tokenizer.

    Raises:
        ModelError: it cannot be loaded, or is of another kind.
    """
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    try:
        return AutoModelForMaskedLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"data.augment: {path} cannot be loaded as a masked language model: "
            f"{str(error).splitlines()[0]} Fix: name a directory with one (BERT, RoBERTa, ...)."
        ) from error


def _window(text: str, span: Span, edits: dict[Span, str]) -> tuple[str, str, str]:
    """What stands before the word, the word, and what follows, with the edits so far."""
    start, end = span
    before = replace(text[:start], {s: new for s, new in edits.items() if s[1] <= start})
    return before, text[start:end], text[end:]


def _limit(model: Any, tokenizer: Any) -> int:
    """Tokens that fit: positions of RoBERTa begin behind its padding."""
    places = int(getattr(model.config, "max_position_embeddings", 512)) - 2
    return max(8, min(places, int(tokenizer.model_max_length)))


def _drawn(
    parts: tuple[str, str, str],
    tokenizer: Any,
    model: Any,
    draw: random.Random,
    top_k: int,
    limit: int,
) -> str | None:
    """A word for the mask, or None where only the word itself would do."""
    import torch

    before, old, after = parts
    mask = tokenizer.mask_token_id
    head = tokenizer(before, add_special_tokens=False)["input_ids"]
    tail = tokenizer(after, add_special_tokens=False)["input_ids"]
    room = limit - 3  # the mask, and the tokens at both ends
    head = head[len(head) - min(len(head), max(room // 2, room - len(tail))) :]
    tail = tail[: room - len(head)]
    ids = [*_opening(tokenizer), *head, mask, *tail, *_closing(tokenizer)]
    at = ids.index(mask, len(_opening(tokenizer)) + len(head))
    inputs = torch.tensor([ids], device=model.device)
    with torch.no_grad():
        logits = model(input_ids=inputs, attention_mask=torch.ones_like(inputs)).logits[0, at]
    # More than asked for: pieces of words and the word itself are left out.
    likely = torch.topk(logits.float(), min(len(logits), 8 * top_k + 8)).indices.tolist()
    chosen: list[tuple[str, float]] = []
    for token in likely:
        word = _whole_word(tokenizer, token)
        if word and word.casefold() != old.casefold():
            chosen.append((word, float(logits[token])))
        if len(chosen) == top_k:
            break
    if not chosen:
        return None
    weights = torch.softmax(torch.tensor([score for _, score in chosen]), dim=0).tolist()
    return draw.choices([word for word, _ in chosen], weights)[0]


def _opening(tokenizer: Any) -> list[int]:
    first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    return [] if first is None else [first]


def _closing(tokenizer: Any) -> list[int]:
    last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    return [] if last is None else [last]


def _whole_word(tokenizer: Any, token: int) -> str | None:
    """The word that a token is, if it is one: letters, and no piece inside a word."""
    if token in tokenizer.all_special_ids:
        return None
    piece = tokenizer.convert_ids_to_tokens(token)
    if piece.startswith("##"):
        return None
    word = tokenizer.decode([token]).strip()
    return word if word.isalpha() else None
