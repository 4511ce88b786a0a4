"""Do reward models know what they do not know? Calibration, and errors foretold, in the world.

    python -m benchmarks.doubt --folder runs/over --json doubt.json

Four reward models of 400 pairs each (`benchmarks.overoptimisation` makes and keeps the same ones in
its folder; what is not there is made) read two answers of the SFT policy to each of 700 held-out
questions. Measured over seeds:

- errors: of pairs that gold tells apart, how well a doubt finds those that the members' mean gets
  wrong (AUROC, 0.5 is none). Doubts: the members' votes, their standard deviation, that over the
  margin (how likely its sign is wrong), and the small margin alone, which needs no ensemble;
- calibration: every simulated annotator judges every pair. Half of the questions fit a temperature,
  the other half measure the expected calibration error (ECE) before and after, beside what a
  calibrated model would show on as many judgements.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from align.data.rows import prompt_key
from align.engine.models import load_policy
from align.evaluate.significance import seeds_interval
from align.quickstart.annotators import annotators
from align.quickstart.gold import gold_score
from align.quickstart.world import World
from align.rollout.transformers import TransformersSampler
from align.run import write_json
from benchmarks.overoptimisation import Scale, prepare
from benchmarks.paired import Json, machine, versions
from feedback.schema import Pair
from reward.calibration_check import check_calibration
from reward.model import RewardModel

SIDES = 2  # answers to a question


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the models are, or go")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", default="1,2,3", help="with commas")
    parser.add_argument("--questions", type=int, default=700)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    seeds = []
    for seed in map(int, given.seeds.split(",")):
        folder = given.folder / f"seed-{seed}"
        members = sorted(folder.glob("member-*/reward/model"))
        if not members:
            _, _, members = prepare(folder, seed, Scale())
        seeds.append({"seed": seed} | measure(folder / "sft" / "model", members, seed, given))
        print(json.dumps(seeds[-1]), flush=True)
    names = [name for name, value in seeds[0].items() if isinstance(value, float)]
    found: Json = {"seeds": seeds, "device": machine(), "versions": versions(["torch"])}
    if len(seeds) > 1:
        found["summary"] = {n: seeds_interval([one[n] for one in seeds]).as_dict() for n in names}
        for name, one in found["summary"].items():
            print(f"{name:24s} {one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]")
    write_json(given.json, found)
    return 0


def measure(sft: Path, members: Sequence[Path], seed: int, given: argparse.Namespace) -> Json:
    """Figures of one seed."""
    rows = World(seed).prompts(given.questions, "test")
    policy, _, tokenizer = load_policy(sft, with_reference=False)
    sampler = TransformersSampler(policy, tokenizer, max_new_tokens=64, batch_size=256, seed=seed)
    prompts = [row["prompt"] for row in rows]
    drawn = sampler(prompts, group_size=SIDES).completions
    sides = [drawn[side::SIDES] for side in range(SIDES)]
    columns: dict[str, Any] = {"facts": [row["facts"] for row in rows]}
    gold = np.array(
        [gold_score(prompts, [text[-1]["content"] for text in side], **columns) for side in sides]
    )
    margins = []
    for path in members:
        model = RewardModel.load(path, normalise=False)
        scores = [np.array(model.score(prompts, side)) for side in sides]
        margins.append(scores[0] - scores[1])
    each = np.stack(margins)  # (K, n)
    told = gold[0] != gold[1]
    found = errors(each[:, told], (gold[0] > gold[1])[told])
    pairs = [
        Pair(str(i), prompt, *(side[i][-1]["content"] for side in sides))
        for i, prompt in enumerate(prompts)
    ]
    said = [
        (place, comparison.label)
        for person in annotators(seed)
        for place, pair in enumerate(pairs)
        if (comparison := person.judge(pair, *gold[:, place])).label in ("a", "b")
    ]
    towards = [each[0, place] * (1 if label == "a" else -1) for place, label in said]
    keys = [prompt_key(prompts[place]) for place, _ in said]
    _, check = check_calibration(np.array(towards), groups=keys, seed=seed)
    return found | {
        "judgements": len(said),
        "ece_before": check.before.ece.value,
        "ece_after": check.after.ece.value,
        "ece_if_calibrated": float(check.after.expected),
    }


def errors(each: np.ndarray, right: np.ndarray) -> Json:
    """How well doubts find errors.

    Args:
        each: (K, n) margins of K members.
        right: (n,) whether the first answer is the better one.
    """
    mean, spread = each.mean(axis=0), each.std(axis=0)
    wrong = (mean > 0) != right
    doubts = {
        "votes": -np.abs((each > 0).mean(axis=0) - 0.5),
        "spread": spread,
        "spread over margin": spread / np.abs(mean),
        "small margin": -np.abs(mean),
    }
    found = {f"auroc of {name}": float(roc_auc_score(wrong, d)) for name, d in doubts.items()}
    return {"accuracy": float(1 - wrong.mean()), "pairs": len(wrong)} | found


if __name__ == "__main__":
    raise SystemExit(main())
