"""Supervised fine-tuning: `align sft`. Text, prompt-completion or conversations through TRL."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from align.config.sections import DataSection
from align.config.stages import SFTStage
from align.data import load_splits
from align.data.tokens import encode_pairs, encode_text
from align.engine.guards.base import Batch
from align.engine.models import freeze, load_causal_lm, peft_config
from align.engine.tokenizer import match_embeddings
from align.engine.trainers import SFTTrainer
from align.run import Run, fingerprint
from align.stages.common import (
    build_guards,
    held_out,
    load_data,
    measure_held_out,
    model_kwargs,
    open_tokenizer,
    save_model,
    seed_everything,
    trainer_args,
)
from align.stages.dryrun import context_of, dry_report
from align.stages.order import plan_order
from align.stages.order_checks import check_order
from align.stages.preflight import build_trainer, check_start, gather, loading
from align.stages.sharing import share_in_trl
from align.stages.training import train


def run(config: SFTStage, run: Run, *, resume: bool = False, dry_run: bool = False) -> None:
    """Fine-tune a causal language model.

    Raises:
        AlignError: bad input of any kind, before the model loads wherever that is possible.
    """
    seed_everything(config.run.seed)
    gather(lambda: check_start(config), lambda: check_order(config))
    args = trainer_args(config, run, eval_strategy="epoch")
    tokenizer = open_tokenizer(config.model)
    # Packing that splits documents keeps long ones; everything else drops what does not fit.
    splits_long = args.packing and args.packing_strategy in ("bfd_split", "wrapped")
    limit = None if splits_long else args.max_length
    context = None if splits_long else context_of(config.model.path)
    data = load_data(config, "sft", run, tokenizer, max_length=limit, context=context)
    if data.validation is None:
        args.eval_strategy = "no"
    if dry_run:
        dry_report(config, run, args)
        return
    order = plan_order(config, data, "sft", tokenizer, run, args)
    with loading(config.model.path):
        model = load_causal_lm(config.model.path, **model_kwargs(config.model))
    match_embeddings(model, tokenizer)
    run.add_parent("model", config.model.path, fingerprint=fingerprint(config.model.path))
    freeze(model, config.model.freeze)
    guards = build_guards(
        config.guards,
        model,
        lambda path, count: sft_examples(path, count, tokenizer, args.max_length, model.device),
        sequence_nll,
        run,
    )
    adapter = (
        peft_config(config.peft.method, config.peft.kwargs, "CAUSAL_LM") if config.peft else None
    )
    # TRL tokenises what its constructor is given: the test rows pass through it too.
    trainer = build_trainer(
        SFTTrainer,
        model=model,
        args=args,
        train_dataset=data.train,
        eval_dataset=held_out(data),
        processing_class=tokenizer,
        peft_config=adapter,
        guards=guards,
        order=order,
    )
    prepared: Any = trainer.eval_dataset or {}
    trainer.eval_dataset = prepared.get("validation")
    share_in_trl(trainer, config.model.prefix_sharing, run, resume=resume)
    train(trainer, config, run, resume=resume)
    results = {"steps": trainer.state.global_step, **measure_held_out(trainer, prepared)}
    save_model(trainer.model, tokenizer, run.model)
    run.finish(**results)


def sequence_nll(model: nn.Module, batch: Batch) -> Tensor:
    """Summed negative log-likelihood of the labelled tokens of one example."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels = batch["labels"][:, 1:]
    return nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="sum"
    )


def sft_examples(
    path: str, count: int, tokenizer: Any, max_length: int | None, device: torch.device
) -> Iterable[Batch]:
    """Batches of one example each, for a Fisher: only completions are labelled."""
    section = DataSection.model_validate({"train": path, "validation_fraction": 0.0})
    rows = load_splits(section, "sft").train
    for row in rows.select(range(min(count, len(rows)))):
        if "text" in row:
            ids, prompt = encode_text(row["text"], tokenizer), 0
        else:
            ((head, tail),) = encode_pairs([row["prompt"]], [row["completion"]], tokenizer)
            ids, prompt = head + tail, len(head)
        ids = ids[:max_length]
        tokens = torch.tensor([ids], device=device)
        labels = tokens.clone()
        labels[:, :prompt] = -100
        yield {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "labels": labels,
        }
