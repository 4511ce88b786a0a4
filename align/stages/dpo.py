"""Direct preference optimisation: `align dpo`. TRL's trainer and loss types, with guards.

The reference is a snapshot of the start policy; before training the two are compared, because a
margin that does not start at 0 means the wrong reference. Afterwards the change of the *chosen*
log-probability is reported: DPO can win its margin while making both answers less likely.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset

from align.config.stages import DPOStage
from align.engine.head import completion_logprobs
from align.engine.soft_labels import has_soft_labels, refuse_soft_labels
from align.engine.trainers import DPOTrainer
from align.errors import ConfigError, ModelError, Problem
from align.run import Run, read_jsonl
from align.stages.common import (
    console,
    held_out,
    load_data,
    measure_held_out,
    open_tokenizer,
    save_model,
    seed_everything,
    trainer_args,
)
from align.stages.dryrun import context_of, dry_report
from align.stages.guard_memory import finish_guards, settle_guards
from align.stages.order import plan_order
from align.stages.order_checks import check_order
from align.stages.policy import open_policy
from align.stages.preflight import build_trainer, check_start, gather
from align.stages.reference import precompute_reference, sharded
from align.stages.sharing import share_in_trl
from align.stages.training import train
from feedback.agreement import wilson
from reward.preferences import SOFT_LABEL, is_tie

LOSS_TYPES = (
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
)
TOLERANCE = 1e-3  # nats per token between policy and reference at step 0, in float32


def run(config: DPOStage, run: Run, *, resume: bool = False, dry_run: bool = False) -> None:
    """Train a policy on preferences.

    Raises:
        AlignError: bad input of any kind, before the model loads wherever that is possible.
    """
    seed_everything(config.run.seed)
    gather(lambda: check_start(config), lambda: check_order(config))
    args = trainer_args(config, run, eval_strategy="epoch")
    gather(lambda: check_losses(args.loss_type), lambda: check_reference(args))
    if config.data.labels != "majority":
        refuse_soft_labels(args)
    tokenizer = open_tokenizer(config.model)
    data = load_data(
        config,
        "preference",
        run,
        tokenizer,
        max_length=args.max_length,
        context=context_of(config.model.path),
    )
    if has_soft_labels(data):
        refuse_soft_labels(args)
    if data.validation is None:
        args.eval_strategy = "no"
    if dry_run:
        dry_report(config, run, args)
        return
    order = plan_order(config, data, "preference", tokenizer, run, args)
    policy = open_policy(config, run, tokenizer, args)
    guards = policy.guards
    before = args.precompute_ref_log_probs and not sharded(args)
    if before:
        args.precompute_ref_log_probs = False
    trainer = build_trainer(
        DPOTrainer,
        model=policy.model,
        ref_model=policy.reference,
        args=args,
        train_dataset=data.train,
        eval_dataset=held_out(data),
        processing_class=tokenizer,
        peft_config=policy.adapter,
        guards=guards,
        order=order,
    )
    share_in_trl(trainer, config.model.prefix_sharing, run, resume=resume)
    if not resume:
        check_margin(trainer)
    if before:
        precompute_reference(trainer, config)
    prepared: Any = trainer.eval_dataset or {}
    trainer.eval_dataset = prepared.get("validation")
    train(trainer, config, run, resume=resume)
    settle_guards(guards, trainer.model, run)
    warn_of_lost_likelihood(run)
    measured = leave_ties_out(measure_held_out(trainer, prepared), prepared)
    results = {"steps": trainer.state.global_step, **measured}
    save_model(trainer.model, tokenizer, run.model)
    finish_guards(guards, config.guards, trainer, trainer.model, policy.source, data.train, run)
    run.finish(**results)


def check_losses(names: list[str]) -> None:
    """TRL looks a loss type up in the first step, after everything is loaded; here it is first.

    Raises:
        ConfigError: a name that TRL does not know.
    """
    unknown = [name for name in names if name not in LOSS_TYPES]
    if unknown:
        near = difflib.get_close_matches(unknown[0], LOSS_TYPES, n=1)
        fix = f"did you mean {near[0]}?" if near else f"use {', '.join(LOSS_TYPES)}."
        what = f"{unknown[0]!r} is no loss type."
        raise ConfigError([Problem("trainer.loss_type", what, fix)])


def check_reference(args: Any) -> None:
    """Refuse a reference that moves and is computed once.

    Raises:
        ConfigError: both are asked for.
    """
    if args.precompute_ref_log_probs and args.sync_ref_model:
        what = "is computed once, and sync_ref_model moves the reference."
        fix = "set one of the two to false."
        raise ConfigError([Problem("trainer.precompute_ref_log_probs", what, fix)])


def leave_ties_out(results: dict[str, Any], prepared: Mapping[str, Dataset]) -> dict[str, Any]:
    """Accuracies with the interval of the pairs they count: those that have a better answer.

    Args:
        results: of `measure_held_out`, whose intervals count every row.
        prepared: the held-out rows by split.
    """
    for name, rows in prepared.items():
        found = results[name]
        if SOFT_LABEL not in rows.column_names or "accuracy" not in found:
            continue
        n = sum(not is_tie({SOFT_LABEL: label}) for label in rows[SOFT_LABEL])
        share = wilson(round(found["accuracy"] * n), n)
        found |= {"low": share.low, "high": share.high, "n": n, "undecided": len(rows) - n}
    return results


def check_margin(trainer: Any) -> float:
    """The largest log-probability difference of policy and reference on a first batch.

    Raises:
        ModelError: it is not 0, so DPO's margin would not start at 0.
    """
    count = min(4, len(trainer.train_dataset))
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(count)])
    device = trainer.model.device
    ids, attention = batch["input_ids"].to(device), batch["attention_mask"].to(device)
    mask = batch["completion_mask"][:, 1:].float().to(device)
    training = trainer.model.training
    trainer.model.eval()
    with torch.inference_mode():
        policy = completion_logprobs(trainer.model, ids, attention, mask)[0]
        if trainer.ref_model is None:
            with trainer.model.disable_adapter():
                reference = completion_logprobs(trainer.model, ids, attention, mask)[0]
        else:
            reference = completion_logprobs(trainer.ref_model, ids, attention, mask)[0]
    trainer.model.train(training)
    difference = float((policy - reference).abs().max())
    tolerance = TOLERANCE if trainer.model.dtype == torch.float32 else 0.1
    if difference > tolerance:
        raise ModelError(
            f"step-0 check: policy and reference differ by up to {difference:.4f} nats a token "
            f"(allowed {tolerance}), so DPO's margin does not start at 0. The reference must be a "
            "snapshot of the start policy; an adapter must start as the identity."
        )
    return difference


def warn_of_lost_likelihood(run: Run, nats: float = 5.0) -> None:
    """Report the change of the chosen answers' log-probability over training."""
    logged = [
        row["logps/chosen"]
        for row in read_jsonl(run.path / "metrics.jsonl")
        if row.get("logps/chosen") is not None
    ]
    if len(logged) < 2:
        return
    change = logged[-1] - logged[0]
    run.update(chosen_logprob_change=change)
    if change < -nats:
        message = (
            f"the chosen answers' log-probability fell by {-change:.1f} nats during training: DPO "
            "made good answers less likely too. Add an NLL term (trainer.loss_type=[sigmoid,sft]) "
            "or raise trainer.beta."
        )
        run.warn(message)
        console.print(f"[yellow]warning:[/] {message}")
