"""What `align reward evaluate` found, as tables of rich."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from align.evaluate.reward_bench import RewardBench
from align.evaluate.reward_compare import RewardComparison
from align.evaluate.reward_model import RewardModelReport
from reward.consistency import EditConsistency
from reward.probing import ProbeReport
from reward.statistics import Interval

WORDS = {
    "worse": "must score lower",
    "not_better": "must not score higher",
    "same": "must hardly move",
}
TONES = {"holds": "good", "fooled": "bad", "blind": "bad", "unclear": "warn", "untested": "calm"}
STYLES = {"good": "green", "bad": "red", "warn": "yellow", "calm": "dim"}


def accuracy_table(
    bench: RewardBench, data: str, bad: Mapping[str, int], other: RewardBench | None = None
) -> Table:
    """Accuracy by category, the macro and the whole figure, and what needs no reward model."""
    title = f"{bench.reward} on {data}: {bench.sets:,} rows"
    left = [f"{bench.undecided:,} without a better answer"] if bench.undecided else []
    left += [f"{sum(bad.values()):,} bad"] if bad else []
    table = Table(
        title=title + (f" ({', '.join(left)} left out)" if left else ""), title_justify="left"
    )
    table.add_column("category")
    for heading in ("rows", "accuracy", f"{bench.level:.0%} interval", "longer wins"):
        table.add_column(heading, justify="right", no_wrap=True)
    if other:
        table.add_column(other.reward, justify="right", no_wrap=True)

    def line(name: str, rows: str, value: Interval, longer: str, beside: Interval | None) -> None:
        cells = [name, rows, f"{value.value:.3f}", _bounds(value), longer]
        table.add_row(*cells, *([f"{beside.value:.3f}" if beside else ""] if other else []))

    beside = {one.name: one.accuracy for one in other.categories} if other else {}
    for one in bench.categories:
        longer = f"{one.longer_wins:.3f}"
        line(one.name, f"{one.sets:,}", one.accuracy, longer, beside.get(one.name))
    if bench.categories:
        table.add_section()
    if bench.macro:
        count = f"{len(bench.categories)} cat."
        line("macro", count, bench.macro, "", other.macro if other else None)
    total = f"{bench.longer_wins:.3f}"
    line("all rows", f"{bench.sets:,}", bench.micro, total, other.micro if other else None)
    table.add_row("a drawn order", "", f"{bench.random:.3f}")
    return table


def pair_table(bench: RewardBench) -> Table:
    """Calibration and the length baseline over single pairs."""
    report: RewardModelReport = bench.pair_report
    table = Table(title=f"Single pairs, {report.n:,}", title_justify="left")
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_column("beside")
    if report.length_baseline:
        found = report.length_baseline
        beside = f"{found.rule}, chosen on {found.fitted_on}; p = {found.p_value:.2g}"
        table.add_row("accuracy of length alone", f"{found.accuracy:.3f}", beside)
    if report.against_length:
        count = f"{report.against_length['n']:,.0f} pairs"
        table.add_row("where length is wrong", f"{report.against_length['accuracy']:.3f}", count)
    table.add_row("log-loss", f"{report.log_loss:.3f}", "0.693 is a coin")
    if bench.soft_log_loss is not None:
        beside = "with soft labels, ties included"
        table.add_row("soft log-loss", f"{bench.soft_log_loss:.3f}", beside)
    table.add_row("ECE", f"{report.ece:.3f}", f"{report.ece_expected:.3f} if it were calibrated")
    table.add_row("AUC", f"{report.auc:.3f}", "prompts mixed")
    if report.length_correlation is not None:
        table.add_row("correlation with length", f"{report.length_correlation:+.3f}", "Spearman")
    return table


def ranking_table(bench: RewardBench) -> Table:
    """The order of three or more answers, beside orders that need no reward model."""
    found = bench.rankings
    assert found is not None
    title = f"Order of three or more answers, {found.sets:,} rows"
    table = Table(title=title, title_justify="left")
    table.add_column("measure")
    for heading in ("value", "interval", "drawn", "longest first", "shortest first"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, label in (("best_of", "best found"), ("ndcg", "NDCG"), ("kendall_tau", "tau-b")):
        value: Interval = getattr(found, name)
        rest = [f"{side[name]:.3f}" for side in (found.random, found.longer, found.shorter)]
        table.add_row(label, f"{value.value:.3f}", _bounds(value), *rest)
    return table


def comparison_table(found: RewardComparison) -> Table:
    """How much more often the first reward is right."""
    title = f"{found.first} less {found.second}, on the same rows"
    table = Table(title=title, title_justify="left")
    table.add_column("category")
    for heading in ("accuracy", "interval", "p", "p (Holm)"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in found.categories:
        cells = [f"{one.difference.value:+.3f}", _bounds(one.difference, "+.3f")]
        table.add_row(one.name or "(none)", *cells, _p(one.p_value), _p(one.p_adjusted))
    if found.categories:
        table.add_section()
    whole = found.overall
    cells = [f"{whole.difference.value:+.3f}", _bounds(whole.difference, "+.3f")]
    table.add_row("all rows", *cells, _p(whole.p_value), "")
    mcnemar = f"McNemar over pairs, {found.only_first} against {found.only_second}"
    table.add_row(mcnemar, "", "", _p(found.mcnemar_p), "")
    return table


def probe_table(found: ProbeReport) -> Table:
    """What each edit does to the score."""
    title = f"Probes on {found.rows:,} answers (shifts in standard deviations, {found.scale:.3g})"
    table = Table(title=title, title_justify="left")
    table.add_column("probe")
    table.add_column("the edit")
    for heading in ("n", "scored higher", "unchanged", "mean shift", "verdict"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in found.results:
        fooled = f"{one.fooled.value:.2f} {_bounds(one.fooled, '.2f')}" if one.fooled else ""
        shift = f"{one.shift.value:+.2f}" if one.shift else ""
        if one.moved and one.expect == "same":
            shift = f"±{one.moved.value:.2f}"  # its size counts, not its direction
        verdict = Text(one.verdict, style=STYLES[TONES[one.verdict]])
        same = f"{one.unchanged:.2f}" if one.n else ""
        about = f"{one.about}: {WORDS[one.expect]}"
        table.add_row(one.name, about, str(one.n), fooled, same, shift, verdict)
    return table


def consistency_table(found: Sequence[EditConsistency]) -> Table:
    """Whether preferences survive edits without a meaning."""
    title = "The same preference after a change that means nothing"
    table = Table(title=title, title_justify="left")
    table.add_column("both answers")
    for heading in ("n", "kept", "interval", "mean |shift|"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in found:
        kept = [f"{one.kept.value:.3f}", _bounds(one.kept)] if one.kept else ["", ""]
        table.add_row(one.name, str(one.n), *kept, f"{one.moved.value:.2f}" if one.moved else "")
    return table


def _bounds(value: Interval, style: str = ".3f") -> str:
    return f"[{value.low:{style}}, {value.high:{style}}]"


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"
