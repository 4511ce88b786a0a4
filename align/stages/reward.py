"""Reward modelling: `align reward`. Comparisons by Bradley-Terry through TRL, or another objective.

Rankings, ratings, steps, ties, several heads and further terms (`objective:`) train through
`align.engine.objective_trainer`. Ends by scoring samples of the reference policy, whose mean and
std are saved in the model: PPO needs them, and refuses a model without.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase

from align.config.objective import DATA
from align.config.stages import RewardStage
from align.data import Splits
from align.data.sampling import OrderPlan
from align.engine.guards.base import Batch
from align.engine.models import check_finite, freeze, load_reward_start, peft_config
from align.engine.soft_labels import has_soft_labels, refuse_soft_labels
from align.engine.trainers import RewardTrainer
from align.errors import ConfigError, DataError, Problem
from align.run import Run, fingerprint
from align.stages.common import (
    console,
    load_data,
    model_kwargs,
    open_tokenizer,
    save_model,
    seed_everything,
    trainer_args,
)
from align.stages.dryrun import context_of, dry_report
from align.stages.guard_memory import finish_guards, settle_guards
from align.stages.guard_source import Source, step_rows
from align.stages.guards import build_guards
from align.stages.normalisation import normalisation_policy, normalisation_prompts, normalise
from align.stages.order import plan_order
from align.stages.order_checks import check_order
from align.stages.preflight import build_trainer, check_model, check_start, gather, loading
from align.stages.reward_objective import (
    Trained,
    check_objective,
    describe,
    merged,
    train_objective,
)
from align.stages.reward_results import in_words, pair_results
from align.stages.sft import read_rows
from align.stages.sharing import share_in_trl
from align.stages.training import train
from reward.model import RewardModel
from reward.score import encode_answer, pool_scores


def run(config: RewardStage, run: Run, *, resume: bool = False, dry_run: bool = False) -> None:
    """Train a reward model and save it with its normalisation statistics.

    Raises:
        AlignError: bad input of any kind, before the model loads wherever that is possible.
    """
    seed_everything(config.run.seed)
    gather(
        lambda: check_start(config),
        lambda: check_unquantised(config),
        lambda: check_order(config),
    )
    patience = config.objective.patience
    args = trainer_args(config, run, **DEFAULTS | (EARLY if patience else {}))
    plain = config.objective.plain
    if config.data.labels != "majority" and plain:
        refuse_soft_labels(args)
    tokenizer = open_tokenizer(config.model)
    policy = normalisation_policy(config)
    check_model("normalisation.policy", policy)
    data = load_data(
        config,
        DATA[config.objective.kind],
        run,
        tokenizer,
        max_length=args.max_length,
        context=context_of(config.model.path),
    )
    plain = plain and not has_weights(data)  # TRL's loss knows none
    if has_soft_labels(data) and plain:
        refuse_soft_labels(args)
    if not plain:
        check_objective(config.objective, args, data)
    if data.validation is None:
        if config.objective.patience:
            raise ConfigError([Problem("objective.patience", NO_VALIDATION, "set a fraction.")])
        args.eval_strategy = "no"
    if patience is not None and never_ends(args, patience):
        said = (
            f"objective.patience={patience} cannot end this training early: it is evaluated "
            f"once an epoch, and has {args.num_train_epochs:g}. Fix: trainer.eval_strategy=steps "
            "with eval_steps and save_strategy=steps, or more trainer.num_train_epochs."
        )
        run.warn(said)
        console.print(f"warning: {said}", highlight=False)
    prompts = normalisation_prompts(
        (data.validation or data.train)["prompt"], tokenizer, policy, config.normalisation
    )
    if dry_run:
        dry_report(config, run, args)
        return
    order = plan_order(config, data, DATA[config.objective.kind], tokenizer, run, args)
    start = model_kwargs(config.model)
    start.pop("quantization")
    with loading(config.model.path):
        model = load_reward_start(
            config.model.path,
            tokenizer,
            seed=config.run.seed,
            heads=head_count(config, data),
            **start,
        )
    check_finite(model, config.model.path)
    run.add_parent("model", config.model.path, fingerprint=fingerprint(config.model.path))
    freeze(model, config.model.freeze)
    step = train_pairs if plain else train_objective
    trained = step(config, run, args, model, tokenizer, data, resume, order)
    describe(trained.model, config.objective, trained.notes)
    normalise(trained.model, tokenizer, policy, config.normalisation, prompts, run)
    save_model(trained.model, tokenizer, run.model, more=trained.save_more)
    trained.finish(run)
    results: dict[str, Any] = {"steps": trained.steps} | trained.notes
    for name, part in (("validation", data.validation), ("test", data.test)):
        if part is not None:
            results[name] = trained.measure(part)
            console.print(f"{name}: {in_words(results[name])}")
    run.finish(**results)


DEFAULTS = {  # a second epoch overfits; folds, members, `align active` and `selftrain` train alike
    "num_train_epochs": 1.0,
    "eval_strategy": "epoch",
    "learning_rate": 1e-5,
}
EARLY = {  # patience watches the whole held-out objective, and the best weights are kept
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    "greater_is_better": False,
    "save_strategy": "epoch",
    "restore_callback_states_from_checkpoint": True,  # how long nothing got better
}
NO_VALIDATION = "needs held-out data, and data.validation_fraction is 0."


def never_ends(args: Any, patience: int) -> bool:
    """Whether a training has too few evaluations for so much patience to run out."""
    by_epoch = str(getattr(args.eval_strategy, "value", args.eval_strategy)) == "epoch"
    return by_epoch and args.max_steps <= 0 and args.num_train_epochs <= patience + 1


def check_unquantised(config: RewardStage) -> None:
    """Refuse quantised weights: the head is trained whole, and the result is a whole model.

    Raises:
        ConfigError: `model.quantization` is set.
    """
    if config.model.quantization:
        what = f"{config.model.quantization}: a reward model is trained on whole weights."
        raise ConfigError([Problem("model.quantization", what, "leave it out; use peft.")])


def has_weights(data: Splits) -> bool:
    """Whether some training row counts more or less than another."""
    if "weight" not in data.train.column_names:
        return False
    return any(weight != 1 for weight in data.train["weight"][:])


def head_count(config: RewardStage, data: Splits) -> int:
    """Columns of scores: one for each aspect of a rating, else `objective.heads`."""
    if config.objective.kind == "ratings":
        return len(config.objective.aspects) or len(data.train.features["scores"])
    return config.objective.heads


def train_pairs(
    config: RewardStage,
    run: Run,
    args: Any,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Splits,
    resume: bool,
    order: OrderPlan | None = None,
) -> Trained:
    """Bradley-Terry on comparisons, by TRL's trainer."""
    source = pair_source(tokenizer, args.max_length, model.device, step_rows(args))
    guards = build_guards(config.guards, model, source, config.model.path, run)
    adapter = (
        peft_config(config.peft.method, config.peft.kwargs, "SEQ_CLS") if config.peft else None
    )
    trainer = build_trainer(
        RewardTrainer,
        model=model,
        args=args,
        train_dataset=data.train,
        eval_dataset=data.validation,
        processing_class=tokenizer,
        peft_config=adapter,
        guards=guards,
        order=order,
    )
    if config.objective.patience is not None:
        trainer.add_callback(EarlyStoppingCallback(config.objective.patience))
    share_in_trl(trainer, config.model.prefix_sharing, run, resume=resume)
    train(trainer, config, run, resume=resume)
    settle_guards(guards, trainer.model, run)
    whole, size = merged(trainer.model), args.per_device_eval_batch_size
    scorer = RewardModel(whole, tokenizer, batch_size=size)
    return Trained(
        whole,
        trainer.state.global_step,
        lambda rows: pair_results(rows, data.train, scorer),
        finish=partial(finish_guards, guards, config.guards, trainer, whole, source, data.train),
    )


