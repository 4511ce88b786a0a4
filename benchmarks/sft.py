"""SFT: rows without padding under TRL's trainer, beside TRL's trainer padding, and packing.

    python -m benchmarks.sft --json sft.json

Chosen answers of HH with their prompts at a length of at most 512, 16 a step. `MODEL_padded` is
against TRL's padded batches, whose losses must agree in every step, once for 50 steps;
`MODEL_packed` against TRL's packing into rows of 512, as many tokens a step, in seconds for 1,000
real tokens: packing forms other batches, so that their losses are not the same. Leaves out starting
and loading.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.paired import Json, compared
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

MODULE = "benchmarks.sft"
BATCH = 16
PACKED = 5  # rows of 512 tokens: about as many as 16 rows of HH have


def main(arguments: list[str]) -> int:
    """Run everything and write the figures."""
    given = parser_of(__doc__).parse_args(arguments)
    steps = given.steps + WARM
    job: Json = {
        "steps": steps,
        "threads": given.threads,
        "args": {"per_device_train_batch_size": BATCH, "bf16": given.bf16},
    }
    packing = job["args"] | {"per_device_train_batch_size": PACKED, "packing": True}
    packed: Json = job | {"args": packing}
    figures: Json = {"settings": job, "batch": BATCH}
    with temporary() as name:
        for model in given.models:
            folder = Path(name) / model
            prepare(folder, model, hh_pairs(given.data)[: max(steps, given.same_steps) * BATCH])
            if model == given.models[0] and given.same_steps:
                same = take_turns(MODULE, "SFT", folder, job | {"steps": given.same_steps}, 1)
                figures["same_losses"] = {"steps": given.same_steps, "gap": check_losses(same)}
            turns = take_turns(MODULE, "SFT", folder, job, given.rounds)
            figures[f"{model}_padded"] = figures_of(turns)
            turns = take_turns(MODULE, "SFT", folder, job, given.rounds, packed)
            figures[f"{model}_packed"] = compared([(a_token(a), a_token(b)) for a, b in turns])
    return finish(given, figures)


def a_token(found: Json) -> Json:
    """Figures whose seconds are those of 1,000 real tokens."""
    return found | {"seconds": 1000 * found["seconds"] / found["tokens"]}


if __name__ == "__main__":
    raise SystemExit(run(main))
