"""Does self-training bring anything, and does the gate see when it does not?

    python -m benchmarks.selftrain --json selftrain.json --work runs/selftrain --seeds 0,1,2

- policy: word problems (`benchmarks.selftrain_world`), few with a worked solution, many with an
  answer alone. A small Llama learns the demonstrations (`sft`); `align selftrain` with STaR then
  keeps the right ones of its own solutions, three rounds. Every round begins with the untrained
  model and takes as many steps as `sft` did, so what differs is the data. `longer` goes on from
  `sft` for as many steps as all rounds took together, on the demonstrations alone. All are measured
  on test questions that nothing else saw.
- preferences: a reward model of 400 noisy comparisons labels pairs that nobody compared. Every
  round's model is measured on test pairs with the simulated people's true utilities, whether or not
  the gate let it through, beside a model that got 500 more labels of people instead.
- useless: the same with a pool of answers that nobody can tell apart, so that its labels are noise.
  The gate is expected to promote nothing, and to end the loop by itself.

Every training lies in a folder of its own under --work, and what is done is not done again: the
same command goes on after a kill. A seed takes about forty minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from align.config import SFTStage, load_config
from align.config.stages import SelftrainStage
from align.engine.create import create_model
from align.engine.models import load_policy
from align.evaluate.significance import paired_difference, seeds_interval
from align.rollout.transformers import TransformersSampler
from align.selftrain.fit import train
from align.stages import selftrain as selftrain_stage
from benchmarks.paired import machine, versions
from benchmarks.selftrain_pairs import run_preferences, run_useless
from benchmarks.selftrain_world import Level, make_world
from benchmarks.small_runs import PLAIN, finish, write_rows
from reward.verify.math_answer import MathReward

Json = dict[str, Any]
MODEL = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
LEVEL = Level(steps=(1, 3), largest=30, added=9)
REWARD = (
    "{function: 'reward.verify.math_answer:MathReward', kwargs: {parser: numeric, strict: true}}"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts, print and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--work", type=Path, required=True, help="where trainings are kept")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--parts", default="policy,preferences,useless")
    parser.add_argument("--demonstrations", type=int, default=160)
    parser.add_argument("--questions", type=int, default=2500)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--steps", type=int, default=1200, help="of SFT, and of every round")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    parts: dict[str, Callable[[int, Path, argparse.Namespace], Json]] = {
        "policy": run_policy,
        "preferences": run_preferences,
        "useless": run_useless,
    }
    chosen = given.parts.split(",")
    if unknown := [name for name in chosen if name not in parts]:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(parts)}")
    found: Json = {"settings": {k: v for k, v in vars(given).items() if k not in ("json", "work")}}
    for name in chosen:
        seeds = []
        for seed in map(int, given.seeds.split(",")):
            folder = given.work / name / f"seed-{seed}"
            done = folder / "result.json"
            if not done.is_file():
                folder.mkdir(parents=True, exist_ok=True)
                began = time.monotonic()
                one = parts[name](seed, folder, given) | {"seed": seed}
                one["seconds"] = round(time.monotonic() - began, 1)
                temporary = done.with_suffix(".tmp")
                temporary.write_text(json.dumps(one, indent=1) + "\n", encoding="utf-8")
                temporary.replace(done)
            seeds.append(json.loads(done.read_text(encoding="utf-8")))
            print(f"{name} seed {seed}: {seeds[-1]['words']}", flush=True)
        found[name] = {"seeds": seeds, "summary": over_seeds(seeds)}
        for key, value in found[name]["summary"].items():
            print(
                f"{name} {key:24} {value['value']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"
            )
    found |= {"device": machine(), "versions": versions(["torch", "transformers", "trl"])}
    given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def over_seeds(seeds: Sequence[Json]) -> Json:
    """Student's interval of every figure over seeds; none of one seed."""
    names = [name for name, value in seeds[0]["figures"].items() if isinstance(value, float)]
    if len(seeds) < 2:
        return {}
    return {n: seeds_interval([one["figures"][n] for one in seeds]).as_dict() for n in names}


