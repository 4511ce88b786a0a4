"""`align feedback import | export`: judgements from files and into them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from align.errors import ConfigError, Problem
from align.feedback_cli.common import STORE, Store, err, out

if TYPE_CHECKING:
    from feedback.formats import Format

app = typer.Typer()


@app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="JSONL, JSON or CSV, also gzipped.")],
    format: Annotated[str, typer.Option(help="auto, or a format by name.")] = "auto",
    quarantine: Annotated[bool, typer.Option(help="Leave bad rows out, and say so.")] = False,
    store: Store = STORE,
) -> None:
    """Read judgements from a file (Label Studio, HH, PandaLM, TRL, CSV) into the store."""
    from feedback.formats import FORMATS, read_feedback
    from feedback.store import FeedbackStore

    if format != "auto" and format not in FORMATS:
        known = ", ".join(FORMATS)
        raise ConfigError([Problem("--format", f"{format!r} is unknown.", f"use {known}.")])
    found = read_feedback(
        file, cast("Format", format), bad_rows="quarantine" if quarantine else "strict"
    )
    with FeedbackStore(store) as opened:
        before = opened.counts().events
        opened.add_judgements(
            [read.judgement for read in found.reads],
            annotations=[read.annotation for read in found.reads],
            raws=[read.raw for read in found.reads],
        )
        new = opened.counts().events - before
    out.print(f"{file}: {len(found.reads)} judgements, {new} of them new", highlight=False)
    for row in found.bad:
        err.print(str(row), markup=False, highlight=False)


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="JSONL or CSV, also gzipped.")],
    store: Store = STORE,
) -> None:
    """Write every judgement that stands to a file that `import` reads back."""
    from feedback.formats import write_feedback
    from feedback.store import FeedbackStore

    with FeedbackStore(store, create=False) as opened:
        count = write_feedback(opened.judgements(), file)
    out.print(f"{file}: {count} judgements", highlight=False)
