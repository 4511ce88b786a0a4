"""What each stage reads: its sections, and the trainer config that `trainer:` is passed to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from align.config.active import (
    AcquisitionSection,
    AnnotatorsSection,
    CurveSection,
    PoolSection,
    PosteriorSection,
    StoppingSection,
)
from align.config.continual import OtherSection, TaskSection
from align.config.guards import Guards
from align.config.objective import ObjectiveSection
from align.config.sections import (
    DataSection,
    EvaluateSection,
    JudgeSection,
    ModelSection,
    NormalisationSection,
    PeftSection,
    RewardSourceSection,
    RolloutSection,
    RunSection,
    Section,
    SignalsSection,
    TrackingSection,
    ValueSection,
)
from align.config.selftrain import (
    TRAINERS,
    AuditSection,
    GateSection,
    HarvestSection,
    LoopSection,
    PseudoSection,
)


class StageConfig(Section):
    """What every stage reads. `trainer_class` is imported when it is needed."""

    stage: ClassVar[str]
    trainer_class: ClassVar[str | None] = None  # "module:name"

    run: RunSection = Field(default_factory=RunSection)

    @classmethod
    def trainer_of(cls, raw: Mapping[str, Any]) -> str | None:
        """The config class of `trainer:`, as "module:name", of a file not yet checked."""
        return cls.trainer_class


class TrainingStage(StageConfig):
    """What every training stage reads."""

    model: ModelSection
    data: DataSection
    trainer: dict[str, Any] = Field(default_factory=dict)
    peft: PeftSection | None = None
    guards: Guards = Field(default_factory=list)
    tracking: TrackingSection = Field(default_factory=TrackingSection)

    @model_validator(mode="after")
    def _weights_are_read(self) -> Self:
        balance = self.data.balance
        if balance is not None and balance.method == "weights" and self.stage != "reward":
            raise ValueError(
                "data.balance.method: weights are read by `align reward` alone; use over or under"
            )
        return self


class SFTStage(TrainingStage):
    """`align sft`."""

    stage: ClassVar[str] = "sft"
    trainer_class: ClassVar[str | None] = "trl:SFTConfig"


class RewardStage(TrainingStage):
    """`align reward`."""

    stage: ClassVar[str] = "reward"
    trainer_class: ClassVar[str | None] = "trl:RewardConfig"
    objective: ObjectiveSection = Field(default_factory=ObjectiveSection)
    normalisation: NormalisationSection = Field(default_factory=NormalisationSection)

    @model_validator(mode="after")
    def _trainer_fits(self) -> Self:
        if self.objective.kind != "pairs" and self.trainer.get("center_rewards_coefficient"):
            raise ValueError(
                "trainer.center_rewards_coefficient centres the two answers of a pair, and "
                f"objective.kind is {self.objective.kind}; leave it out"
            )
        if not self.objective.plain and self.trainer.get("label_smoothing_factor"):
            raise ValueError(
                "trainer.label_smoothing_factor is of TRL's own loss; for this objective set "
                "objective.label_smoothing"
            )
        return self


class DPOStage(TrainingStage):
    """`align dpo`."""

    stage: ClassVar[str] = "dpo"
    trainer_class: ClassVar[str | None] = "trl:DPOConfig"


class KTOStage(TrainingStage):
    """`align kto`."""

    stage: ClassVar[str] = "kto"
    trainer_class: ClassVar[str | None] = "trl:KTOConfig"


class OnPolicyStage(TrainingStage):
    """What every stage of ours reads that trains on the policy's own samples."""

    reward: list[RewardSourceSection] = Field(min_length=1)
    rollout: RolloutSection = Field(default_factory=RolloutSection)
    signals: SignalsSection = Field(default_factory=SignalsSection)


class PPOStage(OnPolicyStage):
    """`align ppo`."""

    stage: ClassVar[str] = "ppo"
    trainer_class: ClassVar[str | None] = "align.ppo.config:PPOConfig"
    value: ValueSection = Field(default_factory=ValueSection)


class OnlineDPOStage(OnPolicyStage):
    """`align online-dpo`."""

    stage: ClassVar[str] = "online_dpo"
    trainer_class: ClassVar[str | None] = "align.ppo.online_dpo:OnlineDPOConfig"


class GRPOStage(TrainingStage):
    """`align grpo`."""

    stage: ClassVar[str] = "grpo"
    trainer_class: ClassVar[str | None] = "trl:GRPOConfig"
    reward: list[RewardSourceSection] = Field(min_length=1)
    signals: SignalsSection = Field(default_factory=SignalsSection)


