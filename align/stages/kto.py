"""KTO on single answers marked good or bad: `align kto`. TRL's trainer and losses, with guards.

Thumbs of a feedback store, `prompt`, `completion`, `label` of a file, or comparisons, each of which
is a good answer and a bad one. Rows are put in random order once: KTO's KL term pairs each prompt
with its neighbour's answer, so that TRL goes through them as they stand, alike in every epoch.

Ethayarajh et al. 2024, "KTO: Model alignment as prospect theoretic optimization", equations 7, 8.
"""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl.data_utils import unpair_preference_dataset

from align.config.stages import KTOStage
from align.data import Splits
from align.engine.trainers import KTOTrainer
from align.errors import ConfigError, DataError, Problem
from align.run import Run
from align.stages.common import (
    held_out,
    load_data,
    measure_held_out,
    open_tokenizer,
    save_model,
    seed_everything,
    trainer_args,
)
from align.stages.dpo import check_margin
from align.stages.dryrun import context_of, dry_report
from align.stages.guard_memory import finish_guards, settle_guards
from align.stages.policy import open_policy
from align.stages.preflight import build_trainer, check_start, gather
from align.stages.sharing import share_in_trl
from align.stages.training import train
from reward.preferences import is_tie

CANNOT = "cannot serve"  # says the data layer of a format that holds something else
LOSS_TYPES = ("kto", "apo_zero_unpaired")
LOWEST, HIGHEST = 1.0, 4 / 3  # of the weights' ratio, equation 8


def run(config: KTOStage, run: Run, *, resume: bool = False, dry_run: bool = False) -> None:
    """Train a policy on answers marked good or bad.

    Raises:
        AlignError: bad input of any kind, before the model loads wherever that is possible.
    """
    seed_everything(config.run.seed)
    gather(lambda: check_start(config), lambda: check_rows(config))
    args = trainer_args(config, run, eval_strategy="epoch")
    gather(lambda: check_trainer(args))
    tokenizer = open_tokenizer(config.model)
    context = context_of(config.model.path)
    data = load_unpaired(config, run, tokenizer, max_length=args.max_length, context=context)
    if context is not None:  # another row's answer may be longer than its own
        args.max_length = min(args.max_length or context, context)
    if data.validation is None:
        args.eval_strategy = "no"
    if args.loss_type == "kto" and len(data.train) % args.per_device_train_batch_size == 1:
        run.warn("the last row is left out: alone, it has no neighbour for the KL term.")
        data.train = data.train.select(range(len(data.train) - 1))
    weigh(data.train, args, run)
    if dry_run:
        dry_report(config, run, args)
        return
    policy = open_policy(config, run, tokenizer, args)
    guards = policy.guards
    trainer = build_trainer(
        KTOTrainer,
        model=policy.model,
        ref_model=policy.reference,
        args=args,
        train_dataset=data.train,
        eval_dataset=held_out(data),
        processing_class=tokenizer,
        peft_config=policy.adapter,
        guards=guards,
    )
    share_in_trl(trainer, config.model.prefix_sharing, run, resume=resume)
    if not resume and not args.precompute_ref_log_probs:
        check_margin(trainer)
    prepared: Any = trainer.eval_dataset or {}
    trainer.eval_dataset = prepared.get("validation")
    train(trainer, config, run, resume=resume)
    settle_guards(guards, trainer.model, run)
    results = {"steps": trainer.state.global_step, **measure_held_out(trainer, prepared)}
    save_model(trainer.model, tokenizer, run.model)
    good = data.train.filter(lambda row: row["label"])  # what must stay likely
    finish_guards(guards, config.guards, trainer, trainer.model, policy.source, good, run)
    run.finish(**results)


def check_rows(config: KTOStage) -> None:
    """Refuse an order of rows, since the KL term needs the one that TRL pairs them in.

    Raises:
        ConfigError: a curriculum or a sampler is set, or labels that are neither good nor bad.
    """
    given = {"data.curriculum": config.data.curriculum, "data.sampler": config.data.sampler}
    what = "another order of rows would part each prompt from its neighbour's answer."
    problems = [Problem(key, what, "leave it out.") for key, value in given.items() if value]
    if config.data.batches != "random":
        what = "the KL term wants another prompt's answer, and these batches hold one prompt's."
        problems.append(Problem("data.batches", what, "leave it out."))
    if config.data.labels != "majority":
        what = f"{config.data.labels} makes soft labels, and KTO's rows are good or bad."
        problems.append(Problem("data.labels", what, "leave it out, or use `align dpo`."))
    if problems:
        raise ConfigError(problems)


