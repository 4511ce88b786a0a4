"""`data.curriculum` and `data.sampler`: in which order, and how often, rows are trained on.

What contradicts itself is found by `align.stages.order_checks`, all of it at once.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from align.config.base import Section


class CurriculumSection(Section):
    """A pool of rows that grows from the easy ones to all of them."""

    difficulty: str = "length"  # perplexity, loss, reward_margin, column, or a module:function
    model: str | None = None  # of perplexity and loss (default: model.path) and reward_margin
    column: str | None = None  # of `difficulty: column`: numbers, higher is harder
    order: Literal["easy", "hard", "random"] = "easy"  # hard: anti-curriculum; random: control
    pacing: Literal["linear", "root", "exponential", "sigmoid", "step", "adaptive"] = "root"
    start: float = Field(default=0.2, gt=0, le=1)  # share of the rows at the first step
    steps: int | None = Field(default=None, gt=0)  # until all rows; default: half of the run
    power: float = Field(default=2.0, gt=0)  # of root
    steepness: float = Field(default=10.0, gt=0)  # of sigmoid
    stages: int = Field(default=4, gt=0)  # of step
    increment: float = Field(default=0.1, gt=0, le=1)  # of adaptive
    patience: int = Field(default=1, gt=0)  # of adaptive: validations that stand still
    min_delta: float = Field(default=0.0, ge=0)  # of adaptive: a fall that counts
    batch_size: int = Field(default=16, gt=0)  # rows that a model measures at once
    cache: str | None = None  # folder of measured difficulties; default: in the run


class SamplerSection(Section):
    """Weights by which rows are drawn; several multiply."""

    by: Literal["class", "difficulty", "uncertainty", "recency", "source"]
    column: str | None = None  # of class, uncertainty and recency
    power: float = Field(default=1.0, gt=0)  # of class, difficulty and uncertainty
    beta: float | None = Field(default=None, ge=0, lt=1)  # of class: effective numbers instead
    half_life: float | None = Field(default=None, gt=0)  # of recency: days, or the column's unit
    alpha: float = Field(default=0.3, ge=0, le=1)  # of source
    uniform: float = Field(default=0.1, gt=0, le=1)  # of uncertainty: draws that do not look
    prefer: Literal["hard", "easy"] = "hard"  # of difficulty
    difficulty: str | None = None  # of difficulty: as in a curriculum, and by default its own
    model: str | None = None  # of difficulty, as in a curriculum


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, dict) else value


Samplers = Annotated[list[SamplerSection], BeforeValidator(_as_list)]
