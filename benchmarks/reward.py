"""Reward modelling: prefix sharing under TRL's trainer, beside TRL's trainer as it is.

    python -m benchmarks.reward --json reward.json

Pairs of HH at a length of at most 512, 8 a step. The losses of both sides must agree in every step;
once for 50 steps. Leaves out starting and loading.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.paired import Json
from benchmarks.training import (
    WARM,
    check_losses,
    figures_of,
    finish,
    hh_pairs,
    parser_of,
    prepare,
    run,
    take_turns,
    temporary,
)

MODULE = "benchmarks.reward"
BATCH = 8


def main(arguments: list[str]) -> int:
    """Run everything and write the figures."""
    given = parser_of(__doc__).parse_args(arguments)
    steps = given.steps + WARM
    job: Json = {
        "steps": steps,
        "threads": given.threads,
        "model_class": "AutoModelForSequenceClassification",
        "args": {"per_device_train_batch_size": BATCH, "bf16": given.bf16},
    }
    figures: Json = {"settings": job, "batch": BATCH}
    with temporary() as name:
        for model in given.models:
            folder = Path(name) / model
            prepare(folder, model, hh_pairs(given.data)[: max(steps, given.same_steps) * BATCH])
            if model == given.models[0] and given.same_steps:
                same = take_turns(MODULE, "Reward", folder, job | {"steps": given.same_steps}, 1)
                figures["same_losses"] = {"steps": given.same_steps, "gap": check_losses(same)}
            turns = take_turns(MODULE, "Reward", folder, job, given.rounds)
            figures[f"{model}_hh"] = figures_of(turns)
    return finish(given, figures)


if __name__ == "__main__":
    raise SystemExit(run(main))