def check_trainer(args: Any) -> None:
    """What TRL refuses once everything is loaded, or computes wrongly.

    Raises:
        ConfigError: with every problem found.
    """
    problems = []
    if args.loss_type not in LOSS_TYPES:
        what = f"{args.loss_type!r} is no loss type."
        problems.append(Problem("trainer.loss_type", what, f"use {' or '.join(LOSS_TYPES)}."))
    if args.loss_type == "kto":
        if args.per_device_train_batch_size < 2:
            what = "the KL term pairs each prompt with another row's answer of the same batch."
            key = "trainer.per_device_train_batch_size"
            problems.append(Problem(key, what, "at least 2, and rather 4 or more."))
        if args.train_sampling_strategy != "sequential":
            what = "the KL term needs the rows in the order that they were paired in."
            fix = "leave it out: rows are shuffled once, by run.seed."
            problems.append(Problem("trainer.train_sampling_strategy", what, fix))
    if args.precompute_ref_log_probs and args.sync_ref_model:
        what = "is computed once, and sync_ref_model moves the reference."
        fix = "set one of the two to false."
        problems.append(Problem("trainer.precompute_ref_log_probs", what, fix))
    for name in ("desirable_weight", "undesirable_weight"):
        if not getattr(args, name) > 0:
            what = f"{getattr(args, name)} is not above 0."
            problems.append(Problem(f"trainer.{name}", what, "1 counts every row alike."))
    if problems:
        raise ConfigError(problems)


def load_unpaired(
    config: KTOStage,
    run: Run,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    context: int | None,
) -> Splits:
    """Marked answers in random order; where the sources hold comparisons, two of each.

    Raises:
        DataError: the sources hold neither, or every training row has the same label.
    """
    limits = {"max_length": max_length, "context": context}
    try:
        data = load_data(config, "unpaired", run, tokenizer, **limits)
    except DataError as error:
        if CANNOT not in str(error):
            raise
        try:
            data = load_data(config, "preference", run, tokenizer, **limits)
        except DataError as other:
            if CANNOT not in str(other):
                raise
            raise error from None  # neither, or some of each
    for name in ("train", "validation", "test"):
        rows = getattr(data, name)
        if rows is None:
            continue
        decided = leave_undecided_out(rows)
        if len(decided) < len(rows):
            run.warn(f"{name}: {len(rows) - len(decided)} comparisons name no better answer.")
        if not len(decided):
            raise DataError(f"{name}: no comparison names a better answer. Fix: add rows that do.")
        setattr(data, name, unpaired(decided, config.run.seed))
    labels = set(data.train["label"])
    if len(labels) == 1:
        said = "good" if labels == {True} else "bad"
        fix = "add rows of the other label, or use `align sft` on good answers alone."
        raise DataError(f"every training row is marked {said}, and KTO needs both. Fix: {fix}")
    return data


def leave_undecided_out(rows: Dataset) -> Dataset:
    """Comparisons without ties and without those of weight 0; of others everything."""
    return rows.filter(lambda row: not is_tie(row) and row.get("weight") != 0)


def unpaired(rows: Dataset, seed: int) -> Dataset:
    """Rows of `prompt`, `completion` and `label`, shuffled; of a comparison two."""
    if "chosen" in rows.column_names:
        pairs = rows.select_columns(["prompt", "chosen", "rejected"])
        rows = unpair_preference_dataset(pairs)
    return rows.select_columns(["prompt", "completion", "label"]).shuffle(seed=seed)


def weigh(rows: Dataset, args: Any, run: Run) -> None:
    """Count labels; warn where their weights leave equation 8's range, 1 to 4/3."""
    good = sum(rows["label"])
    bad = len(rows) - good
    ratio = args.desirable_weight * good / (args.undesirable_weight * bad)
    run.update(desirable=good, undesirable=bad, weight_ratio=ratio)
    if LOWEST - 0.01 <= ratio <= HIGHEST + 0.01:  # weights are written with few digits
        return
    key, value = "undesirable_weight", args.desirable_weight * good / bad
    if ratio < LOWEST:
        key, value = "desirable_weight", args.undesirable_weight * bad / good
    run.warn(
        f"{good} good answers and {bad} bad ones weigh {ratio:.3g} to 1, and KTO wants between 1 "
        f"and 4/3 to 1 (equation 8 of arXiv 2402.01306). Fix: set trainer.{key}={value:.3g}."
    )
