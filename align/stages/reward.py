"""Reward modelling: `align reward`. Pairwise Bradley-Terry through TRL; margins or soft labels.

Ends by scoring samples of the reference policy, whose mean and std are saved in the model: PPO
needs them, and refuses a model without. Held-out accuracy stands beside a length-only baseline.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from align.config.sections import DataSection, NormalisationSection
from align.config.stages import RewardStage
from align.data import load_splits
from align.data.tokens import encode_prompt
from align.engine.guards.base import Batch
from align.engine.models import check_finite, freeze, load_policy, load_reward_start, peft_config
from align.engine.soft_labels import has_soft_labels, refuse_soft_labels
from align.engine.trainers import RewardTrainer
from align.errors import ConfigError, Problem
from align.evaluate.reward_model import evaluate_reward_model
from align.rollout.transformers import TransformersSampler
from align.run import Run, append_jsonl, fingerprint
from align.stages.common import (
    build_guards,
    console,
    load_data,
    open_tokenizer,
    save_model,
    seed_everything,
    trainer_args,
)
from align.stages.dryrun import context_of, dry_report
from align.stages.preflight import build_trainer, check_model, check_start, loading
from align.stages.training import train
from reward.losses import preference_loss
from reward.model import RewardModel, fit_normalisation, write_normalisation
from reward.preferences import SOFT_LABEL, is_tie
from reward.score import encode_answer, pool_scores


def run(config: RewardStage, run: Run, *, resume: bool = False, dry_run: bool = False) -> None:
    """Train a reward model and save it with its normalisation statistics.

    Raises:
        AlignError: bad input of any kind, before the model loads wherever that is possible.
    """
    seed_everything(config.run.seed)
    check_start(config)
    args = trainer_args(config, run, eval_strategy="epoch", learning_rate=1e-5)
    if config.data.labels != "majority":
        refuse_soft_labels(args)
    tokenizer = open_tokenizer(config.model)
    policy = normalisation_policy(config)
    check_model("normalisation.policy", policy)
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
    prompts = normalisation_prompts(
        (data.validation or data.train)["prompt"], tokenizer, policy, config.normalisation
    )
    if dry_run:
        dry_report(config, run, args)
        return
    with loading(config.model.path):
        model = load_reward_start(
            config.model.path, tokenizer, seed=config.run.seed, dtype=config.model.dtype
        )
    check_finite(model, config.model.path)
    run.add_parent("model", config.model.path, fingerprint=fingerprint(config.model.path))
    freeze(model, config.model.freeze)
    guards = build_guards(
        config.guards,
        model,
        lambda path, count: pair_examples(path, count, tokenizer, args.max_length, model.device),
        pair_nll,
        run,
    )
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
    )
    train(trainer, config, run, resume=resume)
    trained = merged(trainer.model)
    normalise(trained, tokenizer, policy, config.normalisation, prompts, run)
    save_model(trained, tokenizer, run.model)
    results: dict[str, Any] = {"steps": trainer.state.global_step}
    for name, part in (("validation", data.validation), ("test", data.test)):
        if part is not None:
            scorer = RewardModel(trained, tokenizer, batch_size=args.per_device_eval_batch_size)
            results[name] = held_out(part, data.train, scorer, tokenizer)
            console.print(f"{name}: {in_words(results[name])}")
    run.finish(**results)


def normalisation_policy(config: RewardStage) -> str:
    """The policy whose samples set the scale, checked before anything is trained.

    Raises:
        ConfigError: the start model has no language-model head and no policy was named.
    """
    if config.normalisation.policy:
        return config.normalisation.policy
    try:
        names = AutoConfig.from_pretrained(config.model.path).architectures or []
    except (OSError, ValueError):
        return config.model.path  # the tokenizer's error says more
    if any("SequenceClassification" in name for name in names):
        raise ConfigError(
            [
                Problem(
                    "normalisation.policy",
                    f"{config.model.path} is a reward model and cannot write samples.",
                    "name the policy that PPO will start from.",
                )
            ]
        )
    return config.model.path


def normalisation_prompts(
    prompts: Iterable[Any],
    tokenizer: PreTrainedTokenizerBase,
    policy: str,
    settings: NormalisationSection,
) -> list[Any]:
    """Prompts that leave the policy room to answer: found before training, not hours later.

    Raises:
        ConfigError: no prompt leaves `normalisation.max_new_tokens` in the policy's context.
    """
    context = context_of(policy)
    room = None if context is None else context - settings.max_new_tokens
    kept = [p for p in prompts if room is None or len(encode_prompt(p, tokenizer)) <= room]
    if not kept:
        what = (
            f"{settings.max_new_tokens} leaves no prompt room in {policy}'s context of {context}."
        )
        raise ConfigError([Problem("normalisation.max_new_tokens", what, "lower it.")])
    return kept


def normalise(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    policy_path: str,
    settings: NormalisationSection,
    prompts: list[Any],
    run: Run,
) -> None:
    """Score samples of the policy and keep mean and std in the model."""
    policy, _, policy_tokenizer = load_policy(policy_path, with_reference=False)
    if policy_tokenizer.chat_template is None:
        policy_tokenizer.chat_template = tokenizer.chat_template
    run.add_parent("reference", policy_path, fingerprint=fingerprint(policy_path))
    sampler = TransformersSampler(
        policy,
        policy_tokenizer,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=run.record["seed"],
    )
    chosen = [prompts[i % len(prompts)] for i in range(settings.prompts)]
    (run.path / "samples.jsonl").unlink(missing_ok=True)  # of a run that ended right here
    rollout = sampler(chosen)
    scores = RewardModel(model, tokenizer).score(rollout.prompts, rollout.completions)
    statistics = fit_normalisation(scores, policy_path)
    write_normalisation(model, statistics)
    for prompt, completion, score in list(
        zip(rollout.prompts, rollout.completions, scores, strict=True)
    )[:20]:
        append_jsonl(
            run.path / "samples.jsonl",
            {"prompt": prompt, "completions": {"policy": completion}, "scores": {"policy": score}},
        )
    run.update(normalisation=vars(statistics))


def held_out(
    rows: Dataset, fit_rows: Dataset, scorer: RewardModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """Accuracy, log-loss and calibration on held-out pairs beside a length-only rule.

    Pairs whose soft label is one half have no better answer: they are left out (`undecided` counts
    them), but for `soft_log_loss`, the cross-entropy of all pairs with their soft labels.
    """

    def score(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        return scorer.score(prompts, completions)

    pairs, labels = _decided(rows)
    results: dict[str, Any] = {"n": 0}
    if pairs:
        fitted = _decided(fit_rows)[0] or None
        results = evaluate_reward_model(pairs, score, fit_rows=fitted).as_dict()
    if labels is not None:
        chosen, rejected = (score(rows["prompt"], rows[name]) for name in ("chosen", "rejected"))
        margins = torch.tensor(chosen).double() - torch.tensor(rejected).double()
        loss = preference_loss(margins, torch.tensor(labels).double()).mean()
        results |= {"soft_log_loss": float(loss), "undecided": len(rows) - len(pairs)}
    return results


def in_words(results: dict[str, Any]) -> str:
    """The accuracy of held-out pairs on one line."""
    undecided = f", {results['undecided']} ties left out" if results.get("undecided") else ""
    if not results["n"]:
        return f"no pair has a better answer{undecided}"
    interval = f"[{results['low']:.3f}, {results['high']:.3f}]"
    return f"accuracy {results['accuracy']:.3f} {interval}, n = {results['n']}{undecided}"


def _decided(rows: Dataset) -> tuple[list[dict[str, Any]], list[float] | None]:
    """Pairs that have a better answer, without the column of soft labels; and that column."""
    pairs = [
        {name: value for name, value in row.items() if name != SOFT_LABEL}
        for row in rows
        if not is_tie(row)
    ]
    return pairs, rows[SOFT_LABEL][:] if SOFT_LABEL in rows.column_names else None


def merged(model: Any) -> PreTrainedModel:
    """A reward model without its adapter wrapper, so that it is a standard transformers model."""
    if not hasattr(model, "merge_and_unload"):
        return model
    whole = model.merge_and_unload()
    whole.config.get_text_config().pad_token_id = model.config.get_text_config().pad_token_id
    return whole


def pair_nll(model: nn.Module, batch: Batch) -> Tensor:
    """-log sigmoid(r_chosen - r_rejected) of one pair laid out as two rows."""
    chosen, rejected = pool_scores(model, batch["input_ids"], batch["attention_mask"])
    return -nn.functional.logsigmoid(chosen - rejected)


def pair_examples(
    path: str, count: int, tokenizer: Any, max_length: int | None, device: torch.device
) -> Iterable[Batch]:
    """One pair a batch, for a Fisher."""
    section = DataSection.model_validate({"train": path, "validation_fraction": 0.0})
    rows = load_splits(section, "preference").train
    for row in rows.select(range(min(count, len(rows)))):
        pair = [encode_answer(row["prompt"], row[k], tokenizer) for k in ("chosen", "rejected")]
        if max_length is not None and max(map(len, pair)) > max_length:
            continue
        padded = tokenizer.pad({"input_ids": pair}, padding_side="right", return_tensors="pt")
        yield {k: padded[k].to(device) for k in ("input_ids", "attention_mask")}
