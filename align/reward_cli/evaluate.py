"""`align reward evaluate`: a reward model or function on any labelled set."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from align.errors import AlignError, ConfigError, Problem
from align.reward_cli.serve import open_targets

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

    from align.evaluate.reward_report import RewardReport
    from align.evaluate.reward_sets import AnswerSet
    from reward.consistency import EditConsistency
    from reward.probing import ProbeReport

app = typer.Typer()


@app.command()
def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            help="A reward model's directory or module:function; NAME=TARGET names it.",
            metavar="MODEL_OR_FUNCTION",
        ),
    ],
    data: Annotated[
        str, typer.Argument(help="Labelled answers: a file, a folder, a hub id or a store's URL.")
    ],
    category: Annotated[
        str | None, typer.Option(help="Column that names a row's category.", metavar="COLUMN")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="A second reward, compared on the same rows.")
    ] = None,
    probes: Annotated[
        bool, typer.Option("--probes", help="Edit the best answers and see what they score then.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write everything as JSON.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page.")] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="OURS=THEIRS, such as prompt=question; repeatable.")
    ] = None,
    split: Annotated[str, typer.Option(help="Of a folder or hub dataset.")] = "train",
    limit: Annotated[int | None, typer.Option(min=1, help="The first rows only.")] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Set unusable rows aside and count them.")
    ] = False,
    probe_rows: Annotated[int, typer.Option(min=2, help="Answers that are probed, most.")] = 500,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers per call.")] = 256,
    level: Annotated[float, typer.Option(min=0.5, max=0.999, help="Of the intervals.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Of bootstrap and probes.")] = 0,
) -> None:
    """Measure a reward on labelled answers: accuracy by category, calibration, rankings, probes.

    Reward models are read with their raw scores, whose differences are log-odds.
    """
    from align.evaluate.reward_rows import read_labelled

    names = _columns(column or [])
    rows = read_labelled(
        data, category=category, columns=names, split=split, limit=limit, skip_bad=skip_bad
    )
    opened = open_targets([target, *([against] if against else [])], normalise=False)
    report = measure(
        opened,
        rows.sets,
        target=target,
        data=rows.source,
        rows=rows.rows,
        bad=rows.bad,
        probes=probes,
        probe_rows=probe_rows,
        batch_size=batch_size,
        level=level,
        seed=seed,
    )
    Console(markup=False, highlight=False).print(report.render())
    if json:
        report.save_json(json)
    if html:
        report.save_html(html)


def measure(
    rewards: Mapping[str, Callable[..., Any]],
    sets: Sequence[AnswerSet],
    *,
    target: str,
    data: str,
    rows: int,
    bad: Mapping[str, int],
    probes: bool = False,
    probe_rows: int = 500,
    batch_size: int = 256,
    level: float = 0.95,
    seed: int = 0,
) -> RewardReport:
    """Everything the command measures.

    Args:
        rewards: one or two by name; the second is what the first is compared with.
        sets: labelled answers.
        target: what was asked for, for the record.
        data: where the rows come from, for the record.
        rows: that were read.
        bad: rows set aside, by reason.
        probes: probe the first reward, too.
        probe_rows: answers that are probed, most.
        batch_size: answers per call.
        level: confidence level.
        seed: of bootstrap and probes.

    Raises:
        RewardError: a reward failed on the answers as they are.
        DataError: no set says that an answer is better.
    """
    from align.evaluate.reward_bench import evaluate_sets, score_sets
    from align.evaluate.reward_compare import compare_rewards
    from align.evaluate.reward_report import RewardReport

    scores = {name: score_sets(function, sets, batch_size) for name, function in rewards.items()}
    benches = [
        evaluate_sets(sets, found, name, level=level, seed=seed) for name, found in scores.items()
    ]
    (first, function), *_ = rewards.items()
    comparison = None
    if len(benches) > 1:
        one, two = scores.values()
        names = (benches[0].reward, benches[1].reward)
        comparison = compare_rewards(sets, one, two, names, level=level, seed=seed)
    probed, consistency, warnings = (
        _probe(function, sets, scores[first], probe_rows, batch_size, level, seed)
        if probes
        else (None, [], [])
    )
    return RewardReport(
        target=target,
        data=data,
        rows=rows,
        bad=dict(bad),
        bench=benches[0],
        against=benches[1] if len(benches) > 1 else None,
        comparison=comparison,
        probes=probed,
        consistency=consistency,
        warnings=warnings,
    )


def _probe(
    function: Callable[..., Any],
    sets: Sequence[AnswerSet],
    scores: Sequence[np.ndarray],
    rows: int,
    batch_size: int,
    level: float,
    seed: int,
) -> tuple[ProbeReport | None, list[EditConsistency], list[str]]:
    """The best answer of each set, edited; and each beside the worst, both edited.

    A reward that fails on an edited answer, such as an empty one, is a finding and loses nothing
    of what was measured before: it is warned of.
    """
    import numpy as np

    from align.evaluate.reward_bench import column_names
    from reward.consistency import edit_consistency
    from reward.probing import probe, spread

    decided = [one for one in sets if one.decided]
    if len(decided) > rows:  # drawn, since files are often sorted; in the file's order
        kept = sorted(Random(seed).sample(range(len(decided)), rows))
        decided = [decided[row] for row in kept]
    best = [one.answers[int(np.argmax(one.grades))] for one in decided]
    worst = [one.answers[int(np.argmin(one.grades))] for one in decided]
    prompts = [one.prompt for one in decided]
    columns = {name: [one.columns.get(name) for one in decided] for name in column_names(sets)}
    given: dict[str, Any] = {
        "columns": columns, "seed": seed, "batch_size": batch_size, "level": level
    }  # fmt: skip
    probed: ProbeReport | None = None
    found: list[EditConsistency] = []
    warnings: list[str] = []
    try:
        scale = spread(np.concatenate(list(scores)), "the reward")
        probed = probe(function, prompts, best, scale=scale, **given)
    except AlignError as error:
        warnings.append(f"the probes failed: {error}")
    try:
        found = edit_consistency(function, prompts, best, worst, **given)
    except AlignError as error:
        warnings.append(f"the consistency of preferences could not be measured: {error}")
    return probed, found, warnings


def _columns(given: Sequence[str]) -> dict[str, str]:
    pairs = [item.partition("=") for item in given]
    wrong = next((item for item, pair in zip(given, pairs, strict=True) if not all(pair)), None)
    if wrong is not None:
        fix = "write --column prompt=question."
        raise ConfigError([Problem("--column", f"{wrong!r} is not OURS=THEIRS.", fix)])
    return {ours: theirs for ours, _, theirs in pairs}
