"""`align reward CONFIG` trains a reward model; `align reward serve | ...` uses trained ones."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from align.reward_cli import average, calibrate, evaluate, score, serve

TRAIN = "train"


class StageGroup(TyperGroup):
    """Takes a first argument that is no sub-command for the configuration to train with."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the training command in where none is named."""
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            args = [TRAIN, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=StageGroup,
    subcommand_metavar="CONFIG [OVERRIDES]... | COMMAND ...",
    help="Train a reward model on comparisons, and normalise it over policy samples.\n\n"
    "`align reward CONFIG.yaml` is short for `align reward train CONFIG.yaml`.",
)
for part in (serve, score, evaluate, calibrate, average):
    app.add_typer(part.app)
