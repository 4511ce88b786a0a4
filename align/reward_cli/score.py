"""`align reward score`: the answers of a Parquet file scored into another, resumable."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from align.errors import ConfigError

if TYPE_CHECKING:
    from reward.pool import Progress

app = typer.Typer()
err = Console(stderr=True, soft_wrap=True, highlight=False)
EVERY = 10.0  # seconds between two lines, where there is no terminal


@app.command()
def score(
    model: Annotated[str, typer.Argument(help="A reward model's directory, or a hub id.")],
    source: Annotated[
        Path, typer.Argument(help="A .parquet file, a folder of them, or .jsonl (.gz).")
    ],
    target: Annotated[Path, typer.Argument(help="The .parquet file to write.")],
    batch_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of a forward pass; shared prefixes count once.")
    ] = 2048,
    chunk_rows: Annotated[
        int, typer.Option(min=1, help="Rows held in memory, and lost by a process that is killed.")
    ] = 4096,
    raw: Annotated[bool, typer.Option("--raw", help="Raw scores, not normalised.")] = False,
    calibrated: Annotated[
        bool,
        typer.Option("--calibrated", help="Of pairs: P(chosen is better), as `calibrate` fit."),
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where it stopped.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace TARGET.")] = False,
) -> None:
    """Score the answers of a Parquet file: all its columns and `reward`, in the order of the file.

    Columns are prompt and completion; prompt and completions (a list); or chosen and rejected.
    With --calibrated pairs get `probability` by the state that `align reward calibrate` saved.
    """
    from reward.pool_parts import check_space, check_target, finished_before
    from reward.pool_source import open_source

    check_target(target, resume, overwrite)
    opened = open_source(source)
    if not finished_before(target, resume):
        check_space(target, opened.size())

    from align.quiet import quiet_libraries

    quiet_libraries()
    from align.stages.rewards import model_problems
    from reward.calibrate import load_calibration
    from reward.model import RewardModel
    from reward.pool import check_pairs, score_parquet
    from reward.posterior_reward import STATE

    problems = model_problems("MODEL", model, not raw, steps=False, otherwise="add --raw")
    if problems:
        raise ConfigError(problems)
    calibration = None
    if calibrated:
        check_pairs(opened)
        calibration = load_calibration(Path(model) / STATE)
    with showing(opened.rows, err) as progress:
        done = score_parquet(
            RewardModel.load(model, normalise=not raw),
            opened,
            target,
            batch_tokens=batch_tokens,
            chunk_rows=chunk_rows,
            resume=resume,
            overwrite=overwrite,
            calibration=calibration,
            progress=progress,
        )
    print(summary(done, target))


def summary(done: Progress, target: Path) -> str:
    """What was done, in a line."""
    parts = [f"{done.total} rows"]
    if done.resumed:
        parts.append(f"{done.resumed} of them by earlier processes")
    if done.answers:
        parts.append(f"{done.answers} answers scored in {done.seconds:.0f} s")
    if done.empty:
        parts.append(f"{done.empty} without a reward (no text, or longer than the context)")
    return f"{target}: {', '.join(parts)}"


@contextmanager
def showing(total: int, console: Console) -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal, a line now and then elsewhere: rows, rows a second, time left."""
    if not console.is_terminal:
        yield lines(console)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]} rows/s"))
    with Bar(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("rows", total=total, speed="-")

        def show(at: Progress) -> None:
            bar.update(task, completed=at.rows, speed=f"{at.rows_per_second:.1f}")

        yield show


def lines(console: Console) -> Callable[[Progress], None]:
    """A line at the first chunk, at the last, and between them at most every ten seconds."""
    last = 0.0

    def show(at: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if last and now - last < EVERY and at.rows < at.total:
            return
        last = now
        minutes, seconds = divmod(round(at.seconds_left), 60)
        console.print(
            f"{at.rows} of {at.total} rows, {at.rows_per_second:.1f} rows/s, "
            f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left"
        )

    return show
