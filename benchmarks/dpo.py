"""DPO: prefix sharing under TRL's trainer, beside TRL's trainer as it is.

    python -m benchmarks.dpo --json dpo.json

Pairs of HH at a length of at most 512, 8 a step: with a reference model in every step
(`MODEL_hh`), and with its log-probabilities computed before (`MODEL_hh_precomputed`); pairs of
random words whose prompt is 1, 4 or 8 times as long as an answer (`MODEL_1_1`, ...). The losses of
both sides must agree in every step; once for 50 steps. Leaves out starting and loading.
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
    made_pairs,
    parser_of,
    prepare,
    run,
    take_turns,
    temporary,
)

MODULE = "benchmarks.dpo"
BATCH = 8
SHAPES = {"1_1": (48, 48), "4_1": (192, 48), "8_1": (384, 48)}  # tokens of prompt and answer


def main(arguments: list[str]) -> int:
    """Run everything and write the figures."""
    parser = parser_of(__doc__)
    parser.add_argument("--shapes", nargs="*", choices=list(SHAPES), default=list(SHAPES))
    given = parser.parse_args(arguments)
    steps = given.steps + WARM
    job: Json = {
        "steps": steps,
        "threads": given.threads,
        "reference": True,
        "args": {"per_device_train_batch_size": BATCH, "bf16": given.bf16},
    }
    before = job["args"] | {"precompute_ref_log_probs": True}
    precomputed: Json = job | {"reference": False, "args": before}
    figures: Json = {"settings": job, "batch": BATCH}
    with temporary() as name:
        for model in given.models:
            most = max(steps, given.same_steps) * BATCH
            rows = hh_pairs(given.data)[:most]
            hh = Path(name) / f"{model}_hh"
            prepare(hh, model, rows)
            if model == given.models[0] and given.same_steps:
                same = take_turns(MODULE, "DPO", hh, job | {"steps": given.same_steps}, 1)
                figures["same_losses"] = {"steps": given.same_steps, "gap": check_losses(same)}
            for part, one in (("hh", job), ("hh_precomputed", precomputed)):
                turns = take_turns(MODULE, "DPO", hh, one, given.rounds)
                figures[f"{model}_{part}"] = figures_of(turns)
            for shape in given.shapes if model == given.models[0] else ():
                place = Path(name) / f"{model}_{shape}"
                prepare(place, model, made_pairs(*SHAPES[shape], steps * BATCH), words=True)
                turns = take_turns(MODULE, "DPO", place, job, given.rounds)
                figures[f"{model}_{shape}"] = figures_of(turns)
    return finish(given, figures)


if __name__ == "__main__":
    raise SystemExit(run(main))
