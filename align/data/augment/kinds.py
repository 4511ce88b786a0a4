"""From a section of `data.augment` to the transform it asks for, with everything wrong found first.

A transform maps texts, each with its own random numbers, to as many texts; None where what came out
is refused. Models load when they are first used, files are read and paths checked here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from align.config import augment as sections
from align.config.augment import Augmentation
from align.data.augment import masked, noise, rewrite, sentences, swaps, words
from align.data.augment.labels import Effect
from align.data.augment.replies import remembered
from align.data.augment.thesaurus import read_thesaurus
from align.data.augment.writers import Writer, model_writer, url_writer
from align.errors import ConfigError, DataError, Problem

Rewrite = Callable[[Sequence[str], Sequence[random.Random]], Sequence[str | None]]
COMMON = ("kind", "seed", "share", "copies", "mode", "fields")  # of every kind; the rest is its own

EFFECTS: dict[str, Effect] = {
    **dict.fromkeys(("synonyms", "paraphrase", "back_translation"), "same"),
    **dict.fromkeys(("typos", "ocr", "punctuation"), "noisy"),
    **dict.fromkeys(("insertion", "deletion", "swap", "shuffle", "contextual"), "lossy"),
    "counterfactual": "turned",
}


@dataclass(frozen=True)
class Transform:
    """What a section asks for, ready to be applied."""

    name: str
    effect: Effect
    rewrite: Rewrite
    options: dict[str, Any] = field(default_factory=dict)  # that lineage tells


def build(section: Augmentation, replies: Path | None = None) -> Transform:
    """The transform of a section that rewrites rows (not of `templates` and `generated`).

    Args:
        section: kind and options.
        replies: a file that keeps what a model wrote; None keeps nothing.

    Raises:
        ConfigError: a file is missing or wrong, pairs are ambiguous, or a key is not set.
    """
    own = {k: v for k, v in section.model_dump(mode="json").items() if k not in COMMON}
    try:
        made = _rewrite(section, replies)
    except ConfigError:
        raise
    except (DataError, ValueError) as error:
        raise ConfigError([Problem("", str(error))]) from error
    return Transform(section.kind, EFFECTS[section.kind], made, own)


def writer_of(section: sections.Written, replies: Path | None = None) -> Writer:
    """Who writes for a section.

    Raises:
        ConfigError: the key is not set, or the directory holds no model.
    """
    if section.url is None:
        problem = model_problem(section.model)
        if problem:
            raise ConfigError([Problem("model", *problem)])
        writer = model_writer(
            section.model, temperature=section.temperature, max_tokens=section.max_tokens
        )
    else:
        writer = url_writer(
            section.url,
            section.model,
            api_key_env=section.api_key_env,
            temperature=section.temperature,
            max_tokens=section.max_tokens,
            timeout=section.timeout,
            retries=section.retries,
            concurrency=section.concurrency,
        )
    if replies is None:
        return writer
    asked = {n: getattr(section, n) for n in ("url", "model", "temperature", "max_tokens")}
    return remembered(writer, replies, asked)


def model_problem(path: str) -> tuple[str, str] | None:
    """What is wrong with a model's directory; what looks like a hub id passes."""
    place = Path(path)
    if place.is_dir():
        wanted = ("config.json", "adapter_config.json")
        if any((place / name).is_file() for name in wanted):
            return None
        return f"{path} holds no config.json.", "name a directory that save_pretrained wrote."
    if place.exists() or place.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1:
        return f"{path} is no directory.", "check the path."
    return None


def _rewrite(section: Augmentation, replies: Path | None) -> Rewrite:
    protect = tuple(section.protect)
    match section:
        case sections.Synonyms():
            book = read_thesaurus(section.thesaurus)
            return _each(
                partial(words.synonyms, thesaurus=book, rate=section.rate, protect=protect)
            )
        case sections.Insertion():
            found = read_thesaurus(section.thesaurus) if section.thesaurus else None
            return _each(
                partial(words.insertion, thesaurus=found, rate=section.rate, protect=protect)
            )
        case sections.Deletion():
            return _each(partial(words.deletion, rate=section.rate, protect=protect))
        case sections.Swap():
            return _each(partial(words.swap, rate=section.rate, protect=protect))
        case sections.Punctuation():
            settings = {"rate": section.rate, "marks": section.marks, "protect": protect}
            return _each(partial(noise.punctuation, **settings))  # type: ignore[arg-type]
        case sections.Typos():
            return _each(
                partial(noise.typos, rate=section.rate, layout=section.layout, protect=protect)
            )
        case sections.Ocr():
            return _each(partial(noise.ocr, rate=section.rate, protect=protect))
        case sections.Shuffle():
            return _each(partial(sentences.shuffle, protect=protect))
        case sections.Contextual():
            return _contextual(section)
        case sections.Counterfactual():
            exchange = swaps.counterfactual(
                section.pairs, [name for name in protect if name != "numbers"]
            )
            return _each(lambda text, draw: exchange(text))
        case sections.Paraphrase():
            return partial(
                rewrite.paraphrase,
                writer=writer_of(section, replies),
                length_ratio=section.length_ratio,
                protect=protect,
            )
        case sections.BackTranslation():
            return partial(
                rewrite.back_translation,
                writer=writer_of(section, replies),
                pivot=section.pivot,
                language=section.language,
                length_ratio=section.length_ratio,
                protect=protect,
            )
    raise ValueError(f"{section.kind} makes rows of its own, and rewrites none")


def _each(function: Callable[[str, random.Random], str]) -> Rewrite:
    """A function of one text as a function of many."""

    def rewrite_all(texts: Sequence[str], draws: Sequence[random.Random]) -> list[str]:
        return [function(text, draw) for text, draw in zip(texts, draws, strict=True)]

    return rewrite_all


def _contextual(section: sections.Contextual) -> Rewrite:
    problem = model_problem(section.model)
    if problem:
        raise ConfigError([Problem("model", *problem)])
    loaded: list[masked.MaskedRewrite] = []

    def rewrite_all(texts: Sequence[str], draws: Sequence[random.Random]) -> list[str]:
        if not loaded:
            model, tokenizer = masked.load_masked(section.model)
            loaded.append(
                masked.contextual(
                    model,
                    tokenizer,
                    section.rate,
                    section.top_k,
                    tuple(section.protect),
                )
            )
        return [loaded[0](text, draw) for text, draw in zip(texts, draws, strict=True)]

    return rewrite_all
