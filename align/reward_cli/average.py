"""`align reward average`: one reward model from several that were fine-tuned from one start."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from align.errors import ConfigError, Problem

app = typer.Typer()
err = Console(stderr=True, markup=False, highlight=False)
ALIKE = 0.8  # least cosine of two members' weights below which they hardly share a start


@app.command()
def average(
    out: Annotated[Path, typer.Argument(help="Where the average goes.")],
    models: Annotated[
        list[Path], typer.Argument(help="Reward models' directories.", metavar="MODEL MODEL...")
    ],
    weight: Annotated[
        list[float] | None, typer.Option(help="Of each model, in order; default: all alike.")
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="Measure the normalisation again on samples of this policy."),
    ] = None,
    prompts: Annotated[str | None, typer.Option(help="Data whose prompts it answers.")] = None,
    samples: Annotated[int, typer.Option(min=2, help="Answers that are scored.")] = 256,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of a sample.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.01, help="Of the samples.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
) -> None:
    """Average the weights of reward models that were fine-tuned from one start.

    The members' normalisation statistics are not the average's: name --policy and --prompts to
    measure them again, which PPO wants.
    """
    if (policy is None) != (prompts is None):
        what = "--policy and --prompts go together."
        raise ConfigError([Problem("average", what, "give both, or neither.")])
    from align.quiet import quiet_libraries

    quiet_libraries()
    from align.config.sections import DataSection
    from align.data import load_splits
    from align.engine.checkpoint import write_manifest
    from align.stages.preflight import check_model
    from reward.averaging import average_models

    questions = []
    if policy is not None and prompts is not None:  # what can be refused is refused before any work
        check_model("--policy", policy)
        section = DataSection.model_validate({"train": prompts, "validation_fraction": 0.0})
        questions = list(load_splits(section, "prompts").train["prompt"])
    made = average_models(models, out, weight or None)
    if policy is not None:
        measure(out, policy, questions, samples, max_new_tokens, temperature, seed)
    elif made.dropped:
        err.print(
            f"{', '.join(made.dropped)} of the members were left out: they do not hold for the "
            "average. PPO needs normalisation statistics; measure them with --policy and --prompts."
        )
    write_manifest(out)
    if made.similarity < ALIKE:
        err.print(
            f"warning: two members' weights have a cosine of {made.similarity:.2f} only. Models of "
            "different starts average to noise; evaluate the result before using it."
        )
    shares = ", ".join(f"{share:.3g}" for share in made.weights)
    print(f"{out}: {made.numbers:,} numbers in {made.tensors} tensors, weights {shares}")


def measure(
    model: Path,
    policy_path: str,
    prompts: list[object],
    samples: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> None:
    """Sample the policy and keep mean and standard deviation of the scores in the model.

    Raises:
        ModelError: policy or model cannot be loaded, or the model scores all samples alike.
    """
    from align.engine.models import load_policy
    from align.rollout.transformers import TransformersSampler
    from reward.averaging import measure_normalisation

    policy, _, tokenizer = load_policy(policy_path, with_reference=False)
    if tokenizer.chat_template is None:
        from transformers import AutoTokenizer

        tokenizer.chat_template = AutoTokenizer.from_pretrained(str(model)).chat_template
    sampler = TransformersSampler(
        policy, tokenizer, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
    )
    rollout = sampler([prompts[i % len(prompts)] for i in range(samples)])  # type: ignore[misc]
    found = measure_normalisation(model, rollout.prompts, rollout.completions, policy_path)
    err.print(f"normalisation: mean {found.mean:.4g}, std {found.std:.4g}, {found.samples} samples")
