"""Online DPO: `align online-dpo`. Pairs of the policy's own answers, judged by rewards."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from align.config.stages import OnlineDPOStage
from align.ppo.actor_critic import ActorCritic, build_actor_critic
from align.ppo.online_dpo import OnlineDPOTrainer
from align.run import Run
from align.stages.on_policy import run_on_policy


def run(config: OnlineDPOStage, run: Run, *, resume: bool = False, dry_run: bool = False) -> None:
    """Optimise a policy towards its better answers and away from its worse ones.

    Raises:
        AlignError: bad input of any kind, before the policy loads wherever that is possible.
    """

    def make_model(policy: PreTrainedModel, args: Any) -> ActorCritic:
        return build_actor_critic(policy, backbone="none")

    run_on_policy(config, run, OnlineDPOTrainer, make_model, resume=resume, dry_run=dry_run)
