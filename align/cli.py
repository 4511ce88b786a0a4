"""The `align` command: one sub-command per stage. Parses, calls the stage, prints the result.

The only place that wires everything. Heavy imports happen inside the commands: `--help` is quick.
Exit codes belong to the errors (`align.errors`): docs/cli.md.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from align import __version__
from align.errors import AlignError, ConfigError, Problem
from align.feedback_cli import app as feedback_app
from align.guard_cli import app as guard_app
from align.init_cli import init
from align.interrupts import end_on_sigterm, told_when_stopped
from align.quiet import quiet_libraries
from align.reward_cli import TRAIN
from align.reward_cli import app as reward_app
from align.talk_cli import chat, generate

app = typer.Typer(
    name="align",
    help="From a base model and human judgement to an aligned policy with evidence.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.add_typer(feedback_app, name="feedback")
app.add_typer(reward_app, name="reward")
app.add_typer(guard_app, name="guard")
errors = Console(stderr=True)

Config = Annotated[Path, typer.Argument(help="YAML configuration of the stage.", metavar="CONFIG")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="section.key=value, any number.", metavar="OVERRIDES")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in run.dir.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check config, data and memory; train nothing.")
]
Profile = Annotated[bool, typer.Option("--profile", help="Trace time and memory of a few steps.")]
PROFILED = ["tracking.profile=true"]


def run_stage(
    stage: str,
    config: Path | None,
    overrides: Sequence[str],
    *,
    resume: bool,
    dry_run: bool,
    profile: bool = False,
    **more: Any,
) -> Path:
    """Load a configuration, open its run directory and run the stage; returns the directory.

    `profile` adds an override; `more` goes to the stage as it is.

    Raises:
        Interrupted: Ctrl-C or SIGTERM, wherever the stage is.
    """
    quiet_libraries()
    from align.config import STAGES, load_config
    from align.run import open_run

    loaded = load_config(STAGES[stage], config, [*overrides, *(PROFILED if profile else [])])
    end_on_sigterm()  # while training, `StopSignals` takes over
    module = importlib.import_module(f"align.stages.{stage}")
    with (
        open_run(loaded, resume=resume, dry_run=dry_run) as run,
        told_when_stopped(stage, None if dry_run else run.path, loaded.run.dir),
    ):
        module.run(loaded, run, resume=resume, dry_run=dry_run, **more)
    if not dry_run:  # after its record: what waits for this line may go on
        errors.print(f"[green]{stage}[/]: {run.path}", highlight=False)
    return run.path


@app.command()
def sft(
    config: Config,
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    profile: Profile = False,
) -> None:
    """Fine-tune a language model on text, prompt-completion pairs or conversations."""
    run_stage("sft", config, overrides or [], resume=resume, dry_run=dry_run, profile=profile)


@reward_app.command(TRAIN)
def reward(
    config: Config,
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    folds: Annotated[
        int | None, typer.Option(help="Cross-validate: train and measure so many times.")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Cross-validations, with other folds.")] = 1,
    members: Annotated[int | None, typer.Option(help="Train so many models, a seed each.")] = None,
    profile: Profile = False,
) -> None:
    """Train a reward model on people's judgements, and normalise it over policy samples."""
    given = [*(overrides or []), *(PROFILED if profile else [])]
    if folds and members:
        raise ConfigError([Problem("--members", "folds measure, members are used.", "drop one.")])
    if (folds is None and members is None) or dry_run:
        run_stage("reward", config, given, resume=resume, dry_run=dry_run)
        return
    from align.config import STAGES, load_config
    from align.stages.reward_repeats import done_already, in_words, run_folds, run_members

    loaded = load_config(STAGES["reward"], config, given)
    folder = Path(loaded.run.dir or f"runs/reward-{datetime.now():%Y%m%d-%H%M%S}")

    def train(more: list[str]) -> Path:
        place = Path(more[0].removeprefix("run.dir="))
        if done_already(place, load_config(STAGES["reward"], config, [*given, *more])):
            return place
        again = resume and (place / "run.json").is_file()
        return run_stage("reward", config, [*given, *more], resume=again, dry_run=False)

    if members is not None:
        names = ", ".join(map(str, run_members(folder, members, loaded.run.seed, train)))
        line = f"reward: [{{ensemble: [{names}]}}]"
        errors.print(line, markup=False, highlight=False, soft_wrap=True)
        return
    assert folds is not None
    seeds = loaded.run.seed, loaded.data.split_seed  # type: ignore[attr-defined]
    found = run_folds(folder, folds, repeats, *seeds, train)
    for line in in_words(found) if found else ():  # the first process's
        errors.print(line, highlight=False)


@app.command()
def dpo(
    config: Config,
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    profile: Profile = False,
) -> None:
    """Train a policy on comparisons directly."""
    run_stage("dpo", config, overrides or [], resume=resume, dry_run=dry_run, profile=profile)


@app.command()
def kto(
    config: Config,
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    profile: Profile = False,
) -> None:
    """Train a policy on single answers marked good or bad."""
    run_stage("kto", config, overrides or [], resume=resume, dry_run=dry_run, profile=profile)


