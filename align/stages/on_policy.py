"""What stages that train on the policy's own samples share: prompts, policy, rewards, sampler.

A stage names its trainer and what trains; see `align.stages.ppo` and `align.stages.online_dpo`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.config.stages import OnPolicyStage
from align.data import Splits
from align.engine.guards.base import Batch
from align.engine.guards.weights import inner_module
from align.engine.models import freeze, load_policy, peft_config
from align.errors import DataError
from align.ppo.actor_critic import ActorCritic
from align.ppo.rewards import RewardScorer
from align.processes import first_process
from align.rollout.best_of import take
from align.rollout.open import in_environment, open_sampler
from align.rollout.transformers import TransformersSampler
from align.run import Run, append_jsonl, fingerprint, read_jsonl
from align.stages.common import (
    load_data,
    model_kwargs,
    open_tokenizer,
    save_model,
    seed_everything,
    trainer_args,
)
from align.stages.dryrun import context_of, dry_report
from align.stages.guard_memory import finish_guards, settle_guards
from align.stages.guard_source import step_rows
from align.stages.guards import build_guards
from align.stages.on_policy_checks import check_engine, check_sampling, check_signals
from align.stages.order import plan_order
from align.stages.order_checks import check_order
from align.stages.preflight import build_trainer, check_start, gather, loading
from align.stages.rewards import check_rewards, common_context, models_of, open_rewards
from align.stages.sft import sequence_logits, sequence_nll, sft_source
from align.stages.sharing import share
from align.stages.training import train
from align.types import Rollout, Sampler, SyncedSampler


def run_on_policy(
    config: OnPolicyStage,
    run: Run,
    trainer_class: type,
    make_model: Callable[[PreTrainedModel, Any], ActorCritic],
    *,
    checks: tuple[Callable[[], object], ...] = (),
    has_critic: bool = False,
    options: Mapping[str, Any] | None = None,
    resume: bool = False,
    dry_run: bool = False,
) -> None:
    """Optimise a policy against rewards.

    Args:
        config: of the stage.
        run: its directory.
        trainer_class: an `OnPolicyTrainer`.
        make_model: what trains, of the policy and the trainer's arguments.
        checks: further ones, before anything loads.
        has_critic: whether a value function is trained.
        options: further arguments of the trainer.
        resume: go on from the last checkpoint.
        dry_run: check, and train nothing.

    Raises:
        AlignError: bad input of any kind, before the policy loads wherever that is possible.
    """
    seed_everything(config.run.seed)
    context = context_of(config.model.path)
    args, *_ = gather(
        lambda: trainer_args(config, run),
        lambda: check_sampling(config.rollout, context),
        lambda: check_engine(config),
        lambda: check_order(config),
        lambda: check_rewards(config.reward),
        lambda: check_signals(config.signals, config.reward, has_critic),
        *checks,
    )
    check_start(config)
    tokenizer = open_tokenizer(config.model)
    data = load_prompts(config, run, tokenizer, common_context(context, config.reward))
    if dry_run:
        dry_report(config, run, args)
        return
    order = plan_order(config, data, "prompts", tokenizer, run, args)
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
    source = replace(
        sft_source(tokenizer, None, policy.device, step_rows(args)),
        loss=policy_nll,
        logits=policy_logits,
        temperature=config.rollout.temperature,
    )
    guards = build_guards(config.guards, policy, source, config.model.path, run)
    if config.peft:
        import peft

        adapter = peft_config(config.peft.method, config.peft.kwargs, "CAUSAL_LM")
        policy = build_trainer(peft.get_peft_model, model=policy, peft_config=adapter)
    model = make_model(policy, args)
    look = TransformersSampler(
        policy,
        tokenizer,
        max_new_tokens=config.rollout.max_new_tokens,
        temperature=config.rollout.temperature,
        seed=0,
    )
    shown = in_environment(config.rollout, look, policy, tokenizer)
    held_out = data.validation if data.validation is not None else data.train
    with closing(open_sampler(config.rollout, policy, tokenizer, run.path)) as sampler:
        trainer = build_trainer(
            trainer_class,
            model=model,
            reference=reference,
            args=args,
            sampler=sampler,
            score=rewards,
            train_dataset=data.train,
            processing_class=tokenizer,
            guards=guards,
            **(options or {}),
        )
        if order is not None:
            trainer.use_order(order)
        models = {"policy": policy, "reference": reference, "critic": model.value_backbone}
        # Completions are read without padding wherever that is right.
        trainer.sharing = share(
            models, config.model.prefix_sharing, run, resume=resume, always=True
        )
        if first_process() and not (resume and read_jsonl(run.path / "samples.jsonl")):
            write_samples(run, "before", show_samples(shown, held_out, rewards, args.group_size))
        train(trainer, config, run, resume=resume)
        settle_guards(guards, model, run)
    save_model(policy, tokenizer, run.model)
    finish_guards(guards, config.guards, trainer, policy, source, data.train, run)
    if first_process():
        model.save_value(run.path / "value")
        # Last: a reward server that fails now takes nothing away that was trained.
        write_samples(run, "after", show_samples(shown, held_out, rewards, args.group_size))
    run.finish(steps=trainer.state.global_step, updates=trainer.loader.update)


@contextmanager
def closing(sampler: Sampler) -> Iterator[Sampler]:
    """Let go of a sampler's engine in the end, if it has one."""
    try:
        yield sampler
    finally:
        if isinstance(sampler, SyncedSampler):
            sampler.close()


def load_prompts(
    config: OnPolicyStage, run: Run, tokenizer: PreTrainedTokenizerBase, context: int | None
) -> Splits:
    """The prompts that leave room for an answer in the context of policy and reward models.

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
            f"{error} Here that length is the shortest context, {context}, less "
            f"rollout.max_new_tokens={answer}, which can be lowered."
        ) from error


def policy_nll(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Summed negative log-likelihood under the policy inside an actor-critic."""
    return sequence_nll(inner_module(model), batch)


def policy_logits(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels under the policy inside an actor-critic."""
    return sequence_logits(inner_module(model), batch)


def show_samples(
    sampler: Sampler, rows: Any, rewards: RewardScorer, group_size: int = 1
) -> tuple[Rollout, list[float]]:
    """Completions of up to 16 held-out prompts with their reward; needs a seeded sampler.

    Rewards that compare the answers of one prompt get `group_size` of them; the first is kept.
    """
    chosen = rows.select(range(min(16, len(rows))))
    columns = {k: list(chosen[k]) for k in chosen.column_names if k != "prompt"}
    rollout = sampler(list(chosen["prompt"]), group_size, **columns)
    scores = rewards(rollout, learn=False)[0]
    kept = torch.arange(0, len(rollout), group_size)
    return take(rollout, kept), [scores[row] for row in kept.tolist()]


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
