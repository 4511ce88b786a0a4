"""The sections of `align selftrain`: the loop, its gate, and what is kept of a model's own work."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from align.config.base import Section
from align.config.sections import Sources

Method = Literal["raft", "star", "rest", "dpo", "preferences"]
POLICY: tuple[Method, ...] = ("raft", "star", "rest", "dpo")
TRAINERS: dict[str, str] = {  # what `trainer:` is passed to
    "raft": "trl:SFTConfig",
    "star": "trl:SFTConfig",
    "rest": "trl:SFTConfig",
    "dpo": "trl:DPOConfig",
    "preferences": "trl:RewardConfig",
}


class LoopSection(Section):
    """Which self-training, and for how long."""

    method: Method = "raft"
    rounds: int = Field(default=3, ge=1)
    # each round trains from the model in use, or from `base`; unset: star and preferences from base
    start: Literal["base", "last"] | None = None
    base: str | None = None  # what `start: base` begins with; default: the model
    patience: int = Field(default=2, ge=1)  # rounds in a row without promotion that end it
    keep: Literal["last", "all"] = "last"  # weights that stay on disk

    @property
    def begins(self) -> str:
        """Where rounds begin."""
        return self.start or ("base" if self.method in ("star", "preferences") else "last")


class GateSection(Section):
    """What a round's model must show on held-out data to be promoted."""

    rule: Literal["gain", "not_worse"] = "gain"
    tolerance: float = Field(default=0.01, ge=0)  # of not_worse
    level: float = Field(default=0.95, gt=0.5, lt=1)  # of all rounds' intervals together
    samples: int = Field(default=1, ge=1)  # answers to each held-out question
    temperature: float = Field(default=0.0, ge=0)  # of those answers; 0: the likeliest tokens


class HarvestSection(Section):
    """Which of its own answers a policy is trained on."""

    samples: int = Field(default=4, ge=1)  # drawn for each question
    questions: int | None = Field(default=None, ge=1)  # of each round, drawn by chance; unset: all
    most: int | None = Field(default=None, ge=1)  # kept of each; unset: 1, of star and rest 4
    threshold: float | None = Field(default=None, allow_inf_nan=False)  # star: 1.0
    quantiles: list[Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=[0.5, 0.7, 0.9], min_length=1
    )  # of rest: a rising threshold for each improve step
    hint: str | None = None  # of star: "{prompt} (The answer is {answer}.)", where all were wrong
    gap: float = Field(default=0.0, ge=0)  # of dpo: that best and worst must be apart
    accumulate: bool = False  # what earlier rounds kept trains too
    beside: Sources | None = None  # rows that train in every round: demonstrations, or comparisons

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if any(b <= a for a, b in zip(self.quantiles, self.quantiles[1:], strict=False)):
            raise ValueError(f"quantiles {self.quantiles}: each must be above the one before")
        return self


class PseudoSection(Section):
    """Which pairs a reward model labels, and which labels it learns from."""

    path: str | None = None  # a file of pairs: response_a and response_b, or responses
    columns: dict[str, str] = Field(default_factory=dict)  # ours: theirs
    limit: int | None = Field(default=None, gt=0)  # first rows only
    stratum: str | None = None  # the column with a pair's class
    members: int = Field(default=3, ge=1, le=64)  # of the ensemble, which must be of one mind
    tau: float = Field(default=0.95, ge=0.5, lt=1)  # the confidence needed in round 1
    tau_last: float = Field(default=0.8, ge=0.5, lt=1)  # and in the last
    calibration: float = Field(default=0.4, gt=0, lt=1)  # share of held-out prompts; rest: the gate
    ema: float = Field(default=0.5, ge=0, lt=1)  # share of the old teacher in the next
    max_weight: float = Field(default=0.5, gt=0)  # of all pseudo-labels, as a share of people's
    balance: list[Literal["class", "position", "length"]] = Field(
        default=["class", "position", "length"]
    )
    slack: float = Field(default=0.25, ge=0)  # over a group's share in people's labels
    similarity: float | None = Field(default=0.95, gt=0, le=1)  # of near-duplicates; null: let in
    near: float | None = Field(default=None, ge=0, le=1)  # cosine to a labelled pair that is needed
    most: int | None = Field(default=None, ge=1)  # labels a round, spread over what there is

    @model_validator(mode="after")
    def _falling(self) -> Self:
        if self.tau_last > self.tau:
            raise ValueError(f"tau_last {self.tau_last} is above tau {self.tau}: it falls")
        return self


class AuditSection(Section):
    """What people check of the pseudo-labels."""

    share: float = Field(default=0.05, ge=0, le=1)  # of a round's, drawn by chance
    store: str | None = None  # the feedback store's URL; default: feedback.db in the run
    wait: bool = False  # the next round waits for their answers
