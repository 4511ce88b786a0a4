"""What the configuration of PPO and online DPO must satisfy before any weights load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer

from align.config.sections import (
    ModelSection,
    PeftSection,
    RewardSourceSection,
    RolloutSection,
    SignalsSection,
    ValueSection,
)
from align.config.stages import OnPolicyStage, PPOStage
from align.errors import ConfigError, Problem
from align.ppo.actor_critic import CRITIC
from align.ppo.advantages import CRITICS, ESTIMATORS
from align.ppo.checks import truncations
from align.processes import processes
from align.rollout.open import check_rollout
from align.stages.peft_checks import VIRTUAL_TOKENS
from align.stages.preflight import is_classifier, model_fault


def check_sampling(rollout: RolloutSection, context: int | None = None) -> None:
    """Truncated sampling biases the policy gradient, and no importance weight mends it.

    What the truncation cut off is never drawn, so there is nothing to weigh (and vLLM reports the
    probabilities from before the cut).

    Raises:
        ConfigError: top-p or top-k is on, or answers would fill the model's whole context.
    """
    problems = []
    if context is not None and rollout.max_new_tokens >= context:
        problems.append(
            Problem(
                "rollout.max_new_tokens",
                f"{rollout.max_new_tokens} leaves no room for a prompt in the model's context of "
                f"{context}.",
                "lower it.",
            )
        )
    problems += truncations(rollout)
    if problems:
        raise ConfigError(problems)


def check_engine(config: OnPolicyStage) -> None:
    """The engine that samples is there and fits the model and the processes.

    Raises:
        ConfigError: with every problem found.
    """
    rollout, world = config.rollout, processes()
    problems = check_rollout(rollout, config.peft, config.model.quantization)
    if config.trainer.get("rollouts_ahead") and rollout.engine != "vllm-server":
        what = f"the {rollout.engine} sampler computes where the policy trains."
        fix = "set rollout.engine=vllm-server, or rollouts_ahead=false."
        problems.append(Problem("trainer.rollouts_ahead", what, fix))
    if world > 1 and rollout.engine == "vllm-server" and rollout.vllm.url is None:
        what = f"{world} processes need one server that all of them reach."
        fix = "start `vllm serve` (docs/rollout.md) and name it."
        problems.append(Problem("rollout.vllm.url", what, fix))
    if problems:
        raise ConfigError(problems)


def check_signals(
    signals: SignalsSection, rewards: Sequence[RewardSourceSection], has_critic: bool = False
) -> None:
    """Every rule that is to end the run can see what it judges by.

    Raises:
        ConfigError: with every rule that could never fire.
    """
    problems, stop = [], signals.stop
    if not signals.enabled and (stop.on or stop.kl_budget or stop.lower_bound_drop):
        what = "set, but signals.enabled is false, so nothing would end the run."
        problems.append(Problem("signals.stop", what, "remove it, or enable signals."))
    if stop.lower_bound_drop and not any(s.ensemble or s.posterior for s in rewards):
        what = "needs a posterior's lower bound, and no reward has one."
        fix = "set reward[].ensemble or posterior, or remove it."
        problems.append(Problem("signals.stop.lower_bound_drop", what, fix))
    if "dead_critic" in stop.on and not has_critic:
        what = "dead_critic is never raised: there is no critic."
        problems.append(Problem("signals.stop.on", what, "remove it."))
    if problems:
        raise ConfigError(problems)


def check_value(value: ValueSection, peft: PeftSection | None, model: ModelSection) -> None:
    """The critic can start from what `value.init` names.

    Raises:
        ConfigError: it is no reward model, reads other tokens than the policy's, or its backbone
            would have to be the policy's.
    """
    problems = []
    if value.init == "zero" and value.backbone == "separate" and model.quantization:
        what = f"`separate` copies the policy's backbone, which {model.quantization} cannot train."
        fix = "use value.backbone=shared, or value.init=<reward model>."
        problems.append(Problem("value.backbone", what, fix))
    if value.init != "zero" and not (Path(value.init) / CRITIC).is_file():
        fault = model_fault(value.init)
        if fault:
            problems.append(Problem("value.init", f"{value.init} {fault[0]}", fault[1]))
        elif Path(value.init).exists() and not is_classifier(value.init):
            what = f"{value.init} is no reward model, so it has no head to start from."
            problems.append(Problem("value.init", what, "name an `align reward` run's model/."))
        elif other_tokens(value.init, model.tokenizer or model.path):
            what = (
                f"{value.init} has another vocabulary than the policy, whose tokens it would read."
            )
            problems.append(Problem("value.init", what, "use value.init=zero."))
        if value.backbone == "shared":
            what = "a reward model's head needs its own backbone, but `shared` reads the policy's."
            problems.append(Problem("value.backbone", what, "use separate, or value.init=zero."))
    if value.backbone == "shared" and peft is not None and peft.method in VIRTUAL_TOKENS:
        what = f"`shared` cannot see the virtual tokens of {peft.method}."
        problems.append(Problem("value.backbone", what, "use separate."))
    if problems:
        raise ConfigError(problems)


def other_tokens(critic: str, policy: str) -> bool:
    """Whether a policy has tokens that a critic knows under other numbers or not at all.

    False where a tokenizer cannot be read: who loads it says more.
    """
    try:
        known, used = (AutoTokenizer.from_pretrained(p).get_vocab() for p in (critic, policy))
    except (OSError, ValueError):
        return False
    return any(known.get(token) != number for token, number in used.items())


def check_critic(config: PPOStage) -> None:
    """A critic is configured only where the advantage has one.

    Raises:
        ConfigError: `value` is set for an advantage without a critic.
    """
    advantage = config.trainer.get("advantage", "gae")
    if advantage in CRITICS or advantage not in ESTIMATORS or not config.value.model_fields_set:
        return
    what = f"advantage={advantage} has no critic, so this section would do nothing."
    raise ConfigError([Problem("value", what, "remove it, or use advantage=gae.")])
