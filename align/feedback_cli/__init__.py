"""`align feedback`: people's judgement in and out. Parses, calls `feedback`, prints the result."""

from __future__ import annotations

import typer

from align.feedback_cli import files, pull, push, quality, server

app = typer.Typer(help="What people say: Label Studio, agreement, files.", no_args_is_help=True)
for part in (server, push, pull, quality, files):
    app.add_typer(part.app)
