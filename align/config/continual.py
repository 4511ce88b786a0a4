"""The sections of `align continual`: the tasks, what is measured, and the arms to compare."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from align.config.base import Section

TaskStage = Literal["sft", "dpo", "kto", "ppo", "online_dpo", "grpo", "rloo"]
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # of a folder


class MeasureSection(Section):
    """How well a policy still does something, on rows that nothing was trained on."""

    kind: Literal["likelihood", "preference", "reward"] = "likelihood"
    data: str | None = None  # unset: the test or validation rows of the task itself
    rows: int = Field(default=200, gt=0)  # at most so many
    reward: str | None = None  # of `reward`: a reward model's directory, or module:function
    max_new_tokens: int = Field(default=64, gt=0)  # of its answers

    @model_validator(mode="after")
    def _scored_by_something(self) -> Self:
        if (self.reward is None) == (self.kind == "reward"):
            what = "is missing" if self.reward is None else "is read by kind: reward alone"
            raise ValueError(f"reward {what}: a reward model's directory, or module:function")
        return self


class AdaptersSection(Section):
    """In an arm's list: a LoRA adapter for each task, from the task `from` on."""

    type: Literal["adapters"]
    mode: Literal["apart", "progressive"] = "apart"  # on the trunk, or on those of tasks before
    route: Literal["task", "prompt"] = "task"  # who answers: the task's own, or the prompt's
    kwargs: dict[str, Any] = Field(default_factory=dict)  # of PEFT's LoraConfig


class TaskSection(Section):
    """One task: a stage of training, with all sections of that stage but `run` and `model`."""

    name: str = Field(pattern=NAME)
    stage: TaskStage = "sft"
    settings: dict[str, Any] = Field(default_factory=dict)  # data, trainer, peft, reward, ...
    measure: MeasureSection = Field(default_factory=MeasureSection)


class OtherSection(MeasureSection):
    """Something that is measured after every task and trained by none: the alignment tax."""

    name: str = Field(pattern=NAME)