class RLOOStage(TrainingStage):
    """`align rloo`."""

    stage: ClassVar[str] = "rloo"
    trainer_class: ClassVar[str | None] = "trl:RLOOConfig"
    reward: list[RewardSourceSection] = Field(min_length=1)
    signals: SignalsSection = Field(default_factory=SignalsSection)


class ActiveStage(StageConfig):
    """`align active`: rounds of asking, answering and training a reward model."""

    stage: ClassVar[str] = "active"
    trainer_class: ClassVar[str | None] = "trl:RewardConfig"
    model: ModelSection
    pool: PoolSection
    posterior: PosteriorSection = Field(default_factory=PosteriorSection)
    acquisition: AcquisitionSection = Field(default_factory=AcquisitionSection)
    annotators: AnnotatorsSection = Field(default_factory=AnnotatorsSection)
    stopping: StoppingSection = Field(default_factory=StoppingSection)
    curve: CurveSection = Field(default_factory=CurveSection)
    trainer: dict[str, Any] = Field(default_factory=dict)
    peft: PeftSection | None = None
    normalisation: NormalisationSection = Field(default_factory=NormalisationSection)
    rollout: RolloutSection = Field(default_factory=RolloutSection)
    tracking: TrackingSection = Field(default_factory=TrackingSection)


class SelftrainStage(StageConfig):
    """`align selftrain`: rounds of a model that learns from its own answers or labels."""

    stage: ClassVar[str] = "selftrain"
    model: ModelSection
    data: DataSection
    loop: LoopSection = Field(default_factory=LoopSection)
    gate: GateSection = Field(default_factory=GateSection)
    harvest: HarvestSection = Field(default_factory=HarvestSection)
    pseudo: PseudoSection = Field(default_factory=PseudoSection)
    audit: AuditSection = Field(default_factory=AuditSection)
    reward: list[RewardSourceSection] = Field(default_factory=list)
    rollout: RolloutSection = Field(default_factory=RolloutSection)
    trainer: dict[str, Any] = Field(default_factory=dict)
    peft: PeftSection | None = None
    guards: Guards = Field(default_factory=list)
    normalisation: NormalisationSection = Field(default_factory=NormalisationSection)
    tracking: TrackingSection = Field(default_factory=TrackingSection)

    @classmethod
    def trainer_of(cls, raw: Mapping[str, Any]) -> str | None:
        """By `loop.method`: of SFT, DPO or reward models."""
        loop = raw.get("loop")
        method = loop.get("method", "raft") if isinstance(loop, Mapping) else "raft"
        return TRAINERS.get(method) if isinstance(method, str) else None

    @model_validator(mode="after")
    def _enough_held_out(self) -> Self:
        """A fifth is held out unless something else is said: each promotion is decided on it."""
        if not {"validation", "validation_fraction"} & self.data.model_fields_set:
            self.data = self.data.model_copy(update={"validation_fraction": 0.2})
        return self


class ContinualStage(StageConfig):
    """`align continual`: tasks in order, every task measured after each, guards compared."""

    stage: ClassVar[str] = "continual"
    model: ModelSection
    tasks: list[TaskSection] = Field(min_length=1)
    others: list[OtherSection] = Field(default_factory=list)
    arms: dict[str, list[dict[str, Any]]] = Field(default={"naive": []})
    seeds: list[int] = Field(default=[0], min_length=1)
    keep: Literal["last", "all"] = "last"  # models of earlier tasks stay, or their weights go


class EvaluateStage(StageConfig):
    """`align evaluate`."""

    stage: ClassVar[str] = "evaluate"
    evaluate: EvaluateSection
    data: DataSection
    judge: JudgeSection
    rollout: RolloutSection = Field(default_factory=RolloutSection)

    @model_validator(mode="after")
    def _judge_every_prompt(self) -> Self:
        """Nothing is trained here, so nothing is held out unless a split is asked for."""
        splits = {"validation", "test", "validation_fraction", "test_fraction"}
        if not splits & self.data.model_fields_set:
            self.data = self.data.model_copy(update={"validation_fraction": 0.0})
        return self

    @model_validator(mode="after")
    def _prompts_as_they_are(self) -> Self:
        given = [name for name in ("augment", "balance") if getattr(self.data, name)]
        if given:
            raise ValueError(f"data.{given[0]} is for training: leave it out of an evaluation")
        return self


ALL: tuple[type[StageConfig], ...] = (
    *(SFTStage, RewardStage, DPOStage, KTOStage, PPOStage, OnlineDPOStage),
    *(GRPOStage, RLOOStage, ActiveStage, SelftrainStage, ContinualStage, EvaluateStage),
)
STAGES: dict[str, type[StageConfig]] = {cls.stage: cls for cls in ALL}
