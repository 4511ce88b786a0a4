"""`align reward average`: one reward model from several that were fine-tuned from one start."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from align.errors import ConfigError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from align.types import Text

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
    from align.engine.checkpoint import write_manifest
    from reward.averaging import average_models

    questions: list[Text] = []
    if policy is not None and prompts is not None:  # what can be refused is refused before any work
        questions = choose_prompts(policy, models[0], prompts, samples, max_new_tokens, seed)

    def finish(folder: Path) -> None:
        if policy is not None:
            measure(folder, policy, questions, max_new_tokens, temperature, seed)
        write_manifest(folder)

    made = average_models(models, out, weight or None, finish)
    if policy is None and made.dropped:
        err.print(
            f"{', '.join(made.dropped)} of the members was left out, since it does not hold for "
            "the average. PPO needs a normalisation: measure it with --policy and --prompts."
        )
    for warning in made.warnings:
        err.print(f"warning: {warning}")
    if made.similarity < ALIKE:
        err.print(
            f"warning: two members' weights have a cosine of {made.similarity:.2f} only. Models of "
            "different starts average to noise; evaluate the result before using it."
        )
    elif made.head_similarity is not None and made.head_similarity < ALIKE:
        err.print(
            f"warning: two members' heads have a cosine of {made.head_similarity:.2f} only. "
            "Members whose heads were drawn apart average to a weaker head; start all of them "
            "from one saved reward model (model.path)."
        )
    shares = ", ".join(f"{share:.3g}" for share in made.weights)
    print(f"{out}: {made.numbers:,} numbers in {made.tensors} tensors, weights {shares}")


def choose_prompts(
    policy: str, model: Path, prompts: str, samples: int, max_new_tokens: int, seed: int
) -> list[Text]:
    """As many prompts as samples, drawn by seed from those that leave the policy room to answer.

    Raises:
        ConfigError: there is no such policy, or no prompt leaves it room.
        DataError: the prompts cannot be read.
    """
    from align.config.sections import DataSection, NormalisationSection
    from align.data import load_splits
    from align.engine.tokenizer import load_tokenizer
    from align.stages.normalisation import normalisation_prompts
    from align.stages.preflight import check_model

    check_model("--policy", policy)
    section = DataSection.model_validate({"train": prompts, "validation_fraction": 0.0})
    found = list(load_splits(section, "prompts").train["prompt"])
    settings = NormalisationSection(prompts=samples, max_new_tokens=max_new_tokens)
    tokenizer = _with_template(load_tokenizer(policy), model)
    kept = normalisation_prompts(found, tokenizer, policy, settings)
    Random(seed).shuffle(kept)
    return [kept[i % len(kept)] for i in range(samples)]


def measure(
    model: Path,
    policy_path: str,
    prompts: list[Text],
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
    sampler = TransformersSampler(
        policy,
        _with_template(tokenizer, model),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
    rollout = sampler(prompts)
    found = measure_normalisation(model, rollout.prompts, rollout.completions, policy_path)
    err.print(f"normalisation: mean {found.mean:.4g}, std {found.std:.4g}, {found.samples} samples")


def _with_template(tokenizer: PreTrainedTokenizerBase, model: Path) -> PreTrainedTokenizerBase:
    """The policy's tokenizer; one without a chat template takes the reward model's."""
    from align.engine.tokenizer import load_tokenizer

    if tokenizer.chat_template is None:
        tokenizer.chat_template = load_tokenizer(model).chat_template
    return tokenizer