def run_policy(seed: int, folder: Path, given: argparse.Namespace) -> Json:
    """SFT alone, SFT for longer, and STaR, of one seed."""
    counts = {"test": given.test, "held": 300, "demonstrations": given.demonstrations}
    world = make_world(seed, counts | {"questions": given.questions}, LEVEL)
    files = {}
    for name, rows in world.items():
        keys = ("prompt", "completion") if name == "demonstrations" else ("prompt", "answer")
        files[name] = write_rows(folder / f"{name}.jsonl", [{k: r[k] for k in keys} for r in rows])
    base = folder / "base"
    if not base.is_dir():
        texts = [{"text": row["prompt"] + row["completion"]} for row in world["demonstrations"]]
        corpus = write_rows(folder / "texts.jsonl", texts)
        create_model(MODEL, base, tokenizer_data=[corpus], vocab_size=384, seed=seed)
    demonstrations = files["demonstrations"]
    sft = fine_tune(base, demonstrations, folder / "sft", seed, given.steps)
    config = load_config(
        SelftrainStage,
        None,
        [
            f"run.dir={folder / 'star'}",
            f"run.seed={seed}",
            f"model.path={sft}",
            "loop.method=star",
            f"loop.rounds={given.rounds}",
            f"loop.patience={given.rounds}",
            f"loop.base={base}",
            f"data.train={files['questions']}",
            f"data.validation={files['held']}",
            "harvest.samples=4",
            "harvest.accumulate=true",
            f"harvest.beside={demonstrations}",
            f"reward=[{REWARD}]",
            "rollout.max_new_tokens=40",
            "rollout.temperature=0.8",
            "rollout.batch_size=256",
            *trainer(given.steps),
        ],
    )
    finish(config, selftrain_stage)
    longer = fine_tune(sft, demonstrations, folder / "longer", seed, given.steps * given.rounds)
    story = json.loads((folder / "star" / "selftrain.json").read_text(encoding="utf-8"))
    used = story["in_use"]
    star = folder / "star" / "model" if used else sft
    scores = {
        name: right(path, world["test"])
        for name, path in {"sft": sft, "longer": longer, "star": star}.items()
    }
    means = {name: sum(values) / len(values) for name, values in scores.items()}
    best = max(("sft", "longer"), key=lambda name: means[name])
    gain = paired_difference(scores["star"], scores[best])
    figures = means | {"gain": means["star"] - means["sft"], "gain_over_best": gain.interval.value}
    rounds = [
        {"round": one["round"], "held": one["value"], "promoted": one["promoted"]}
        | {name: (one.get("harvest") or {}).get(name) for name in ("kept", "solved", "rows")}
        for one in story["rounds"]
    ]
    return {
        "figures": figures,
        "over_prompts": {"value": gain.interval.value, "low": gain.interval.low}
        | {"high": gain.interval.high, "p_value": gain.p_value, "over": best},
        "rounds": rounds,
        "stopped": story["why"],
        "words": ", ".join(f"{name} {value:.3f}" for name, value in means.items())
        + f"; in use: round {used}",
    }


def trainer(steps: int) -> list[str]:
    """The settings that SFT and every round share."""
    return [
        f"trainer.max_steps={steps}",
        "trainer.per_device_train_batch_size=32",
        "trainer.learning_rate=3e-3",
        "trainer.lr_scheduler_type=cosine",
        "trainer.warmup_steps=20",
        "trainer.save_steps=250",
        "trainer.save_total_limit=1",
        "trainer.logging_steps=100",
        "tracking.report_to=[none]",
    ]


def fine_tune(start: Path, data: Path, folder: Path, seed: int, steps: int) -> Path:
    """`align sft`, unless that is done; the model."""
    own = [f"run.dir={folder}", f"run.seed={seed}", f"model.path={start}", f"data.train={data}"]
    plain = [one for one in PLAIN if one.startswith("data.")]
    config = load_config(SFTStage, None, [*own, *plain, *trainer(steps)])
    return train(config, folder)


def right(path: Path, problems: Sequence[Json]) -> list[float]:
    """Whether the likeliest answer to each problem is right, (n,)."""
    policy, _, tokenizer = load_policy(path, with_reference=False)
    sampler = TransformersSampler(
        policy, tokenizer, max_new_tokens=40, temperature=0.0, batch_size=256
    )
    rollout = sampler([row["prompt"] for row in problems])
    reward = MathReward(parser="numeric", strict=True)
    answers = [row["answer"] for row in problems]
    return reward(rollout.prompts, rollout.completions, answer=answers)


if __name__ == "__main__":
    raise SystemExit(main())
