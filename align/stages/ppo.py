"""PPO: `align ppo`. Prompts, a policy, rewards and a critic; the trainer is ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from align.config.sections import (
    PeftSection,
    RolloutSection,
    ValueSection,
)
from align.config.stages import PPOStage
from align.data import Splits
from align.engine.guards.base import Batch
from align.engine.models import freeze, load_policy, peft_config
from align.errors import ConfigError, DataError, Problem
from align.ppo.actor_critic import ActorCritic, build_actor_critic
from align.ppo.rewards import RewardScorer
from align.ppo.trainer import PPOTrainer
from align.rollout.transformers import TransformersSampler
from align.run import Run, append_jsonl, fingerprint, read_jsonl
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
from align.stages.preflight import (
    VIRTUAL_TOKENS,
    build_trainer,
    check_start,
    gather,
    is_classifier,
    loading,
    model_fault,
)
from align.stages.rewards import check_rewards, models_of, open_rewards
from align.stages.sft import sequence_nll, sft_examples
from align.types import Rollout


def run(config: PPOStage, run: Run, *, resume: bool = False, dry_run: bool = False) -> None:
    """Optimise a policy against rewards.

    Raises:
        AlignError: bad input of any kind, before the policy loads wherever that is possible.
    """
    seed_everything(config.run.seed)
    context = context_of(config.model.path)
    args, *_ = gather(
        lambda: trainer_args(config, run),
        lambda: check_sampling(config.rollout, context),
        lambda: check_rewards(config.reward),
        lambda: check_value(config.value, config.peft),
    )
    check_start(config)
    tokenizer = open_tokenizer(config.model)
    data = load_prompts(config, run, tokenizer, context)
    if dry_run:
        dry_report(config, run, args)
        return
    rewards = open_rewards(config.reward)
    with loading(config.model.path):
        policy, reference, _ = load_policy(
            config.model.path,
            tokenizer=config.model.tokenizer,
            chat_template=config.model.chat_template,
            with_reference=config.peft is None,
            **model_kwargs(config.model),
        )
    run.add_parent("model", config.model.path, fingerprint=fingerprint(config.model.path))
    for section in config.reward:
        for path in models_of(section):
            run.add_parent("reward", path, fingerprint=fingerprint(path))
    freeze(policy, config.model.freeze)
    if config.peft:
        import peft

        adapter = peft_config(config.peft.method, config.peft.kwargs, "CAUSAL_LM")
        policy = build_trainer(peft.get_peft_model, model=policy, peft_config=adapter)
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
    trainer = build_trainer(
        PPOTrainer,
        model=model,
        reference=reference,
        args=args,
        sampler=sampler,
        score=rewards,
        train_dataset=data.train,
        processing_class=tokenizer,
        value_learning_rate=config.value.learning_rate,
        guards=guards,
    )
    held_out = data.validation if data.validation is not None else data.train
    if not (resume and read_jsonl(run.path / "samples.jsonl")):
        write_samples(run, "before", show_samples(sampler, held_out, rewards))
    train(trainer, config, run, resume=resume)
    write_samples(run, "after", show_samples(sampler, held_out, rewards))
    save_model(policy, tokenizer, run.model)
    model.save_value(run.path / "value")
    run.finish(steps=trainer.state.global_step, updates=trainer.loader.update)


def load_prompts(
    config: PPOStage, run: Run, tokenizer: PreTrainedTokenizerBase, context: int | None
) -> Splits:
    """The prompts that leave room for an answer in the model's context.

    Raises:
        DataError: see `load_data`.
    """
    answer = config.rollout.max_new_tokens
    room = None if context is None else context - answer
    try:
        return load_data(config, "prompts", run, tokenizer, max_length=room, context=context)
    except DataError as error:
        if "overlong" not in str(error):
            raise
        raise DataError(
            f"{error} For PPO that length is the model's context of {context} less "
            f"rollout.max_new_tokens={answer}, which can be lowered."
        ) from error


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


def policy_nll(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Summed negative log-likelihood under the policy inside an actor-critic."""
    assert isinstance(model, ActorCritic)
    return sequence_nll(model.policy, batch)


def show_samples(
    sampler: TransformersSampler, rows: Any, rewards: RewardScorer
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
    return rollout, rewards(rollout, learn=False)[0]


def write_samples(run: Run, name: str, shown: tuple[Rollout, list[float]]) -> None:
    """Keep completions for the report, under a name beside those that are there.

    What was written before training outlives an interruption: a resumed run adds to it.
    """
    file = run.path / "samples.jsonl"
    kept = read_jsonl(file)
    rollout, scores = shown
    file.unlink(missing_ok=True)
    for row, prompt in enumerate(rollout.prompts):
        old = kept[row] if row < len(kept) else {"completions": {}, "scores": {}}
        line = {
            "prompt": prompt,
            "completions": old["completions"] | {name: rollout.completions[row]},
            "scores": old["scores"] | {name: scores[row]},
        }
        append_jsonl(file, line)
