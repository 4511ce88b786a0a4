"""REINFORCE with a leave-one-out baseline: `align rloo`. TRL's RLOO trainer, with guards."""

from __future__ import annotations

from align.config.stages import RLOOStage
from align.engine.trainers import RLOOTrainer
from align.run import Run
from align.stages.grouped import run_grouped


def run(config: RLOOStage, run: Run, *, resume: bool = False, dry_run: bool = False) -> None:
    """Optimise a policy against rewards, each answer measured by the others of its group.

    Raises:
        AlignError: bad input of any kind, before the policy loads wherever that is possible.
    """
    run_grouped(config, run, RLOOTrainer, resume=resume, dry_run=dry_run)
