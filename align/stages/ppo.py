"""PPO: `align ppo`. Prompts, a policy, rewards and a critic; the trainer is ours."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from align.config.stages import PPOStage
from align.ppo.actor_critic import ActorCritic, build_actor_critic
from align.ppo.advantages import CRITICS
from align.ppo.trainer import PPOTrainer
from align.run import Run
from align.stages.on_policy import run_on_policy
from align.stages.on_policy_checks import check_critic, check_value


def run(config: PPOStage, run: Run, *, resume: bool = False, dry_run: bool = False) -> None:
    """Optimise a policy against rewards, with a critic where the advantage has one.

    Raises:
        AlignError: bad input of any kind, before the policy loads wherever that is possible.
    """

    def make_model(policy: PreTrainedModel, args: Any) -> ActorCritic:
        backbone = config.value.backbone if args.has_critic else "none"
        return build_actor_critic(policy, backbone=backbone, init=config.value.init)

    run_on_policy(
        config,
        run,
        PPOTrainer,
        make_model,
        checks=(
            lambda: check_value(config.value, config.peft, config.model),
            lambda: check_critic(config),
        ),
        has_critic=config.trainer.get("advantage", "gae") in CRITICS,
        options={"value_learning_rate": config.value.learning_rate},
        resume=resume,
        dry_run=dry_run,
    )
