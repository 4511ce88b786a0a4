"""Supervised fine-tuning: `align sft`. Text, prompt-completion or conversations through TRL."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn

from align.config.sections import DataSection
from align.config.stages import SFTStage
from align.data import load_splits
from align.data.rows import Kind
from align.data.tokens import encode_pairs, encode_text
from align.engine.guards.base import Batch
from align.engine.guards.fisher import IGNORED
from align.engine.models import freeze, load_causal_lm, peft_config
from align.engine.tokenizer import match_embeddings
from align.engine.trainers import SFTTrainer
from align.errors import DataError
from align.run import Run, fingerprint
from align.stages.common import (
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
from align.stages.guard_memory import finish_guards, settle_guards
from align.stages.guard_source import Source, step_rows
from align.stages.guards import build_guards
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
    source = sft_source(tokenizer, args.max_length, model.device, step_rows(args))
    guards = build_guards(config.guards, model, source, config.model.path, run)
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
    settle_guards(guards, trainer.model, run)
    results = {"steps": trainer.state.global_step, **measure_held_out(trainer, prepared)}
    save_model(trainer.model, tokenizer, run.model)
    finish_guards(guards, config.guards, trainer, trainer.model, source, data.train, run)
    run.finish(**results)


def sequence_nll(model: nn.Module, batch: Batch) -> Tensor:
    """Summed negative log-likelihood of the labelled tokens of a batch."""
    logits, labels = sequence_logits(model, batch)
    return nn.functional.cross_entropy(
        logits.float(), labels, ignore_index=IGNORED, reduction="sum"
    )


def sequence_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits (N, V) and labels (N,) of every next token of a batch; -100 where none trains."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()


def sft_source(
    tokenizer: Any, max_length: int | None, device: torch.device, rows: int = 8
) -> Source:
    """How guards read text, prompt-completion pairs and conversations; `rows` are a step's."""
    encode = partial(sft_examples, tokenizer=tokenizer, max_length=max_length, device=device)
    return Source(read_either, encode, sequence_nll, sequence_logits, step_rows=rows)


def read_either(path: str, columns: Mapping[str, str]) -> Dataset:
    """All rows of a file of text, completions or comparisons: a language model reads all of these.

    Raises:
        DataError: no row can be read as either.
    """
    try:
        return read_rows(path, columns, "sft")
    except DataError as error:
        try:
            return read_rows(path, columns, "preference")
        except DataError:
            raise error from None


def read_rows(path: str, columns: Mapping[str, str], kind: Kind) -> Dataset:
    """All rows of a file, of one kind; those that cannot be read are left out.

    Args:
        path: as in `data.train`.
        columns: ours: theirs.
        kind: what the stage reads.

    Raises:
        DataError: no row can be read.
    """
    source = {"path": path, "columns": dict(columns)}
    section = DataSection.model_validate(
        {"train": source, "validation_fraction": 0.0, "bad_rows": "quarantine"}
    )
    return load_splits(section, kind).train


def sft_examples(
    rows: Iterable[Mapping[str, Any]],
    *,
    tokenizer: Any,
    max_length: int | None,
    device: torch.device | str,
) -> Iterable[Batch]:
    """Batches of one example each, of which only completions are labelled.

    Of a comparison, which an earlier run may have kept, the chosen answer is what must stay likely.

    Raises:
        DataError: a row has no text and no answer.
    """
    for row in rows:
        answer = row.get("completion", row.get("chosen"))
        if "text" in row:
            ids, prompt = encode_text(row["text"], tokenizer), 0
        elif answer is not None and "prompt" in row:
            ((head, tail),) = encode_pairs([row["prompt"]], [answer], tokenizer)
            ids, prompt = head + tail, len(head)
        else:
            raise DataError(
                f"guards: a row of {', '.join(sorted(row))} holds no text and no answer to keep. "
                "Fix: name data with completions."
            )
        yield labelled(ids[:max_length], prompt, device)


def labelled(ids: list[int], prompt: int, device: torch.device | str) -> Batch:
    """Tokens as a batch of one row, of which those after the prompt are labelled."""
    tokens = torch.tensor([ids], device=device)
    labels = tokens.clone()
    labels[:, :prompt] = IGNORED
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}
