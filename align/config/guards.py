"""What keeps a model from forgetting: `guards`, a list of sections, one kind each.

What they do: `align.engine.guards`. Some hold weights, some outputs, some what becomes of the
weights in the end.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, field_validator, model_validator

from align.config.base import Section


class BudgetSection(Section):
    """A guard's strength follows what may be lost: docs/guards.md."""

    data: str | None = None  # what is measured; unset: the guard's own
    columns: dict[str, str] = Field(default_factory=dict)  # of its data; ours: theirs
    samples: int = Field(default=128, gt=0)
    allowed: float = Field(default=0.01, gt=0, allow_inf_nan=False)  # growth of its mean loss
    every: int = Field(default=50, gt=0)  # optimizer steps between measurements
    rate: float = Field(default=0.5, gt=0)  # of the strength's logarithm
    enforce: bool = False  # in the end go back towards the start, as far as the budget asks


class GuardSection(Section):
    """What all kinds share."""

    holds_weights: ClassVar[bool] = False
    whole_gradients: ClassVar[bool] = False  # neither FSDP nor DeepSpeed
    reads_data: ClassVar[bool] = False  # `data`, else an artefact, else what the lineage left

    type: str


class StrengthSection(GuardSection):
    """A guard with a strength."""

    strength: float = Field(gt=0, allow_inf_nan=False)
    budget: BudgetSection | None = None

    @model_validator(mode="after")
    def _measured(self) -> Self:
        if self.budget and not self.budget.data and not getattr(self, "data", None):
            raise ValueError("budget.data is missing: name what must not be lost")
        return self


class WeightSection(StrengthSection):
    """A guard on weights."""

    holds_weights: ClassVar[bool] = True

    proximal: bool = False  # move the weights after the step: stable at any strength


class ImportanceSection(WeightSection):
    """A guard on weights, by an importance of each."""

    reads_data: ClassVar[bool] = True

    data: str | None = None  # what must not be forgotten: rows the stage's format can read
    columns: dict[str, str] = Field(default_factory=dict)  # ours: theirs, {"prompt": "question"}
    samples: int = Field(default=256, gt=0)  # rows that importances are estimated on
    artefact: str | None = None  # importances written earlier, instead of data
    remember: bool = False  # at the end, add this stage's own rows, for later runs
    decay: float | None = Field(default=None, gt=0, le=1)  # of older tasks; unset: the exact sum


class EWCSection(ImportanceSection):
    """Elastic weight consolidation."""

    type: Literal["ewc"]
    fisher: Literal["empirical", "true"] = "empirical"
    draws: int = Field(default=1, gt=0)  # `fisher: true`: labels drawn for each position

    @field_validator("fisher", mode="before")
    @classmethod
    def _word(cls, given: Any) -> Any:
        return "true" if given is True else given  # YAML reads the word as a truth value


class MASSection(ImportanceSection):
    """Memory aware synapses."""

    type: Literal["mas"]


class SISection(WeightSection):
    """Synaptic intelligence: what it learns of this run, later runs find."""

    type: Literal["si"]
    artefact: str | None = None  # unset: the lineage's
    damping: float = Field(default=0.1, gt=0)


class SPSection(WeightSection):
    """L2-SP and L1-SP: all weights near the start."""

    type: Literal["l2sp", "l1sp"]
    new: list[str] = Field(default_factory=list)  # regular expressions: weights held near 0
    head_strength: float | None = Field(default=None, ge=0)  # of those


