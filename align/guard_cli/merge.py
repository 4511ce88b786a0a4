"""`align guard merge`: one model from several, by soup, TIES or DARE."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from align.errors import ConfigError, Problem

app = typer.Typer()
err = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)


@app.command()
def merge(
    out: Annotated[Path, typer.Argument(help="Where the model goes.")],
    base: Annotated[Path, typer.Argument(help="What the models were fine-tuned from.")],
    models: Annotated[list[Path], typer.Argument(help="Models.", metavar="MODEL...")],
    method: Annotated[str, typer.Option(help="soup, ties, dare_ties or dare_linear.")] = "ties",
    weight: Annotated[
        list[float] | None, typer.Option(help="Of each model, in order; default: all alike.")
    ] = None,
    density: Annotated[
        float, typer.Option(min=0.001, max=1.0, help="Share of each change kept: TIES, DARE.")
    ] = 0.5,
    seed: Annotated[int, typer.Option(help="Of what DARE drops.")] = 0,
) -> None:
    """Merge language models that were fine-tuned from one base.

    With one model, `--method soup --weight 0.5` is WiSE-FT: half of the way back to the base.
    """
    from align.quiet import quiet_libraries

    problems = []
    if method not in ("soup", "ties", "dare_ties", "dare_linear"):
        what = f"{method!r} is not soup, ties, dare_ties or dare_linear."
        problems.append(Problem("--method", what))
    if weight and len(weight) != len(models):
        what = f"{len(weight)} were given for {len(models)} models."
        problems.append(Problem("--weight", what, "give one for each, or none."))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        problems.append(Problem("OUT", f"{out} exists already.", "choose another place."))
    if problems:
        raise ConfigError(problems)
    quiet_libraries()
    from align.engine.guards.merge import merge_weights
    from align.engine.models import load_causal_lm
    from align.engine.tokenizer import load_tokenizer
    from align.stages.common import save_model
    from align.stages.preflight import check_model

    for path in (base, *models):
        check_model("MODEL", str(path))
    network = load_causal_lm(base)
    others = [load_causal_lm(path).state_dict() for path in models]
    found = merge_weights(
        network.state_dict(),
        others,
        method,  # type: ignore[arg-type]
        weights=weight or None,
        density=density,
        seed=seed,
    )
    network.load_state_dict(found)
    save_model(network, load_tokenizer(models[0]), out)
    err.print(f"{method} of {len(models)} models on {base}")
    print(out)
