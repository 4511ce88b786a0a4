"""Group-normalised policy gradients: `align grpo`. TRL's GRPO trainer and losses, with guards."""

from __future__ import annotations

from align.config.stages import GRPOStage
from align.engine.trainers import GRPOTrainer
from align.run import Run
from align.stages.grouped import run_grouped


def run(config: GRPOStage, run: Run, *, resume: bool = False, dry_run: bool = False) -> None:
    """Optimise a policy against rewards, each answer measured by its group.

    Raises:
        AlignError: bad input of any kind, before the policy loads wherever that is possible.
    """
    run_grouped(config, run, GRPOTrainer, resume=resume, dry_run=dry_run)
