"""`align feedback import | export`: judgements from files and into them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from align.errors import ConfigError, DataError, Problem
from align.feedback_cli.common import STORE, Store, err, say

if TYPE_CHECKING:
    from feedback.formats import Format

app = typer.Typer()


@app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="JSONL, JSON or CSV, also gzipped.")],
    format: Annotated[str, typer.Option(help="auto, or a format by name.")] = "auto",
    quarantine: Annotated[bool, typer.Option(help="Leave bad rows out, and say so.")] = False,
    gold: Annotated[
        bool, typer.Option(help="The file holds answers known beforehand: hidden gold questions.")
    ] = False,
    store: Store = STORE,
) -> None:
    """Read judgements from a file (Label Studio, HH, PandaLM, TRL, CSV) into the store."""
    from feedback.formats import FORMATS, read_feedback
    from feedback.importing import import_feedback
    from feedback.store import FeedbackStore

    if format != "auto" and format not in FORMATS:
        known = ", ".join(FORMATS)
        raise ConfigError([Problem("--format", f"{format!r} is unknown.", f"use {known}.")])
    found = read_feedback(
        file, cast("Format", format), bad_rows="quarantine" if quarantine else "strict"
    )
    if not found.rows:
        raise DataError(f"{file}: holds no rows. Fix: check that it was written to the end.")
    with FeedbackStore(store) as opened:
        new = import_feedback(opened, found, gold=gold)
    counts = f"{len(found.reads)} judgements, {new.judgements} of them new"
    if found.skips:
        counts += f"; {len(found.skips)} skips, {new.skips} of them new"
    if found.bad:
        counts += f"; {len(found.bad)} set aside"
    say(f"{file}: {counts}")
    for row in found.bad:
        say(str(row), err)


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="JSONL or CSV, also gzipped.")],
    store: Store = STORE,
) -> None:
    """Write all that stands, adjudications and skips too, to a file that `import` reads back."""
    from feedback.formats import write_standing
    from feedback.store import FeedbackStore

    with FeedbackStore(store, create=False) as opened:
        standing = opened.standing()
    count = write_standing(standing, file)
    skips = sum(one.judgement is None for one in standing)
    said = f"{count - skips} judgements" + (f", {skips} skips" if skips else "")
    say(f"{file}: {said}")
