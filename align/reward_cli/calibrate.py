"""`align reward calibrate`: what a reward model's margins are worth, fitted on labelled pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from align.errors import ConfigError, DataError, Problem

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from reward.calibrate import Calibration
    from reward.calibration_check import CalibrationCheck
    from reward.model import RewardModel
    from reward.statistics import Interval

app = typer.Typer()
err = Console(stderr=True)

Row = dict[str, Any]


@app.command()
def calibrate(
    model: Annotated[str, typer.Argument(help="A reward model's directory.", metavar="MODEL")],
    data: Annotated[
        str, typer.Option(help="Pairs that it was not trained on, in any preference format.")
    ],
    method: Annotated[
        Literal["temperature", "isotonic"], typer.Option(help="The curve that is fitted.")
    ] = "temperature",
    laplace: Annotated[
        bool, typer.Option("--laplace", help="Fit a Laplace posterior of the last layer too.")
    ] = False,
    fraction: Annotated[
        float, typer.Option(min=0.01, max=0.99, help="Of the prompts that the fits see.")
    ] = 0.5,
    bins: Annotated[int, typer.Option(min=1, help="Of ECE and the reliability diagram.")] = 10,
    bad_rows: Annotated[
        Literal["strict", "quarantine"], typer.Option(help="Refuse bad rows, or leave them out.")
    ] = "strict",
    limit: Annotated[int | None, typer.Option(min=2, help="First pairs only.")] = None,
    seed: Annotated[int, typer.Option(help="Of the split and the intervals.")] = 0,
    html: Annotated[
        Path | None, typer.Option(help="Write the reliability diagrams as one page.")
    ] = None,
) -> None:
    """Fit a reward model's calibration on labelled pairs, and measure it on others of them.

    The state is saved in MODEL/uncertainty. Where no curve can be fitted, --laplace still is.
    """
    from align.quiet import quiet_libraries

    quiet_libraries()
    from align.report.reliability import page
    from align.stages.rewards import model_problems
    from reward.calibrate import FILE, save_calibration
    from reward.calibration_check import check_calibration, chosen_for_fit
    from reward.model import RewardModel
    from reward.places import saving, unwritable
    from reward.posterior_reward import STATE
    from reward.score import head_parameters

    problems = model_problems("MODEL", model, False, steps=False)
    if not problems and not Path(model).is_dir():
        what = f"{model} is no directory, and the state is saved beside the weights."
        problems = [Problem("MODEL", what, "download the model, and name its folder.")]
    folder = Path(model) / STATE
    if not problems and (fault := unwritable(folder / FILE)) is not None:
        problems = [Problem("MODEL", f"the state is saved in {folder}, and {fault}")]
    if html is not None and (fault := unwritable(html)) is not None:
        problems.append(Problem("--html", fault))
    if problems:
        raise ConfigError(problems)
    rows = read_pairs(data, limit, bad_rows)
    scorer = RewardModel.load(model, normalise=False)
    rows = within_context(scorer, rows)
    prompts = [json.dumps(row["prompt"], sort_keys=True) for row in rows]
    fit = chosen_for_fit(prompts, fraction, seed)
    chosen = rejected = None
    if laplace:  # the heads read what the posterior reads: one pass for both
        chosen, rejected = features_of(scorer, rows)
        weight = head_parameters(scorer.model)[0].mean(dim=0)
        margins = ((chosen - rejected).double() @ weight).numpy()
    else:
        margins = margins_of(scorer, rows)
    try:
        calibration, check = check_calibration(
            margins, method, groups=prompts, fraction=fraction, seed=seed, bins=bins
        )
    except DataError as error:
        if chosen is None:
            raise
        # A Laplace posterior needs no curve, and the pairs that trained the model will do for it.
        err.print(f"no calibration was fitted: {error}", markup=False, highlight=False)
    else:
        tell(method, calibration, check)
        print(save_calibration(folder, calibration, check.as_dict()))
        if html is not None:
            state = {"method": method, "measured": check.as_dict()}
            with saving(html) as place:
                place.write_text(page(state, scorer.name), encoding="utf-8")
            print(html)
    if chosen is not None and rejected is not None:
        print(fit_laplace(scorer, chosen, rejected, fit, folder))


def tell(method: str, calibration: Calibration, check: CalibrationCheck) -> None:
    """Print what was fitted, and what it does to pairs that the fit has not seen."""
    print(f"{method}: fitted on {check.fitted} pairs, measured on {check.pairs} others")
    if hasattr(calibration, "temperature"):
        print(f"temperature {calibration.temperature:.4g}")
    for name, part in (("before", check.before), ("after", check.after)):
        print(
            f"{name:<6} ECE {in_words(part.ece)}, {part.expected:.4f} if it were calibrated; "
            f"log-loss {in_words(part.log_loss)}"
        )


def read_pairs(data: str, limit: int | None = None, bad_rows: str = "strict") -> list[Row]:
    """Preference rows that name a better answer.

    Args:
        data: a file, or whatever else `data.train` takes.
        limit: first rows only.
        bad_rows: `strict` refuses them, `quarantine` leaves them out.

    Raises:
        DataError: the file cannot be read, or all its pairs are ties.
    """
    from align.config.sections import DataSection
    from align.data import load_splits
    from reward.preferences import is_tie

    source = {"path": data, "limit": limit}
    section = DataSection.model_validate(
        {"train": source, "validation_fraction": 0.0, "bad_rows": bad_rows}
    )
    rows = [dict(row) for row in load_splits(section, "preference").train]
    decided = [row for row in rows if not is_tie(row)]
    if not decided:
        raise DataError(f"{data}: all {len(rows)} pairs are ties; none names a better answer.")
    if len(decided) < len(rows):
        err.print(f"{len(rows) - len(decided)} ties left out", highlight=False)
    return decided


def within_context(scorer: RewardModel, rows: list[Row]) -> list[Row]:
    """Pairs of which the model can read both answers; the others are left out and counted.

    Raises:
        DataError: there are none.
    """
    from reward.score import context_length

    longest = context_length(scorer.model)
    kept = [
        row
        for row in rows
        if all(
            len(scorer.encode(row["prompt"], row[answer])) <= longest
            for answer in ("chosen", "rejected")
        )
    ]
    if not kept:
        raise DataError(f"all {len(rows)} pairs are longer than the model's {longest} tokens.")
    if len(kept) < len(rows):
        what = f"{len(rows) - len(kept)} pairs longer than the model's {longest} tokens left out"
        err.print(what, highlight=False)
    return kept


def margins_of(scorer: RewardModel, rows: list[Row]) -> np.ndarray:
    """Raw scores of the chosen answers less those of the rejected, (n,)."""
    import numpy as np

    scores = np.array(scorer.score(*both_answers(rows)))
    return scores[: len(rows)] - scores[len(rows) :]


def features_of(scorer: RewardModel, rows: list[Row]) -> tuple[Tensor, Tensor]:
    """Pooled features of the chosen and of the rejected answers, each (n, H)."""
    chosen, rejected = scorer.features(*both_answers(rows)).chunk(2)
    return chosen, rejected


def both_answers(rows: list[Row]) -> tuple[list[Any], list[Any]]:
    """Prompts and answers of all pairs: the chosen answers first, then the rejected."""
    prompts = [row["prompt"] for row in rows]
    return prompts * 2, [row["chosen"] for row in rows] + [row["rejected"] for row in rows]


def fit_laplace(
    scorer: RewardModel, chosen: Tensor, rejected: Tensor, fit: np.ndarray, folder: Path
) -> str:
    """Fit and save a Laplace posterior; says how well it tells which held-out pairs are wrong.

    Args:
        scorer: the reward model.
        chosen: (n, H) features of the better answers.
        rejected: (n, H) of the others.
        fit: (n,) which pairs the fit sees.
        folder: where it is saved.
    """
    import torch

    from reward.laplace import LastLayerLaplace
    from reward.outliers import auroc
    from reward.score import head_parameters

    seen = torch.from_numpy(fit)
    posterior = LastLayerLaplace.fit(*head_parameters(scorer.model), chosen[seen], rejected[seen])
    file = posterior.save(folder)
    pair = chosen[~seen], rejected[~seen]
    wrong = (posterior.margin_mean(*pair) < 0).numpy()
    if wrong.all() or not wrong.any():
        return f"laplace: the held-out pairs are ranked all alike, right or wrong\n{file}"
    doubt = auroc(posterior.doubt(*pair).numpy(), wrong)
    small = auroc(-posterior.margin_mean(*pair).abs().numpy(), wrong)
    return (
        f"laplace: doubt marks errors with AUROC {in_words(doubt)}, "
        f"small margins alone with {in_words(small)}\n{file}"
    )


def in_words(interval: Interval) -> str:
    """A figure with its interval."""
    return f"{interval.value:.4f} [{interval.low:.4f}, {interval.high:.4f}]"
