"""DPO's reference, computed once: `trainer.precompute_ref_log_probs`.

TRL does this while its trainer is built, over padded rows. Here it happens after the reference
shares prefixes and reads labelled tokens only, and what came out is kept in a cache for later
epochs and runs (`align.engine.reference_cache`); the reference then leaves the memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader

import align
from align.config.stages import DPOStage
from align.engine.reference_cache import (
    cache_folder,
    read_reference,
    reference_key,
    write_reference,
)
from align.processes import first_process
from align.run import fingerprint
from align.stages.common import console

IDS = ("prompt_ids", "chosen_ids", "rejected_ids")


def sharded(args: Any) -> bool:
    """Whether DeepSpeed or FSDP place the models, so that TRL has to compute the reference."""
    launched = (os.environ.get(f"ACCELERATE_USE_{name}") for name in ("DEEPSPEED", "FSDP"))
    return bool(args.deepspeed or args.fsdp or "true" in launched)


def precompute_reference(trainer: Any, config: DPOStage) -> None:
    """Give every row of a DPO trainer its reference's log-probabilities, and drop the reference.

    Args:
        trainer: built without `precompute_ref_log_probs`, its models ready to be run.
        config: what the log-probabilities depend on.
    """
    known = fingerprint(config.model.path)  # "none" of a hub id: kept for no other run
    trainer.train_dataset = _with_reference(trainer, trainer.train_dataset, "train", config, known)
    held = trainer.eval_dataset
    if isinstance(held, dict):
        trainer.eval_dataset = {
            name: _with_reference(trainer, rows, name, config, known) for name, rows in held.items()
        }
    elif held is not None:
        trainer.eval_dataset = _with_reference(trainer, held, "held-out", config, known)
    trainer.precompute_ref_logps = True
    trainer.ref_model = None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _with_reference(
    trainer: Any, rows: Dataset, name: str, config: DPOStage, known: str
) -> Dataset:
    args = trainer.args
    size = args.precompute_ref_batch_size or args.per_device_train_batch_size
    parts = [
        align.__version__,
        known,
        config.model.model_dump_json(),
        f"{torch.__version__} {args.device.type} {args.bf16} {args.fp16} {size} {args.world_size}",
        f"{args.max_length} {args.truncation_mode} {args.ld_alpha}",
    ]
    key = reference_key(parts, ([row[one] for one in IDS] for row in rows))
    file = cache_folder() / f"{key}.safetensors"
    # One process decides for all: another may not see the first's disk.
    kept = read_reference(file, len(rows)) if known != "none" else None
    if args.world_size > 1:
        seen = torch.tensor(float(kept is not None), device=args.device)
        if float(trainer.accelerator.reduce(seen, reduction="sum")) < args.world_size:
            kept = None
    if kept is not None:
        console.print(f"reference of {name}: {len(rows)} rows from {file}", highlight=False)
    else:
        parts_of = list(_computed(trainer, rows, size))
        chosen, rejected = (torch.cat(side)[: len(rows)] for side in zip(*parts_of, strict=True))
        kept = chosen, rejected
        if known != "none" and first_process():
            write_reference(file, *kept)
    for side, values in zip(("chosen", "rejected"), kept, strict=True):
        rows = rows.add_column(f"ref_{side}_logps", values.tolist())
    return rows


def _computed(trainer: Any, rows: Dataset, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    loader = DataLoader(rows, batch_size=size, collate_fn=trainer.data_collator, shuffle=False)
    loader = trainer.accelerator.prepare(loader)
    model = trainer.model if trainer.ref_model is None else trainer.ref_model
    training = model.training
    model.eval()
    for batch in loader:
        found = trainer.compute_ref_log_probs(model, batch)
        chosen, rejected = trainer.accelerator.gather_for_metrics(found)
        yield chosen.float().cpu(), rejected.float().cpu()
    model.train(training)
