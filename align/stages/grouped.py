"""What `align grpo` and `align rloo` share: a policy, rewards, and one of TRL's trainers.

Everything about sampling and the loss is TRL's and stands under `trainer:`. Ours are the rewards,
the guards, the reference (the policy that training starts from, never an adapter's base), the
checks, and resuming.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.config.stages import GRPOStage, RLOOStage
from align.data import Splits
from align.engine.checkpoint import disk_errors
from align.engine.models import disable_dropout, freeze, load_causal_lm, peft_config
from align.engine.tokenizer import match_embeddings
from align.engine.trainers import GRPOTrainer, RLOOTrainer
from align.errors import DataError
from align.ppo.trl_reward import TRLReward
from align.processes import first_process
from align.rollout.transformers import TransformersSampler, end_ids
from align.run import Run, fingerprint, read_jsonl
from align.stages.common import (
    load_data,
    model_kwargs,
    open_tokenizer,
    save_model,
    seed_everything,
    trainer_args,
)
from align.stages.dryrun import context_of, dry_report
from align.stages.grouped_checks import (
    check_groups,
    check_keys,
    check_options,
    check_padding,
    check_reference,
    check_whole_groups,
)
from align.stages.guard_memory import finish_guards, settle_guards
from align.stages.guard_source import step_rows
from align.stages.guards import build_guards
from align.stages.on_policy import show_samples, write_samples
from align.stages.on_policy_checks import check_signals
from align.stages.order import plan_order
from align.stages.order_checks import check_order
from align.stages.preflight import build_trainer, check_start, gather, loading
from align.stages.rewards import check_rewards, common_context, models_of, open_rewards
from align.stages.sft import sft_source
from align.stages.sharing import share_in_trl
from align.stages.training import train

GroupedStage = GRPOStage | RLOOStage


def run_grouped(
    config: GroupedStage,
    run: Run,
    trainer_class: type[GRPOTrainer] | type[RLOOTrainer],
    *,
    resume: bool,
    dry_run: bool,
) -> None:
    """The whole stage.

    Raises:
        AlignError: bad input of any kind, before the policy loads wherever that is possible.
    """
    seed_everything(config.run.seed)
    context = context_of(config.model.path)
    gather(
        lambda: check_keys(config),
        lambda: check_order(config),
        lambda: check_rewards(config.reward),
        lambda: check_signals(config.signals, config.reward),
    )
    args = trainer_args(config, run)
    args.trust_remote_code = config.model.trust_remote_code
    gather(
        lambda: check_options(args, context, peft=config.peft is not None),
        lambda: check_whole_groups(config.reward, args),
    )
    check_start(config)
    tokenizer = open_tokenizer(config.model)
    data = load_prompts(config, args, run, tokenizer, common_context(context, config.reward))
    check_groups(len(data.train), args)
    if dry_run:
        dry_report(config, run, args)
        return
    order = plan_order(config, data, "prompts", tokenizer, run, args)
    scorer = open_rewards(config.reward)
    with loading(config.model.path):
        model = load_causal_lm(config.model.path, **model_kwargs(config.model))
    grown = match_embeddings(model, tokenizer)
    disable_dropout(model)
    check_padding(model, tokenizer)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = end_ids(model, tokenizer)  # TRL ends answers there
    lineage(config, run)
    if args.beta and config.peft is None:
        name_reference(model, config, args, run, grown=grown)
    freeze(model, config.model.freeze)
    source = sft_source(tokenizer, None, model.device, step_rows(args))
    guards = build_guards(config.guards, model, source, config.model.path, run)
    per_rollout = args.steps_per_generation * args.num_iterations / args.gradient_accumulation_steps
    reward = TRLReward(scorer, per_rollout)
    adapter = (
        peft_config(config.peft.method, config.peft.kwargs, "CAUSAL_LM") if config.peft else None
    )
    evaluated = data.validation if args.eval_strategy != "no" else None
    if evaluated is None:
        args.eval_strategy = "no"
    trainer = build_trainer(
        trainer_class,
        model=model,
        reward_funcs=[reward],
        args=args,
        train_dataset=data.train,
        eval_dataset=evaluated,
        processing_class=tokenizer,
        peft_config=adapter,
        guards=guards,
        order=order,
    )
    trainer.scorer, reward.learning = scorer, lambda: bool(trainer.model.training)
    if trainer.accelerator.num_processes > 1:
        scorer.reduce = lambda value: trainer.accelerator.reduce(
            value.to(trainer.args.device), reduction="sum"
        )
    share_in_trl(trainer, config.model.prefix_sharing, run, resume=resume)
    check_reference(trainer, tokenizer, data.train["prompt"][:4])
    sampler = TransformersSampler(
        trainer.model, tokenizer, args.max_completion_length, temperature=args.temperature, seed=0
    )
    shown = data.validation if data.validation is not None else data.train
    whole = not (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled)  # never from shards
    looks = whole and first_process()
    if looks and not (resume and read_jsonl(run.path / "samples.jsonl")):
        write_samples(run, "before", show_samples(sampler, shown, scorer, args.num_generations))
    train(trainer, config, run, resume=resume)
    settle_guards(guards, trainer.model, run)
    save_model(trainer.model, tokenizer, run.model)
    finish_guards(guards, config.guards, trainer, trainer.model, source, data.train, run)
    if looks:  # last: a reward server that fails now takes nothing away that was trained
        write_samples(run, "after", show_samples(sampler, shown, scorer, args.num_generations))
    run.finish(steps=trainer.state.global_step)


def load_prompts(
    config: GroupedStage,
    args: Any,
    run: Run,
    tokenizer: PreTrainedTokenizerBase,
    context: int | None,
) -> Splits:
    """The prompts that leave room for an answer in the context of policy and reward models.

    Raises:
        DataError: see `load_data`.
    """
    room = None if context is None else context - args.max_completion_length
    try:
        return load_data(config, "prompts", run, tokenizer, max_length=room, context=context)
    except DataError as error:
        if "overlong" not in str(error):
            raise
        raise DataError(
            f"{error} Here that length is the shortest context, {context}, less "
            f"trainer.max_completion_length={args.max_completion_length}, which can be lowered."
        ) from error


def lineage(config: GroupedStage, run: Run) -> None:
    """Note what the run is made from."""
    run.add_parent("model", config.model.path, fingerprint=fingerprint(config.model.path))
    for section in config.reward:
        for path in models_of(section):
            run.add_parent("reward", path, fingerprint=fingerprint(path))


def name_reference(
    model: PreTrainedModel, config: GroupedStage, args: Any, run: Run, *, grown: bool
) -> None:
    """Let TRL load the policy as it is now for its reference.

    TRL reads the reference from the directory that the policy's configuration names. An adapter's
    directory, or one whose vocabulary had to grow, does not hold the policy that training starts
    from: that one is written into the run, and named instead.
    """
    if config.model.revision:
        args.model_init_kwargs = {"revision": config.model.revision}
    if not (grown or (Path(config.model.path) / "adapter_config.json").is_file()):
        return
    folder = run.shared / "reference"
    with args.main_process_first(desc="the reference"), disk_errors(run.path):
        if args.process_index == 0:
            model.save_pretrained(folder)
    model.config._name_or_path = model.name_or_path = str(folder)
    args.model_init_kwargs = None
