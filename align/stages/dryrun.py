"""What `--dry-run` shows: data, tokens, memory and length of the run; nothing is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from transformers import AutoConfig

from align.config.stages import GRPOStage, PPOStage, RLOOStage, TrainingStage
from align.engine.checkpoint import check_space
from align.engine.memory import from_config
from align.engine.models import peft_config
from align.run import Run


def context_of(path: str | Path) -> int | None:
    """The context length of a model in tokens, from its configuration alone; None if unknown."""
    try:
        config = AutoConfig.from_pretrained(str(path)).get_text_config()
    except (OSError, ValueError):
        return None
    length = getattr(config, "max_position_embeddings", None)
    return int(length) if length else None


def dry_report(config: TrainingStage, run: Run, args: Any) -> None:
    """Estimate memory, check the disk, and say that nothing was trained."""
    from align.stages.common import console

    grouped = isinstance(config, GRPOStage | RLOOStage)  # steps like SFT's, beside a reference
    two_sided = config.stage in ("online_dpo", "kto")  # as many sequences as pairs have
    alike = "sft" if grouped else "dpo" if two_sided else config.stage
    stage = cast(Literal["sft", "reward", "dpo", "ppo"], alike)
    # Counted on a language model, whose size a classifier's hardly differs from.
    peft = config.peft
    adapter = peft_config(peft.method, peft.kwargs, "CAUSAL_LM") if peft else None
    estimate = from_config(
        config.model.path,
        stage,
        args.per_device_train_batch_size,
        getattr(args, "max_length", None) or context_of(config.model.path) or 1024,
        dtype="float32" if config.model.dtype == "auto" else config.model.dtype,
        adapter=adapter,
        frozen=config.model.freeze or None,
        checkpointing=bool(args.gradient_checkpointing),
        autocast=bool(args.bf16 or args.fp16),
        critic=config.value.backbone if isinstance(config, PPOStage) else "none",
    )
    if grouped and args.beta and not peft:
        estimate = replace(estimate, reference=estimate.weights)
    console.print(estimate.render())
    check_space(run.path, 0)
    run.finish(dry_run=True, memory=estimate.as_dict())
    console.print(f"dry run of {config.stage}: configuration and data are fine; nothing trained.")
