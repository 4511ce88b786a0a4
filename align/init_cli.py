"""`align init`: a fresh model and tokenizer, for machines without a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from align.quiet import quiet_libraries


def init(
    config: Annotated[
        Path, typer.Argument(help="Model config, e.g. configs/models/llama-6m.json.")
    ],
    data: Annotated[list[Path], typer.Option("--data", help="Text the tokenizer learns from.")],
    out: Annotated[Path, typer.Option("--out", help="Where the model goes.")],
    vocab_size: Annotated[int, typer.Option(help="Of the tokenizer.")] = 4096,
    chat_template: Annotated[str, typer.Option(help="Built-in name or .jinja file.")] = "chatml",
    seed: Annotated[int, typer.Option(help="Of the weights.")] = 42,
) -> None:
    """Make a fresh model and tokenizer from a config: for machines without a hub."""
    quiet_libraries()
    from align.engine.create import create_model

    print(
        create_model(
            config,
            out,
            tokenizer_data=data,
            vocab_size=vocab_size,
            chat_template=chat_template,
            seed=seed,
        )
    )
