"""Typed configuration: sections, stages, and loading with every error reported at once."""

from align.config.load import load_config, resolve_trainer_args
from align.config.stages import (
    STAGES,
    DPOStage,
    EvaluateStage,
    PPOStage,
    RewardStage,
    SFTStage,
    StageConfig,
    TrainingStage,
)

__all__ = [
    "STAGES",
    "DPOStage",
    "EvaluateStage",
    "PPOStage",
    "RewardStage",
    "SFTStage",
    "StageConfig",
    "TrainingStage",
    "load_config",
    "resolve_trainer_args",
]
