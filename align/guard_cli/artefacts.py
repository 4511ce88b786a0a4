"""`align guard fisher` and `align guard buffer`: what later runs find beside a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from align.errors import ConfigError, Problem

if TYPE_CHECKING:
    from torch import nn

    from align.stages.guard_source import Source

app = typer.Typer()
err = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)

Data = Annotated[str, typer.Argument(help="What must not be forgotten.")]
Columns = Annotated[
    list[str] | None, typer.Option("--column", help="OURS=THEIRS, such as prompt=question.")
]
Out = Annotated[Path | None, typer.Option("--out", help="Default: guards/ beside the model.")]


@app.command()
def fisher(
    model: Annotated[Path, typer.Argument(help="The model that learnt DATA.")],
    data: Data,
    samples: Annotated[int, typer.Option(min=1, help="Rows it is estimated on.")] = 256,
    method: Annotated[str, typer.Option(help="ewc (Fisher) or mas (output sensitivity).")] = "ewc",
    true: Annotated[
        bool, typer.Option("--true", help="Labels drawn from the model, not the data's.")
    ] = False,
    draws: Annotated[int, typer.Option(min=1, help="With --true: labels of a position.")] = 1,
    max_length: Annotated[int | None, typer.Option(min=2, help="Tokens of a row.")] = None,
    columns: Columns = None,
    seed: Annotated[int, typer.Option(help="Of the rows and draws.")] = 0,
    out: Out = None,
) -> None:
    """Estimate which weights matter for DATA; runs that start from MODEL find it.

    They need no more than `guards: [{type: ewc, strength: ...}]`.
    """
    from align.quiet import quiet_libraries

    problems = []
    if method not in ("ewc", "mas"):
        problems.append(Problem("--method", f"{method!r} is neither ewc nor mas."))
    if true and method != "ewc":
        problems.append(Problem("--true", "is of the Fisher.", "use --method ewc."))
    check(model, data, problems)
    quiet_libraries()
    from align.config.guards import EWCSection, MASSection
    from align.engine.guards.artefact import About, save_importance, task_id
    from align.engine.guards.buffers import keep
    from align.engine.guards.weights import trained_weights
    from align.run import fingerprint
    from align.stages.guard_source import estimate

    network, source, kind = open_source(model, max_length)
    section: Any = MASSection(type="mas", strength=1.0)
    if method == "ewc":
        section = EWCSection(
            type="ewc", strength=1.0, fisher="true" if true else "empirical", draws=draws
        )
    kept = keep(list(source.rows(data, columns_of(columns))), samples, "reservoir", seed=seed)
    importance = estimate(section, network, source, kept, seed)
    anchor = {n: w.now().detach() for n, w in trained_weights(network).items()}
    of_model, of_data = fingerprint(model), fingerprint(data)
    task = task_id(of_model, of_data, method)
    details = {"data": data, "data_fingerprint": of_data, "samples": len(kept), "rows": kind}
    details |= {"fisher": "true" if true else "empirical"} if method == "ewc" else {}
    place = out or model / "guards" / f"{method}-{task}.safetensors"
    save_importance(place, importance, anchor, About(method, (task,), of_model, details))
    total = sum(v.numel() for v in importance.values())
    held = sum(int((v > 0).sum()) for v in importance.values())
    err.print(f"{len(kept)} rows; {held:,} of {total:,} weights matter to them")
    print(place)


@app.command()
def buffer(
    data: Data,
    model: Annotated[
        Path | None, typer.Option("--model", help="Beside which it is written, for its lineage.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Rows kept.")] = 256,
    kind: Annotated[
        str, typer.Option(help="reservoir, ring, balanced, or herding by MODEL's features.")
    ] = "reservoir",
    by: Annotated[str | None, typer.Option(help="The column of a row's class.")] = None,
    max_length: Annotated[int | None, typer.Option(min=2, help="Tokens of a row.")] = None,
    columns: Columns = None,
    seed: Annotated[int, typer.Option(help="Of what is kept.")] = 0,
    out: Out = None,
) -> None:
    """Keep rows of DATA for replay; runs that start from MODEL find them.

    They are kept as text, so any tokenizer can read them.
    """
    problems = []
    if kind not in ("reservoir", "ring", "balanced", "herding"):
        problems.append(Problem("--kind", f"{kind!r} is not reservoir, ring, balanced or herding."))
    if kind == "herding" and model is None:
        problems.append(Problem("--kind", "herding needs features of rows.", "give --model."))
    if model is None and out is None:
        problems.append(Problem("buffer", "has no place.", "give --model or --out."))
    check(model, data, problems)
    from align.quiet import quiet_libraries

    quiet_libraries()
    from align.engine.guards.artefact import About, save_rows, task_id
    from align.engine.guards.buffers import keep
    from align.run import fingerprint
    from align.stages.guard_rows import herd
    from align.stages.guard_source import key_of
    from align.stages.sft import read_either

    given = [dict(row) for row in read_either(data, columns_of(columns))]
    if kind == "herding":
        assert model is not None
        network, source, _ = open_source(model, max_length)
        kept = herd(given, samples, key_of(by), network, source)
    else:
        kept = keep(given, samples, kind, seed=seed, key=key_of(by))  # type: ignore[arg-type]
    of_data = fingerprint(data)
    task = task_id(of_data, "rows")
    details = {"data": data, "data_fingerprint": of_data, "kind": kind}
    place = out or Path(str(model)) / "guards" / f"rows-{task}.safetensors"
    of_model = fingerprint(model) if model is not None else "none"
    save_rows(place, kept, About("rows", (task,), of_model, details))
    err.print(f"{len(kept)} of {len(given)} rows kept")
    print(place)


def columns_of(given: list[str] | None) -> dict[str, str]:
    """OURS=THEIRS as a dictionary.

    Raises:
        ConfigError: something is not of that form.
    """
    pairs = [text.partition("=") for text in given or []]
    wrong = ["".join(pair) for pair in pairs if not all(pair)]
    if wrong:
        raise ConfigError([Problem("--column", f"{wrong[0]!r} is not OURS=THEIRS.")])
    return {ours: theirs for ours, _, theirs in pairs}


def check(model: Path | None, data: str, problems: list[Problem]) -> None:
    """Refuse what cannot work, before anything loads.

    Raises:
        ConfigError: with every problem found, those given included.
        ModelError: the model's directory is missing or damaged.
    """
    from align.data.read import READERS, file_suffix, missing
    from align.stages.preflight import check_model

    if file_suffix(Path(data)) in READERS and not Path(data).is_file():
        problems.append(Problem("DATA", missing(Path(data))))
    if problems:
        raise ConfigError(problems)
    if model is not None:
        check_model("MODEL", str(model), policy=False)


def open_source(model: Path, max_length: int | None) -> tuple[nn.Module, Source, str]:
    """The model, how its rows are read, and what they are."""
    import torch

    from align.engine.models import load_causal_lm
    from align.engine.tokenizer import load_tokenizer
    from align.stages.preflight import is_classifier
    from align.stages.reward import pair_source
    from align.stages.sft import sft_source
    from reward.model import load_classifier

    tokenizer = load_tokenizer(model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if is_classifier(str(model)):
        network: Any = load_classifier(str(model), dtype=torch.float32)
        source, kind = pair_source(tokenizer, max_length, device), "preference"
    else:
        network = load_causal_lm(model)
        source, kind = sft_source(tokenizer, max_length, device), "text"
    network.requires_grad_(True)
    return network.to(device), source, kind