@app.command()
def ppo(
    config: Config,
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    profile: Profile = False,
) -> None:
    """Optimise a policy against reward models and reward functions."""
    run_stage("ppo", config, overrides or [], resume=resume, dry_run=dry_run, profile=profile)


@app.command("online-dpo")
def online_dpo(
    config: Config,
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    profile: Profile = False,
) -> None:
    """Train a policy on comparisons of its own answers, judged by rewards."""
    given = overrides or []
    run_stage("online_dpo", config, given, resume=resume, dry_run=dry_run, profile=profile)


@app.command()
def grpo(
    config: Config,
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    profile: Profile = False,
) -> None:
    """Optimise a policy against rewards with TRL's GRPO: answers measured by their group."""
    run_stage("grpo", config, overrides or [], resume=resume, dry_run=dry_run, profile=profile)


@app.command()
def rloo(
    config: Config,
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    profile: Profile = False,
) -> None:
    """Optimise a policy against rewards with TRL's RLOO: a leave-one-out baseline."""
    run_stage("rloo", config, overrides or [], resume=resume, dry_run=dry_run, profile=profile)


@app.command()
def active(
    config: Config,
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Look for people's answers until there are enough.")
    ] = False,
) -> None:
    """Ask people what teaches a reward model most, train it, measure it, and ask again."""
    quiet_libraries()
    from align.active.checks import refuse_loss
    from align.config import STAGES, load_config

    refuse_loss(load_config(STAGES["active"], config, overrides or []))  # type: ignore[arg-type]
    run_stage("active", config, overrides or [], resume=resume, dry_run=dry_run, wait=wait)


@app.command()
def selftrain(
    config: Config, overrides: Overrides = None, resume: Resume = False, dry_run: DryRun = False
) -> None:
    """Train a model on its own answers or labels, as long as held-out data say that it gains."""
    run_stage("selftrain", config, overrides or [], resume=resume, dry_run=dry_run)


@app.command()
def continual(
    config: Config, overrides: Overrides = None, resume: Resume = False, dry_run: DryRun = False
) -> None:
    """Train on tasks one after another, measure all after each, and compare guards."""
    run_stage("continual", config, overrides or [], resume=resume, dry_run=dry_run)


@app.command()
def evaluate(
    config: Config, overrides: Overrides = None, resume: Resume = False, dry_run: DryRun = False
) -> None:
    """Compare models on held-out prompts by a judge, with intervals."""
    run_stage("evaluate", config, overrides or [], resume=resume, dry_run=dry_run)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories.", metavar="RUN...")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path("report.html"),
    title: Annotated[str | None, typer.Option(help="Its title.")] = None,
    feedback: Annotated[
        str | None, typer.Option(help="A feedback store's URL, to show its quality.")
    ] = None,
) -> None:
    """Turn run directories into one self-contained HTML page."""
    from align.report import build_report

    page = build_report(runs, output, title=title, feedback=feedback)
    print(page)


@app.command()
def quickstart(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where runs and report go.")
    ] = Path("runs/quickstart"),
    seeds: Annotated[str, typer.Option(help="Comma-separated; one run each.")] = "0",
    judge: Annotated[
        str, typer.Option(help="Who compares answers: simulated, label-studio or human (you).")
    ] = "simulated",
    labels: Annotated[
        int | None, typer.Option(help="How many labels --judge human waits for.")
    ] = None,
    guard: Annotated[
        str | None,
        typer.Option(
            help="Train policies with it too: replay, distill, ewc, mas, l2sp, agem, isolate or "
            "wise_ft."
        ),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the report.")] = True,
) -> None:
    """The whole loop on a small generated world, from pretraining to a report."""
    quiet_libraries()
    from align.quickstart.recipe import run_quickstart

    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise ConfigError(f"--seeds {seeds!r} is not a list of whole numbers like 0,1,2.") from None
    page = run_quickstart(output, seeds=numbers, judge=judge, labels=labels, guard=guard)
    print(page)
    if open_page and sys.stdout.isatty():
        typer.launch(str(page))


app.command()(generate)
app.command()(chat)
app.command()(init)


@app.command()
def doctor() -> None:
    """Say what this machine can run, what is missing, and the command that installs it."""
    from align.doctor import diagnose, exit_code, render

    checks = diagnose()
    Console().print(render(checks))
    if code := exit_code(checks):
        raise typer.Exit(code)


@app.command()
def version() -> None:
    """Print Align's version."""
    print(__version__)


def main(arguments: Sequence[str] | None = None) -> Any:
    """Run the command line; errors made for users are printed without a traceback."""
    try:
        return app(args=list(arguments) if arguments is not None else None)
    except AlignError as error:
        errors.print(f"[red]error:[/] {type(error).__name__}", highlight=False)
        for line in (str(error), *getattr(error, "__notes__", ())):
            errors.print(line, markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except SystemExit as end:
        if isinstance(getattr(end.__context__, "__cause__", None), KeyboardInterrupt):
            errors.print("interrupted")  # typer made it an exit, without a word
        raise


if __name__ == "__main__":
    main()
