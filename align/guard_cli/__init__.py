"""`align guard`: importances, buffers and merged models, made from files."""

from __future__ import annotations

import typer

from align.guard_cli import artefacts, merge

app = typer.Typer(
    help="Keep what was learnt: importances and buffers for later runs, merged models.",
    no_args_is_help=True,
)
for part in (artefacts, merge):
    app.add_typer(part.app)