class BufferSection(Section):
    """Which rows of earlier data are used, and which of this run's are kept."""

    data: str | None = None  # what must not be forgotten; unset: an artefact's, or the lineage's
    columns: dict[str, str] = Field(default_factory=dict)  # ours: theirs, {"prompt": "question"}
    artefact: str | None = None  # rows written earlier, instead of data
    samples: int = Field(default=256, gt=0)  # rows kept
    buffer: Literal["reservoir", "ring", "balanced", "herding"] = "reservoir"
    by: str | None = None  # a column of the data: the class of all but reservoir
    age_decay: float = Field(default=1.0, gt=0, le=1)  # rows of older tasks come less often
    remember: bool = False  # at the end, keep rows of this stage too, for later runs
    batch_size: int = Field(default=8, gt=0)  # rows replayed in an optimizer step
    ratio: float | None = Field(default=None, gt=0)  # or that share of the stage's own rows


class ReplaySection(StrengthSection, BufferSection):
    """Trains on earlier rows beside the stage's own; under PPO that is PPO-ptx."""

    reads_data: ClassVar[bool] = True

    type: Literal["replay"]


class AGEMSection(GuardSection, BufferSection):
    """Turns gradients that would raise the loss on earlier rows."""

    reads_data: ClassVar[bool] = True
    whole_gradients: ClassVar[bool] = True

    type: Literal["agem"]


class DistillSection(StrengthSection):
    """Holds what the model said when training began."""

    type: Literal["distill"]
    on: Literal["old", "new"] = "old"  # earlier rows, or the stage's own batches
    data: str | None = None  # of `on: old`
    columns: dict[str, str] = Field(default_factory=dict)  # ours: theirs, {"prompt": "question"}
    samples: int = Field(default=256, gt=0)
    batch_size: int = Field(default=8, gt=0)
    temperature: float = Field(default=1.0, gt=0)
    reverse: bool = False  # KL of now to before, RLHF's way round
    top_k: int | None = Field(default=None, gt=0)  # likeliest tokens kept of `on: old`; unset: all

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.on == "new" and (self.data or self.top_k):
            raise ValueError("data and top_k are for on: old; leave them out")
        if self.on == "old" and not self.data:
            raise ValueError("data is missing: name what must not be forgotten, or set on: new")
        if self.top_k and (self.temperature != 1 or self.reverse):
            raise ValueError("top_k goes with temperature: 1 and reverse: false alone")
        return self


class ClearSection(GuardSection):
    """CLEAR's cloning of policy and critic on earlier rollouts; of `align ppo`."""

    type: Literal["clear"]
    policy_strength: float = Field(default=0.01, ge=0)
    value_strength: float = Field(default=0.005, ge=0)
    samples: int = Field(default=1024, gt=0)  # rollouts kept
    batch_size: int = Field(default=8, gt=0)  # rollouts scored again in an optimizer step


class IsolateSection(GuardSection):
    """Freezes the numbers that matter most."""

    holds_weights: ClassVar[bool] = True
    reads_data: ClassVar[bool] = True

    type: Literal["isolate"]
    share: float = Field(default=0.2, gt=0, le=1)  # of all numbers
    data: str | None = None
    columns: dict[str, str] = Field(default_factory=dict)  # ours: theirs, {"prompt": "question"}
    samples: int = Field(default=256, gt=0)
    artefact: str | None = None


class UnfreezeSection(GuardSection):
    """Groups of layers train one after another, from the top."""

    type: Literal["unfreeze"]
    every: int = Field(default=100, gt=0)  # optimizer steps
    groups: int = Field(default=4, gt=1)


class EMASection(GuardSection):
    """The running mean of the weights is saved."""

    type: Literal["ema"]
    decay: float = Field(default=0.999, gt=0, lt=1)


class WiseFTSection(GuardSection):
    """Weights between start and end are saved."""

    type: Literal["wise_ft"]
    share: float = Field(default=0.5, ge=0, le=1)  # of the training that is kept


AnyGuard = (
    EWCSection
    | MASSection
    | SISection
    | SPSection
    | ReplaySection
    | AGEMSection
    | DistillSection
    | ClearSection
    | IsolateSection
    | UnfreezeSection
    | EMASection
    | WiseFTSection
)
Guards = list[Annotated[AnyGuard, Discriminator("type")]]
