"""The sections of `align continual`: the tasks, what is measured, and the arms to compare."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from align.config.base import Section

TaskStage = Literal["sft", "dpo", "ppo", "online_dpo", "grpo", "rloo"]
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # of a folder


class MeasureSection(Section):
    """How well a policy still does something, on rows that nothing was trained on."""

    kind: Literal["likelihood", "preference"] = "likelihood"
    data: str | None = None  # unset: the test or validation rows of the task itself
    rows: int = Field(default=200, gt=0)  # at most so many


class TaskSection(Section):
    """One task: a stage of training, with all sections of that stage but `run` and `model`."""

    name: str = Field(pattern=NAME)
    stage: TaskStage = "sft"
    settings: dict[str, Any] = Field(default_factory=dict)  # data, trainer, peft, reward, ...
    measure: MeasureSection = Field(default_factory=MeasureSection)


class OtherSection(MeasureSection):
    """Something that is measured after every task and trained by none: the alignment tax."""

    name: str = Field(pattern=NAME)