def pair_nll(model: nn.Module, batch: Batch) -> Tensor:
    """-log sigmoid(r_chosen - r_rejected), summed over pairs."""
    return nn.functional.cross_entropy(*pair_logits(model, batch), reduction="sum")


def pair_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """A pair as a choice of two: scores (B, 2), chosen first, and labels (B,), all 0.

    Rows of the batch are chosen and rejected answers in turn.
    """
    scores = pool_scores(model, batch["input_ids"], batch["attention_mask"]).view(-1, 2)
    return scores, torch.zeros(len(scores), dtype=torch.long, device=scores.device)


def pair_source(
    tokenizer: Any, max_length: int | None, device: torch.device, rows: int = 8
) -> Source:
    """How guards read comparisons."""
    encode = partial(pair_examples, tokenizer=tokenizer, max_length=max_length, device=device)
    return Source(
        partial(read_rows, kind="preference"),
        encode,
        pair_nll,
        pair_logits,
        size=lambda batch: torch.tensor(len(batch["input_ids"]) // 2),
        step_rows=rows,
    )


def pair_examples(
    rows: Iterable[Mapping[str, Any]],
    *,
    tokenizer: Any,
    max_length: int | None,
    device: torch.device | str,
) -> Iterable[Batch]:
    """One pair a batch.

    Raises:
        DataError: a row is no comparison.
    """
    for row in rows:
        if "chosen" not in row:
            raise DataError(
                f"guards: a row of {', '.join(sorted(row))} is no comparison, and a reward model "
                "learns from comparisons. Fix: set `data`."
            )
        pair = [encode_answer(row["prompt"], row[k], tokenizer) for k in ("chosen", "rejected")]
        if max_length is not None and max(map(len, pair)) > max_length:
            continue
        padded = tokenizer.pad({"input_ids": pair}, padding_side="right", return_tensors="pt")
        yield {k: padded[k].to(device) for k in ("input_ids", "attention_mask")}
