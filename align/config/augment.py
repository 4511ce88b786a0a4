"""Rows made from rows, and classes brought into balance: `data.augment` and `data.balance`.

Each kind of augmentation is a section with its own options, so that a wrong one is refused by name
before anything loads. What they do: `align.data.augment` and `align.data.imbalance`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, model_validator

from align.config.base import Section

FieldName = Literal["prompt", "completion", "text", "chosen", "rejected", "answers", "all"]
ProtectName = Literal["code", "urls", "markup", "numbers"]
PROTECT: tuple[ProtectName, ...] = ("code", "urls", "markup", "numbers")


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Augmentation(Section):
    """What all kinds share."""

    kind: str
    seed: int = 0
    share: float = Field(default=1.0, gt=0, le=1)  # of the training rows that are chosen
    copies: int = Field(default=1, ge=1, le=64)  # rows made from each chosen one
    mode: Literal["add", "replace"] = "add"  # beside the row it is made from, or in its place
    # what is changed; unset: the kind's own (docs/augmentation.md)
    fields: Annotated[list[FieldName], BeforeValidator(_as_list)] | None = None
    protect: Annotated[list[ProtectName], BeforeValidator(_as_list)] = Field(default=list(PROTECT))

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        problems = self._problems()
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _problems(self) -> list[str]:
        problems = []
        if self.mode == "replace" and self.copies > 1:
            problems.append(f"mode: replace has room for one copy, not {self.copies}")
        if self.fields is not None and not self.fields:
            problems.append("fields is empty: name one, or leave it out")
        return problems


class Synonyms(Augmentation):
    """Words exchanged for others of a thesaurus."""

    kind: Literal["synonyms"]
    thesaurus: str  # a .json, .csv, .tsv or .txt file
    rate: float = Field(default=0.1, gt=0, le=1)  # of the words


class Insertion(Augmentation):
    """A synonym of a word of the text, or without a thesaurus the word again, somewhere in it."""

    kind: Literal["insertion"]
    thesaurus: str | None = None
    rate: float = Field(default=0.1, gt=0, le=1)


class Deletion(Augmentation):
    """Words left out."""

    kind: Literal["deletion"]
    rate: float = Field(default=0.1, gt=0, lt=1)


class Swap(Augmentation):
    """Words that change places."""

    kind: Literal["swap"]
    rate: float = Field(default=0.1, gt=0, le=1)


class Punctuation(Augmentation):
    """AEDA: punctuation marks between words."""

    kind: Literal["punctuation"]
    rate: float = Field(default=0.3, gt=0, le=1)  # at most so many marks for each word
    marks: str = Field(default=".,;:!?", min_length=1)


class Typos(Augmentation):
    """Slips on a keyboard."""

    kind: Literal["typos"]
    rate: float = Field(default=0.05, gt=0, le=1)  # of the letters
    layout: Literal["qwerty", "qwertz", "azerty"] = "qwerty"


class Ocr(Augmentation):
    """Letters that a scanner takes for others."""

    kind: Literal["ocr"]
    rate: float = Field(default=0.05, gt=0, le=1)  # of the places that can be mistaken


class Shuffle(Augmentation):
    """Sentences of a paragraph in another order."""

    kind: Literal["shuffle"]


class Contextual(Augmentation):
    """Words that a masked language model puts in their place."""

    kind: Literal["contextual"]
    model: str  # a directory or a hub id
    rate: float = Field(default=0.1, gt=0, le=1)
    top_k: int = Field(default=10, gt=0)


class Counterfactual(Augmentation):
    """Words of an attribute exchanged for their partners, in the whole row."""

    kind: Literal["counterfactual"]
    pairs: list[tuple[str, str]] = Field(min_length=1)


class Written(Augmentation):
    """Who writes: a model behind a URL, or one of a directory."""

    model: str  # its name at the URL, or a directory or hub id
    url: str | None = None  # OpenAI-compatible, up to and including /v1
    api_key_env: str | None = None  # the environment variable with the key
    temperature: float = Field(default=0.7, ge=0)
    max_tokens: int = Field(default=512, gt=0)
    timeout: float = Field(default=60.0, gt=0)  # seconds of one attempt
    retries: int = Field(default=3, ge=0)
    concurrency: int = Field(default=16, gt=0)

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            problems.append(f"url {self.url!r}: expected one such as http://host:8000/v1")
        return problems


class Paraphrase(Written):
    """The same in other words."""

    kind: Literal["paraphrase"]
    length_ratio: float = Field(default=2.0, gt=1)  # longer or shorter by more is refused


class BackTranslation(Written):
    """There and back again."""

    kind: Literal["back_translation"]
    pivot: Annotated[list[str], BeforeValidator(_as_list)] = Field(
        default=["German", "French", "Chinese"], min_length=1
    )
    language: str = "English"  # of the data
    length_ratio: float = Field(default=2.0, gt=1)


class QualitySection(Section):
    """Which made rows stay."""

    min_chars: int = Field(default=8, ge=1)  # of every text of a row
    max_chars: int = Field(default=8000, ge=1)
    near_threshold: float = Field(default=0.7, gt=0, le=1)  # as data.near_threshold
    repetition: float = Field(default=0.3, gt=0, le=1)  # most of the words in repeated 3-grams
    letters: float = Field(default=0.5, ge=0, le=1)  # least share of letters, code left out
    reward: str | None = None  # a reward model's directory, or module:function
    least: float | None = Field(default=None, allow_inf_nan=False)  # reward of a row that stays

    @model_validator(mode="after")
    def _both(self) -> Self:
        problems = []
        if (self.reward is None) != (self.least is None):
            problems.append("reward and least go together: what scores, and which score is enough")
        if self.min_chars > self.max_chars:
            problems.append(f"min_chars={self.min_chars} is more than max_chars={self.max_chars}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class Templates(Section):
    """Rows with slots, and what fills them."""

    kind: Literal["templates"]
    path: str  # a .yaml or .json file with `rows` and `slots`
    count: int = Field(gt=0)  # rows at most
    seed: int = 0
    quality: QualitySection = Field(default_factory=QualitySection)


class Generated(Written):
    """New prompts, and answers to them, in the manner of the training rows (Self-Instruct)."""

    kind: Literal["generated"]
    count: int = Field(gt=0)  # rows asked for
    examples: int = Field(default=3, ge=1, le=16)  # training rows shown each time
    temperature: float = Field(default=1.0, ge=0)
    quality: QualitySection = Field(default_factory=QualitySection)

    def _problems(self) -> list[str]:
        unread = ("share", "copies", "mode", "fields", "protect")
        given = [name for name in unread if name in self.model_fields_set]
        more = [f"{name}: whole rows are written, so nothing reads it" for name in given]
        return [*super()._problems(), *more]


AnyAugmentation = (
    Synonyms
    | Insertion
    | Deletion
    | Swap
    | Punctuation
    | Typos
    | Ocr
    | Shuffle
    | Contextual
    | Counterfactual
    | Paraphrase
    | BackTranslation
    | Templates
    | Generated
)
Augmentations = list[Annotated[AnyAugmentation, Discriminator("kind")]]


class BalanceSection(Section):
    """Classes, or sources, that count alike, or whose rows are cleaned where classes meet."""

    by: str = "source"  # or a column of the data, as the file names it
    method: Literal["over", "under", "weights", "tomek", "enn"]
    power: float = Field(default=1.0, gt=0, le=1)  # 1: all alike; 0.5: half-way, in logarithms
    most: float = Field(default=10.0, ge=1)  # copies of a row, or times its weight, at most
    beta: float | None = Field(default=None, gt=0, lt=1)  # weights by effective number (Cui 2019)
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        of = {
            "power": ("over", "under", "weights"),
            "most": ("over", "weights"),
            "beta": ("weights",),
            "seed": ("over", "under"),
        }
        cleans = self.method in ("tomek", "enn")
        for name, methods in (of if cleans else {"beta": of["beta"]}).items():
            if name in self.model_fields_set and self.method not in methods:
                raise ValueError(f"{name} is for method: {' or '.join(methods)}, not {self.method}")
        return self
