"""The sections of `align active`: what may be asked, who answers, how to choose, when to stop."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from align.config.base import Section

Strategy = str | dict[str, Any]  # a name, or `kind:` with what it is made of; docs/stages/active.md


class PoolSection(Section):
    """The pairs that may be asked."""

    source: Literal["pairs", "prompts", "store"] = "pairs"
    path: str  # a file of pairs or of prompts, or a feedback store's URL
    columns: dict[str, str] = Field(default_factory=dict)  # ours: theirs, {"prompt": "question"}
    limit: int | None = Field(default=None, gt=0)  # first rows only
    bad_rows: Literal["strict", "quarantine"] = "strict"  # of pairs
    stratum: str | None = None  # a column: language, source, topic
    policy: str | None = None  # who answers `prompts` and `fresh_prompts`; default: the model
    samples: int = Field(default=4, ge=2, le=26)  # answers to each of `prompts`
    build: Literal[
        "all",
        "double_thompson",
        "drts",
        "delta_ucb",
        "delta_ucb_joint",
        "information_directed",
    ] = "all"  # which two answers of a prompt may be compared
    fresh_prompts: int = Field(default=0, ge=0)  # a round: the least sure ones get new answers
    fresh_samples: int = Field(default=2, ge=1, le=8)  # new answers to each of them


class PosteriorSection(Section):
    """How the reward model knows its own doubt, and how it is trained again."""

    kind: Literal["laplace", "members", "heads"] = "laplace"
    count: int = Field(default=4, ge=2, le=64)  # members or heads
    draws: int = Field(default=16, ge=2)  # functions drawn from a Laplace posterior
    precision: float | None = Field(default=None, gt=0)  # of Laplace's prior; unset: the likeliest
    retrain: Literal["cold", "warm"] = "cold"  # from the model, or from the round before
    keep: Literal["last", "all"] = "last"  # rounds whose weights stay on disk


class PersonSection(Section):
    """Somebody whose time is bought."""

    name: str
    price: float = Field(ge=0)  # per unit of a question's cost
    capacity: float | None = Field(default=None, gt=0)  # units in a round


class AcquisitionSection(Section):
    """How a round's questions are chosen."""

    strategy: Strategy = "bald"
    first: Strategy = "random"  # while nothing is labelled, and no model can say anything
    batch: int = Field(default=50, ge=1)  # questions a round
    holdout: float = Field(default=0.2, gt=0, lt=1)  # share of the prompts never trained on
    holdout_share: float = Field(default=0.1, gt=0, lt=1)  # of each round's questions
    similarity: float | None = Field(default=0.98, gt=0, le=1)  # of near-duplicates; null: let in
    cost: Literal["one", "reading"] = "one"  # a question, or the minutes that reading it takes
    budget: float | None = Field(default=None, gt=0)  # of a round, in `cost` times price
    people: list[PersonSection] = Field(default_factory=list)  # of `budget`; unset: anyone, at 1
    rankings: bool = False  # ask for an order of all answers where that is worth more per minute


class AnnotatorsSection(Section):
    """Who answers, and how long a round waits."""

    kind: Literal["simulated", "label-studio", "file"] = "simulated"
    store: str | None = None  # the feedback store's URL; default: feedback.db in the run
    enough: float = Field(default=1.0, gt=0, le=1)  # share of a round's answers that ends it
    poll: float = Field(default=30.0, gt=0)  # seconds between two looks of --wait
    # simulated: what is true. "labels" of the pool, a module:function, or a reward model
    truth: str = "labels"
    people: int = Field(default=1, ge=1, le=26)
    temperature: float = Field(default=1.0, gt=0)  # a difference that weighs one logit
    position_bias: float = 0.0
    lapse_rate: float = Field(default=0.0, ge=0, le=1)
    tie_band: float = Field(default=0.0, ge=0)
    # label-studio
    project: str = Field(default="active", min_length=3)
    url: str | None = None  # default: the server that `align feedback serve` runs on `data`
    data: str = ".label-studio"
    overlap: int = Field(default=1, ge=1)  # people for each question of a shared project
    emails: list[str] = Field(default_factory=list)  # a project for each of these people


class StoppingSection(Section):
    """When the loop ends: at the first of these that holds."""

    rounds: int | None = Field(default=10, ge=1)
    labels: int | None = Field(default=None, ge=1)  # answered questions
    minutes: float | None = Field(default=None, gt=0)  # of people's time, by lead times
    tau: float | None = Field(default=None, gt=0)  # nats: no question tells more
    kappa: float | None = Field(default=None, gt=0, le=1)  # answers have settled
    resolution: float | None = Field(default=None, gt=0)  # the holdout's gain is none that matters
    window: int = Field(default=3, ge=1)  # rounds that kappa and resolution look back

    @model_validator(mode="after")
    def _some_end(self) -> Self:
        if self.rounds is None and self.labels is None and self.minutes is None:
            raise ValueError("nothing ends the loop for sure: set rounds, labels or minutes")
        return self


class CurveSection(Section):
    """The learning curve beside that of random choice, where answers to all pairs are known."""

    random: int = Field(default=0, ge=0, le=10)  # random arms; each costs as much training again
