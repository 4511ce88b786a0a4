"""DPO on several pairs of each prompt: batches grouped by prompt, beside batches at random.

    python -m benchmarks.batches --json batches.json

Both sides are ours, on shared prefixes, and train an epoch on the same pairs of random words, 4 of
each prompt and 8 a step, with a reference model. A prompt is 4 times as long as an answer. Their
orders differ, so that losses are not compared, but both must see the same real tokens. Token counts
do not depend on the machine; `computed_tokens` are those that the dense layers saw.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.paired import Json, compared
from benchmarks.training import (
    WARM,
    finish,
    made_pairs,
    parser_of,
    prepare,
    run,
    take_turns,
    temporary,
)

MODULE = "benchmarks.batches"
SIDES = ("grouped", "random")
BATCH, EACH = 8, 4  # pairs of a step, and of a prompt
PROMPT, ANSWER = 192, 48  # tokens
TOKENS = ("real_tokens", "computed_tokens")


def main(arguments: list[str]) -> int:
    """Run everything and write the figures."""
    given = parser_of(__doc__).parse_args(arguments)
    steps = given.steps + WARM
    job: Json = {
        "steps": steps,
        "threads": given.threads,
        "reference": True,
        "args": {"per_device_train_batch_size": BATCH, "bf16": given.bf16},
    }
    figures: Json = {"settings": job, "batch": BATCH, "pairs_of_a_prompt": EACH}
    with temporary() as name:
        for model in given.models:
            place = Path(name) / f"{model}_4_1"
            rows = made_pairs(PROMPT, ANSWER, steps * BATCH, each=EACH)
            prepare(place, model, rows, words=True)
            turns = take_turns(MODULE, "DPO", place, job, given.rounds, sides=SIDES)
            figures[f"{model}_4_1"] = compared(turns) | tokens_of(turns)
    return finish(given, figures, peer="Align in random order")


def tokens_of(turns: list[tuple[Json, Json]]) -> Json:
    """Tokens of both sides in a whole epoch, the reference's passes included.

    Raises:
        RuntimeError: they did not train on the same rows.
    """
    grouped, random = turns[0]
    if grouped["real_tokens"] != random["real_tokens"]:
        counts = [side["real_tokens"] for side in (grouped, random)]
        raise RuntimeError(f"real tokens differ: {counts[0]} grouped, {counts[1]} at random.")
    found = {side: {k: one[k] for k in TOKENS} for side, one in zip(SIDES, turns[0], strict=True)}
    print(found)
    return {"tokens": found, "tokens_ratio": random["computed_tokens"] / grouped["computed_tokens"]}


if __name__ == "__main__":
    raise SystemExit(run(main))
