"""What the configuration of PPO and online DPO must satisfy before any weights load."""

from __future__ import annotations

from pathlib import Path

from align.config.sections import PeftSection, RolloutSection, ValueSection
from align.config.stages import OnPolicyStage, PPOStage
from align.errors import ConfigError, Problem
from align.ppo.advantages import CRITICS, ESTIMATORS
from align.rollout.open import check_rollout
from align.stages.preflight import VIRTUAL_TOKENS, is_classifier, model_fault


def check_sampling(rollout: RolloutSection, context: int | None = None) -> None:
    """Truncated sampling biases the policy gradient unless it is corrected.

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
    if rollout.engine == "transformers":  # a vLLM's own check names all of these
        for name, off in (("top_p", 1.0), ("top_k", 0), ("min_new_tokens", 0)):
            value = getattr(rollout, name)
            if value != off:
                what = f"{value} truncates the distribution, and the gradient is not corrected."
                problems.append(Problem(f"rollout.{name}", what, f"use {name}: {off} here."))
    if problems:
        raise ConfigError(problems)


def check_engine(config: OnPolicyStage) -> None:
    """The engine that samples is there and fits the model.

    Raises:
        ConfigError: with every problem found.
    """
    problems = check_rollout(config.rollout, config.peft, config.model.quantization)
    if problems:
        raise ConfigError(problems)


def check_value(value: ValueSection, peft: PeftSection | None) -> None:
    """The critic can start from what `value.init` names.

    Raises:
        ConfigError: it is no reward model, or its backbone would have to be the policy's.
    """
    problems = []
    if value.init != "zero":
        fault = model_fault(value.init)
        if fault:
            problems.append(Problem("value.init", f"{value.init} {fault[0]}", fault[1]))
        elif Path(value.init).exists() and not is_classifier(value.init):
            what = f"{value.init} is no reward model, so it has no head to start from."
            problems.append(Problem("value.init", what, "name an `align reward` run's model/."))
        if value.backbone == "shared":
            what = "a reward model's head needs its own backbone, but `shared` reads the policy's."
            problems.append(Problem("value.backbone", what, "use separate, or value.init=zero."))
    if value.backbone == "shared" and peft is not None and peft.method in VIRTUAL_TOKENS:
        what = f"`shared` cannot see the virtual tokens of {peft.method}."
        problems.append(Problem("value.backbone", what, "use separate."))
    if problems:
        raise ConfigError(problems)


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
