"""The evaluation in a terminal: tables of rich, from the values of evaluation.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

# metric, heading, format; a column appears when some model has the metric
MODEL_COLUMNS = [
    ("score_mean", "score", ".3f"),
    ("length_mean", "tokens", ".1f"),
    ("finished_rate", "finished", ".0%"),
    ("distinct_2", "dist-2", ".3f"),
    ("repetition_4", "rep-4", ".3f"),
    ("entropy_token", "entropy", ".3f"),
    ("kl_k1_sequence", "KL k1", ".2f"),
    ("kl_k3_sequence", "KL k3", ".2f"),
    ("perplexity", "ppl", ".2f"),
    ("retention_nats", "kept loss", ".3f"),
    ("forgotten_nats", "forgotten", "+.3f"),
]


def render_evaluation(evaluation: Mapping[str, Any]) -> Group:
    """Tables of models, win rates and reward model, then the warnings.

    Args:
        evaluation: what `Evaluation.as_dict` returns, or evaluation.json read back.
    """
    parts: list[RenderableType] = [_models(evaluation)]
    if evaluation["win_rates"]:
        parts.append(_win_rates(evaluation))
    if evaluation["reward_model"]:
        parts.append(_reward_model(evaluation["reward_model"]))
    parts += [Text(f"! {warning}", style="yellow") for warning in evaluation["warnings"]]
    return Group(*parts)


def _models(evaluation: Mapping[str, Any]) -> Table:
    models = evaluation["models"]
    shown = [
        column
        for column in MODEL_COLUMNS
        if any(column[0] in metrics for metrics in models.values())
    ]
    table = Table(
        title=f"Models on {evaluation['prompts']} prompts x {evaluation['samples_per_prompt']} "
        f"(baseline: {evaluation['baseline']})",
        title_justify="left",
    )
    table.add_column("model")
    for _, heading, _ in shown:
        table.add_column(heading, justify="right")
    for name, metrics in models.items():
        table.add_row(name, *(_number(metrics.get(key), style) for key, _, style in shown))
    return table


def _win_rates(evaluation: Mapping[str, Any]) -> Table:
    table = Table(title=f"Win rates, {evaluation['level']:.0%} intervals", title_justify="left")
    for heading in ("models", "judge"):
        table.add_column(heading)
    for heading in ("win rate", "won/lost/tied", "p (Holm)", "score"):
        table.add_column(heading, justify="right", no_wrap=True)
    for rate in evaluation["win_rates"]:
        clear = rate["low"] > 0.5 or rate["high"] < 0.5
        share = f"{rate['rate']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]"
        p_value = rate["p_adjusted"]
        table.add_row(
            f"{rate['a']} vs {rate['b']}",
            rate["judge"],
            Text(share, style="bold" if clear else ""),
            f"{rate['wins']}/{rate['losses']}/{rate['ties']}",
            "< 0.0001" if p_value < 1e-4 else f"{p_value:.4f}",
            _number(rate["score_difference"], "+.3f"),
        )
    return table


def _reward_model(report: Mapping[str, Any]) -> Table:
    table = Table(title="Reward model on held-out preferences", title_justify="left")
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_column("beside")
    table.add_row(
        "accuracy",
        f"{report['accuracy']:.3f}",
        f"{report['low']:.3f} to {report['high']:.3f}, {report['n']} pairs",
    )
    length = report["length_baseline"]
    if length:
        table.add_row(
            "length only",
            f"{length['accuracy']:.3f}",
            f"{length['rule']}, chosen on {length['fitted_on']}; p = {length['p_value']:.2g}",
        )
    against = report["against_length"]
    if against:
        table.add_row(
            "where length is wrong", f"{against['accuracy']:.3f}", f"{against['n']} pairs"
        )
    table.add_row("log-loss", f"{report['log_loss']:.3f}", "0.693 is a coin")
    table.add_row(
        "ECE", f"{report['ece']:.3f}", f"{report['ece_expected']:.3f} if it were calibrated"
    )
    table.add_row("AUC across prompts", f"{report['auc']:.3f}", "")
    return table


def _number(value: float | None, style: str) -> str:
    return "" if value is None else format(value, style)
