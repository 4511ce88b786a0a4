"""What a reward model learns from, and by which loss: the `objective:` section."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from align.config.sections import Section

LOSSES = {  # of each kind, the default first
    "pairs": ("bradley-terry", "rao-kupper", "davidson"),
    "rankings": ("plackett-luce", "pairs-of-answers", "pairs-of-rankings"),
    "ratings": ("mse", "huber"),
    "steps": ("cross-entropy",),
}
DATA: dict[str, Literal["preference", "ranking", "rating", "steps"]] = {
    "pairs": "preference",
    "rankings": "ranking",
    "ratings": "rating",
    "steps": "steps",
}


class ObjectiveSection(Section):
    """Judgements and their loss. As it stands: comparisons by Bradley-Terry, through TRL."""

    kind: Literal["pairs", "rankings", "ratings", "steps"] = "pairs"
    loss: str | None = None  # of LOSSES[kind]; unset: the first of them
    heads: int = Field(default=1, ge=1, le=64)  # on one trunk: an ensemble in one run
    bootstrap: bool = True  # each of several heads draws its own sample of the judgements
    aspects: dict[str, float] = Field(default_factory=dict)  # of ratings: weight in the reward
    aggregate: Literal["min", "prod", "last", "mean"] = "min"  # steps' probabilities, of an answer
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    focal: float = Field(default=0.0, ge=0)  # gamma: pairs that are learnt already count less
    balance: float | None = Field(default=None, ge=0, le=1)  # wins and ties weigh alike at 1
    contrastive: float = Field(default=0.0, ge=0)  # weight of the term on embeddings
    generative: float = Field(default=0.0, ge=0)  # weight of the chosen answer's likelihood
    length: float = Field(default=0.0, ge=0)  # weight of |correlation with length|
    patience: int | None = Field(default=None, ge=1)  # evaluations without a better eval_loss

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = []
        if self.loss is not None and self.loss not in LOSSES[self.kind]:
            known = ", ".join(LOSSES[self.kind])
            problems.append(f"objective.loss is {self.loss!r}; of {self.kind} there are {known}")
        pairs_only = ("label_smoothing", "focal", "contrastive", "generative", "balance")
        for name in pairs_only if self.kind != "pairs" else ():
            if getattr(self, name):
                problems.append(f"objective.{name} is for kind: pairs")
        ties = self.chosen_loss in ("rao-kupper", "davidson")
        if ties and (self.label_smoothing or self.focal):
            problems.append("objective.label_smoothing and focal go with bradley-terry alone")
        if self.balance is not None and not ties:
            problems.append("objective.balance weighs ties and wins: set loss: rao-kupper")
        if self.aspects and self.kind != "ratings":
            problems.append("objective.aspects is for kind: ratings")
        if self.kind == "ratings" and self.heads > 1:
            problems.append("objective.heads: of ratings there is one head for each aspect")
        if self.kind == "steps" and self.length:
            problems.append("objective.length is for whole answers, not for steps")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def chosen_loss(self) -> str:
        """The loss in use."""
        return self.loss or LOSSES[self.kind][0]

    @property
    def plain(self) -> bool:
        """Whether TRL's own loss says it all."""
        own = ("label_smoothing", "focal", "contrastive", "generative", "length")
        return (
            self.kind == "pairs"
            and self.chosen_loss == "bradley-terry"
            and self.heads == 1
            and not any(getattr(self, name) for name in own)
        )
