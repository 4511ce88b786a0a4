"""PPO: `align ppo`. Prompts, a policy, rewards and a critic; the trainer is ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from align.config.sections import RewardSourceSection, RolloutSection
from align.config.stages import PPOStage
from align.engine.guards.base import Batch
from align.engine.models import freeze, load_policy, peft_config
from align.errors import ConfigError, Problem
from align.ppo.actor_critic import ActorCritic, build_actor_critic
from align.ppo.rewards import reward_scorer
from align.ppo.trainer import PPOTrainer
from align.rollout.transformers import TransformersSampler
from align.run import Run, append_jsonl, fingerprint
from align.stages.common import (
    build_guards,
    load_data,
    model_kwargs,
    open_tokenizer,
    save_model,
    seed_everything,
    train,
    trainer_args,
)
from align.stages.dryrun import context_of, dry_report
from align.stages.sft import sequence_nll, sft_examples
from align.types import RewardFn, Rollout
from reward.functions import load_reward_function, reward_name
from reward.model import CONFIG_KEY, RewardModel


def run(config: PPOStage, run: Run, *, resume: bool = False, dry_run: bool = False) -> None:
    """Optimise a policy against rewards.

    Raises:
        AlignError: bad input of any kind, before the policy loads wherever that is possible.
    """
    seed_everything(config.run.seed)
    args = trainer_args(config, run)
    check_sampling(config.rollout)
    check_rewards(config.reward)
    tokenizer = open_tokenizer(config.model)
    context = context_of(config.model.path)
    room = None if context is None else context - config.rollout.max_new_tokens
    data = load_data(config, "prompts", run, tokenizer, max_length=room, context=context)
    if dry_run:
        dry_report(config, run, args)
        return
    rewards = [(*open_reward(section), section.weight) for section in config.reward]
    policy, reference, _ = load_policy(
        config.model.path,
        tokenizer=config.model.tokenizer,
        chat_template=config.model.chat_template,
        with_reference=config.peft is None,
        **model_kwargs(config.model),
    )
    run.add_parent("model", config.model.path, fingerprint=fingerprint(config.model.path))
    for section in config.reward:
        if section.path:
            run.add_parent("reward", section.path, fingerprint=fingerprint(section.path))
    freeze(policy, config.model.freeze)
    if config.peft:
        import peft

        adapter = peft_config(config.peft.method, config.peft.kwargs, "CAUSAL_LM")
        policy = peft.get_peft_model(policy, adapter)  # type: ignore[assignment]
    model = build_actor_critic(policy, backbone=config.value.backbone, init=config.value.init)
    guards = build_guards(
        config.guards,
        model,
        lambda path, count: sft_examples(path, count, tokenizer, None, policy.device),
        policy_nll,
        run,
    )
    sampler = TransformersSampler(
        policy,
        tokenizer,
        max_new_tokens=config.rollout.max_new_tokens,
        min_new_tokens=config.rollout.min_new_tokens,
        temperature=config.rollout.temperature,
        batch_size=config.rollout.batch_size,
    )
    trainer = PPOTrainer(
        model=model,
        reference=reference,
        args=args,
        sampler=sampler,
        score=reward_scorer(rewards),
        train_dataset=data.train,
        processing_class=tokenizer,
        value_learning_rate=config.value.learning_rate,
        guards=guards,
    )
    held_out = data.validation if data.validation is not None else data.train
    before = None if resume else show_samples(sampler, held_out, rewards)
    train(trainer, config, run, resume=resume)
    after = show_samples(sampler, held_out, rewards)
    write_samples(run, before, after)
    save_model(policy, tokenizer, run.model)
    model.save_value(run.path / "value")
    run.finish(steps=trainer.state.global_step, updates=trainer.loader.update)


def check_sampling(rollout: RolloutSection) -> None:
    """Truncated sampling biases the policy gradient unless it is corrected.

    Raises:
        ConfigError: top-p or top-k is on.
    """
    problems = []
    if rollout.top_p < 1:
        problems.append(
            Problem(
                "rollout.top_p",
                f"{rollout.top_p} truncates the distribution, and the gradient is not corrected.",
                "use top_p: 1.0 (and temperature) for PPO.",
            )
        )
    if rollout.top_k > 0:
        problems.append(
            Problem(
                "rollout.top_k",
                f"{rollout.top_k} truncates the distribution, and the gradient is not corrected.",
                "use top_k: 0 for PPO.",
            )
        )
    if problems:
        raise ConfigError(problems)


def check_rewards(sections: list[RewardSourceSection]) -> None:
    """Every reward names one thing, and reward models carry their statistics.

    Raises:
        ConfigError: with every problem found, before any weights are read.
    """
    problems = []
    for index, section in enumerate(sections):
        where = f"reward.{index}"
        if (section.path is None) == (section.function is None):
            what = "names both a path and a function" if section.path else "names nothing"
            problems.append(Problem(where, f"{what}.", "set either `path` or `function`."))
            continue
        if section.path is None:
            continue
        if not (Path(section.path) / "config.json").is_file() and Path(section.path).exists():
            problems.append(
                Problem(
                    f"{where}.path",
                    f"{section.path} holds no model.",
                    "give the `model/` folder of an `align reward` run.",
                )
            )
            continue
        try:
            saved = AutoConfig.from_pretrained(section.path)
        except (OSError, ValueError):
            problems.append(
                Problem(
                    f"{where}.path",
                    f"no reward model at {section.path}.",
                    "run `align reward` first, or check the path.",
                )
            )
            continue
        if section.normalise and not getattr(saved, CONFIG_KEY, None):
            problems.append(
                Problem(
                    f"{where}.path",
                    f"{section.path} carries no normalisation statistics.",
                    "train it with `align reward`, which saves them, or set normalise: false.",
                )
            )
    if problems:
        raise ConfigError(problems)


def open_reward(section: RewardSourceSection) -> tuple[str, RewardFn]:
    """A reward's name and function."""
    if section.function:
        function = load_reward_function(section.function)
        return reward_name(function), function
    model = RewardModel.load(str(section.path), normalise=section.normalise)
    return model.name, model


def policy_nll(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Summed negative log-likelihood under the policy inside an actor-critic."""
    assert isinstance(model, ActorCritic)
    return sequence_nll(model.policy, batch)


def show_samples(
    sampler: TransformersSampler, rows: Any, rewards: list[tuple[str, RewardFn, float]]
) -> tuple[Rollout, list[float]]:
    """Completions of up to 16 held-out prompts with their reward; leaves the RNG as it was."""
    chosen = rows.select(range(min(16, len(rows))))
    columns = {k: list(chosen[k]) for k in chosen.column_names if k != "prompt"}
    state = torch.random.get_rng_state()
    sampler.seed = 0
    try:
        rollout = sampler(list(chosen["prompt"]), 1, **columns)
    finally:
        sampler.seed = None
        torch.random.set_rng_state(state)
    return rollout, reward_scorer(rewards)(rollout)[0]


def write_samples(
    run: Run, before: tuple[Rollout, list[float]] | None, after: tuple[Rollout, list[float]]
) -> None:
    """Keep completions before and after training for the report."""
    for row, prompt in enumerate(after[0].prompts):
        shown = {"after": after} if before is None else {"before": before, "after": after}
        append_jsonl(
            run.path / "samples.jsonl",
            {
                "prompt": prompt,
                "completions": {name: part[0].completions[row] for name, part in shown.items()},
                "scores": {name: part[1][row] for name, part in shown.items()},
            },
        )
