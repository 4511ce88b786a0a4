"""Prefix sharing where there is nothing to gain: `auto` beside `off`.

    python -m benchmarks.worst --json worst.json

Rows of random words that all have 256 tokens, so that nothing is padded, and share 16 tokens with
one other row (DPO, reward) or none (SFT). Both sides are ours, whose heads read labelled tokens;
the peer's passes are the plain ones. The goal is that `auto` takes at most 3% longer: a ratio of at
least 0.97. `shared_passes` says how many of the passes it chose to share, and `choosing` which part
of the time it took to choose: where no pass is shared, the two sides differ in nothing else.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from benchmarks.paired import Json
from benchmarks.training import (
    WARM,
    figures_of,
    finish,
    made_pairs,
    parser_of,
    prepare,
    run,
    take_turns,
    temporary,
)

MODULE = "benchmarks.worst"
SIDES = ("auto", "plain")
LENGTH, PROMPT = 256, 16  # tokens of a row, and of its prompt
ROWS = {"SFT": 16, "DPO": 8, "Reward": 8}  # of a step: as many tokens


def main(arguments: list[str]) -> int:
    """Run everything and write the figures."""
    parser = parser_of(__doc__)
    parser.set_defaults(models=["llama-6m"], rounds=5, same_steps=0)
    given = parser.parse_args(arguments)
    steps = given.steps + WARM
    figures: Json = {"length": LENGTH, "prompt": PROMPT, "rows": ROWS}
    with temporary() as name:
        for model in given.models:
            for kind, batch in ROWS.items():
                place = Path(name) / f"{model}_{kind.lower()}"
                rows = made_pairs(PROMPT, LENGTH - PROMPT, steps * batch)
                prepare(place, model, rows, words=True)
                args = {"per_device_train_batch_size": batch, "bf16": given.bf16}
                job: Json = {"steps": steps, "threads": given.threads, "args": args}
                if kind == "DPO":
                    job["reference"] = True
                elif kind == "Reward":
                    job["model_class"] = "AutoModelForSequenceClassification"
                turns = take_turns(MODULE, kind, place, job, given.rounds, sides=SIDES)
                told = {
                    key: statistics.median(auto[key] for auto, _ in turns)
                    for key in ("shared_passes", "choosing")
                }
                figures[place.name] = figures_of(turns) | told
                print(
                    f"{place.name}: {told['shared_passes']:.0%} of its passes were shared; "
                    f"{told['choosing']:.2%} of its time went into choosing",
                    flush=True,
                )
    return finish(given, figures, peer="Align, plain passes")


if __name__ == "__main__":
    raise SystemExit(run(main))
