"""What a reader must know before believing the numbers.

Ordered by weight: `error` (a run did not finish, a file is unreadable), `warning` (a figure is
weaker than it looks), `note` (worth knowing). Each names the run and says what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from align.report.alarms import run_label, title_of
from align.report.collect import RunData
from align.report.evidence import Evaluation, WinRow, seed_label
from align.report.families import Family, Lineage, display_name, is_start, judge_name
from align.report.values import items, mapping, number, percent, text

Level = Literal["error", "warning", "note"]
_NAMED = 4  # of the runs that share a message
_LEVELS: tuple[Level, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Notice:
    """One thing to know; `where` is the run or the figure it concerns."""

    level: Level
    where: str
    message: str


def find_notices(
    runs: Sequence[RunData],
    families: Sequence[Family],
    lineage: Lineage,
    evaluations: Sequence[Evaluation],
) -> list[Notice]:
    """Everything worth saying, the gravest first, each thing once."""
    found = [
        *_of_runs(runs),
        *_of_lineage(lineage),
        *_of_families(families),
        *_of_evaluations(runs, evaluations),
        *_of_versions(runs),
    ]
    return sorted(_merged(found), key=lambda notice: _LEVELS.index(notice.level))


def _merged(notices: Sequence[Notice]) -> list[Notice]:
    """The same message about several runs becomes one."""
    places: dict[tuple[Level, str], list[str]] = {}
    for notice in notices:
        where = places.setdefault((notice.level, notice.message), [])
        if notice.where not in where:
            where.append(notice.where)
    return [Notice(level, _together(where), what) for (level, what), where in places.items()]


def _together(where: Sequence[str]) -> str:
    """Several places in a few words: `SFT (3 seeds); DPO (3 seeds)`."""
    groups: dict[str, list[str]] = {}
    for place in where:
        groups.setdefault(place.split(", seed ")[0], []).append(place)
    named = [
        own[0] if len(own) == 1 else f"{head} ({_counted(own)})" for head, own in groups.items()
    ]
    more = len(named) - _NAMED
    return "; ".join(named[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _counted(places: Sequence[str]) -> str:
    return f"{len(places)} {'folds' if any(', fold ' in place for place in places) else 'seeds'}"


def _of_runs(runs: Sequence[RunData]) -> Iterator[Notice]:
    for run in runs:
        name = run_title(run)
        error = text(run.record.get("error"))
        if run.status == "failed":
            yield Notice("error", name, f"The run failed: {error or 'no reason was recorded'}")
        elif run.status == "interrupted":
            why = f" It says: {error}" if error and error != "interrupted" else ""
            yield Notice(
                "error",
                name,
                "The run was interrupted before its end; its figures are those of a half-trained "
                f"model.{why or ' Continue it with --resume.'}",
            )
        elif run.status == "waiting":
            waits = text(mapping(run.record.get("results")).get("waiting"))
            yield Notice("note", name, f"The run waits for people: {waits}")
        elif run.status == "running":
            yield Notice("warning", name, _running(run))
        elif run.status != "completed":
            yield Notice("error", name, "run.json does not say how the run ended.")
        for alarm in run.alarms:
            what = (
                f"Alarm, {title_of(text(alarm.get('name'))).lower()}: {text(alarm.get('message'))}"
            )
            yield Notice("warning", name, what)
        if stopped := text(mapping(run.record.get("signals")).get("stopped")):
            yield Notice("note", name, f"Training ended early: {stopped}")
        if mapping(run.record.get("results")).get("dry_run"):
            yield Notice("warning", name, "This was a dry run: nothing was trained.")
        for problem in run.problems:
            gone = "missing" in problem or "cannot be read" in problem
            # A run that has not ended may still write the file.
            excused = "missing" in problem and run.status in ("running", "failed")
            yield Notice("note" if excused else "error" if gone else "warning", name, problem)
        for source in (run.record, run.evaluation, run.data_card):
            for warning in items(source.get("warnings")):
                yield Notice("warning", name, text(warning))
        for key, series in sorted(run.series.items()):
            if series.holes:
                times = "once" if series.holes == 1 else f"{series.holes} times"
                yield Notice(
                    "warning", name, f"{key} was logged {times} as NaN or infinite; left out."
                )


def _running(run: RunData) -> str:
    if run.last_logged is None:
        return "The run had not finished when this page was made, and has logged nothing yet."
    last = datetime.fromtimestamp(run.last_logged, UTC)
    return (
        "The run had not finished when this page was made (or died without saying so); it last "
        f"logged at {last:%Y-%m-%d %H:%M:%S} UTC. Its figures will change."
    )


def _of_lineage(lineage: Lineage) -> Iterator[Notice]:
    for node in lineage.nodes.values():
        if node.lost:
            targets = [edge.target for edge in lineage.edges if edge.source == node.key]
            users = ", ".join(lineage.nodes[target].label for target in targets)
            yield Notice(
                "warning",
                users,
                f"The run it came from, {node.label}, was not found, so that part of the lineage "
                "is missing. Fix: name its directory too.",
            )


def _of_families(families: Sequence[Family]) -> Iterator[Notice]:
    plain = [family for family in families if not family.folds]
    several = max((len(family.one_per_seed) for family in plain), default=0)
    for family in families:
        kept = len(family.one_per_seed)
        if kept < len(family.runs):
            yield Notice(
                "warning",
                family.label,
                f"{len(family.runs)} runs share {kept} seed{'s' * (kept != 1)} and are not "
                "independent: figures use one run per seed, the last that completed.",
            )
        if family.folds:
            yield Notice(
                "note",
                family.label,
                f"{kept} runs of a cross-validation, not {kept} seeds: they share most of their "
                "training data, so intervals over them are too narrow.",
            )
    if several == 2:
        yield Notice(
            "note",
            "Seeds",
            "Two seeds only: a t-interval over two values is very wide. Three or more are better.",
        )


def _of_evaluations(runs: Sequence[RunData], evaluations: Sequence[Evaluation]) -> Iterator[Notice]:
    if not evaluations:
        yield Notice(
            "warning",
            "Evaluation",
            "No evaluation is among these runs: the curves say how training went, not whether the "
            "answers got better. Fix: run 'align evaluate' and add its directory.",
        )
    for evaluation in evaluations:
        label = evaluation.family.label
        if not evaluation.wins:
            yield Notice("warning", label, "evaluation.json holds no win rate.")
        elif len(evaluation.family.one_per_seed) == 1:
            yield Notice(
                "warning",
                "Seeds",
                "One training seed only: intervals say how sure the result is over prompts, not "
                "over training runs. Repeat with other seeds (run.seed) and name all directories.",
            )
        for row in evaluation.wins:
            yield from _of_win_row(row)
        for row in evaluation.key_rows:
            if is_start(row.a) and row.rate.low is not None and row.rate.low > 0.5:
                yield Notice(
                    "warning",
                    f"{display_name(row.a)} against {display_name(row.b)}",
                    f"The model before training beats the baseline ({percent(row.rate.value)}), so "
                    "a win against the baseline may only make good what it lost. Compare the "
                    "policies with the starting model too.",
                )
        yield from _of_judges(runs, evaluation)


def _of_win_row(row: WinRow) -> Iterator[Notice]:
    pair = f"{display_name(row.a)} against {display_name(row.b)}, {judge_name(row.judge)} judge"
    for label, found in row.per_seed:
        where = f"{pair}, {label}" if len(row.per_seed) > 1 else pair
        rate, low, high = (number(found.get(name)) for name in ("rate", "low", "high"))
        n = number(found.get("n"))
        if low is None or high is None:
            yield Notice("warning", where, "The win rate was recorded without an interval.")
        elif rate is not None and not low <= rate <= high:
            yield Notice(
                "error",
                where,
                f"The win rate {percent(rate)} lies outside its own interval; do not trust it.",
            )
        counts = [number(found.get(name)) for name in ("wins", "losses", "ties")]
        known = [count for count in counts if count is not None]
        if n is not None and len(known) == 3 and abs(sum(known) - n) > 1e-6 * max(1.0, n):
            yield Notice(
                "note",
                where,
                f"Wins, losses and ties add up to {sum(known):g}, while n is {n:g}: n counts "
                "prompts, the others judgements.",
            )


def _of_judges(runs: Sequence[RunData], evaluation: Evaluation) -> Iterator[Notice]:
    trained_on = {
        Path(text(parent.get("path"))).resolve(): run
        for run in runs
        for parent in run.parents
        if parent.get("role") == "reward"
    }
    for run in evaluation.family.runs:
        judge = text(mapping(run.config.get("judge")).get("path"))
        trained = trained_on.get(Path(judge).resolve()) if judge else None
        if trained and trained.stage != "evaluate":
            yield Notice(
                "warning",
                seed_label(run),
                f"The judge {judge} is the reward model that {display_name(trained.stage)} was "
                "trained against, so its verdict flatters that policy. Judge with something "
                "training never saw.",
            )


def _of_versions(runs: Sequence[RunData]) -> Iterator[Notice]:
    versions: dict[str, set[str]] = {}
    for run in runs:
        for package, version in mapping(run.record.get("versions")).items():
            versions.setdefault(package, set()).add(text(version))
    mixed = [
        f"{name} ({', '.join(sorted(found))})" for name, found in versions.items() if len(found) > 1
    ]
    if mixed:
        yield Notice("note", "Versions", f"The runs used different versions of {', '.join(mixed)}.")
    gits = [mapping(run.record.get("git")) for run in runs]
    if any(git.get("dirty") for git in gits):
        yield Notice(
            "note",
            "Code",
            "Some runs started from a working directory with uncommitted changes, so the commit "
            "alone does not repeat them.",
        )
    commits = {text(git.get("commit"))[:10] for git in gits if git.get("commit")}
    if len(commits) > 1:
        yield Notice(
            "note", "Code", f"The runs come from different commits: {', '.join(sorted(commits))}."
        )


def run_title(run: RunData) -> str:
    """A run in one phrase: `PPO, seed 3`, or with its folder where there is no seed."""
    return run_label(run)
