"""What `--dry-run` shows: data, tokens, memory and length of the run; nothing is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from align.config.stages import TrainingStage
from align.engine.checkpoint import check_space
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
    from align.engine.memory import from_config
    from align.stages.common import console

    estimate = from_config(
        config.model.path,
        stage=config.stage,
        batch=args.per_device_train_batch_size,
        length=getattr(args, "max_length", None) or context_of(config.model.path) or 1024,
        checkpointing=bool(args.gradient_checkpointing),
        peft=config.peft is not None,
    )
    console.print(estimate.render())
    check_space(run.path, 0)
    run.finish(dry_run=True, memory=estimate.as_dict())
    console.print(f"dry run of {config.stage}: configuration and data are fine; nothing trained.")
