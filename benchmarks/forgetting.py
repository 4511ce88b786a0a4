"""Old against new: each guard at several strengths, on language models that learn two tasks.

    python -m benchmarks.forgetting --json forgetting.json --folder runs/forgetting

Every part trains the first task, then the second under each arm (`align continual`), for three
seeds, each with its own weights and its own order:

    sft   GSM8K's solutions, then harmless dialogue, both by SFT
    dpo   GSM8K's solutions by SFT, then harmless preferences by DPO
    ppo   the quickstart's demonstrations by SFT, then PPO against a reward model; its gold reward
          is the new task, and the world's own texts are measured too

Old and new are held-out scores, higher is better: mean log-probability of a token, for DPO the
share of pairs, for PPO gold. Written are the story of each part (matrices, figures with intervals
over seeds, differences from naive paired by seed, Pareto front) and, for each guard, the strength
that forgets least among those within `--tolerance` of naive on the new task: whether it removed 80%
of naive forgetting is the goal. That strength is chosen on the same seeds, so its figure flatters.

A model of a million parameters made here; what a seed's folder holds is not repeated. Leaves out
pretrained models, whose forgetting is of another kind.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from align.config.stages import ContinualStage
from align.continual.loop import Rows
from align.continual.measure import Column
from align.continual.story import tell_story
from align.engine.create import create_model
from align.quickstart.world import World
from align.run import open_run, write_json
from align.stages import continual
from benchmarks.overoptimisation import Scale, prepare
from benchmarks.paired import machine, versions
from benchmarks.preference_sets import DATA

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "configs" / "models" / "llama-1m.json"
GOLD = "align.quickstart.gold:gold_score"
GOAL = 0.8  # of naive forgetting removed
Json = dict[str, Any]

STRENGTHS: dict[str, Sequence[float]] = {
    "replay": (0.1, 0.3, 1.0, 3.0),
    "distill": (0.1, 0.3, 1.0, 3.0),
    "ewc": (1e-2, 1e-1, 1e0, 1e1),
    "mas": (1e-5, 1e-4, 1e-3, 1e-2),
    "l2sp": (1e-3, 1e-2, 1e-1, 1e0),
    "wise_ft": (0.8, 0.6, 0.4, 0.2),  # share of the training that is kept
    "isolate": (0.2, 0.4, 0.6, 0.8),  # share of the weights that is frozen
    "budget": (0.01, 0.03, 0.1, 0.3),  # replay within a budget: growth of its rows' loss
}
DATA_GUARDS = ("replay", "distill", "ewc", "mas", "isolate", "budget")
SHARES = ("wise_ft", "isolate")


def arms(names: Sequence[str]) -> dict[str, list[Json]]:
    """Naive, and each guard at each of its strengths."""
    found: dict[str, list[Json]] = {"naive": []}
    for name in names:
        for strength in STRENGTHS[name]:
            guard: Json = {"type": "replay" if name == "budget" else name, "from": 2}
            guard["share" if name in SHARES else "strength"] = strength
            if name == "budget":
                budget = {"allowed": strength, "every": 5, "enforce": True}
                guard |= {"strength": 0.1, "budget": budget}
            if name in DATA_GUARDS:
                guard |= {"data": "earlier", "samples": 512}
            found[f"{name}-{strength:g}"] = [guard]
    return found


def settings(data: str | list[Json], steps: int, rate: float, **more: Any) -> Json:
    """Sections of an off-policy task."""
    trainer = {"max_steps": steps, "learning_rate": rate, "per_device_train_batch_size": 16}
    trainer |= {"max_length": 256, "warmup_steps": 10, "save_strategy": "no", **more}
    return {
        "data": {
            "train": data,
            "validation_fraction": 0.0,
            "test_fraction": 0.1,
            "bad_rows": "quarantine",
        },
        "trainer": trainer,
        "tracking": {"report_to": ["none"]},
    }


def two_sets(folder: Path, seed: int, given: argparse.Namespace, stage: str) -> Json:
    """GSM8K, then harmless dialogue or preferences."""
    first, second = (str(given.data / f"{name}.jsonl.gz") for name in ("gsm8k", "hh_harmless"))
    base = folder / "base"
    if not (base / "config.json").is_file():
        corpora = [Path(first), Path(second)]
        create_model(MODEL, base, tokenizer_data=corpora, vocab_size=2048, seed=seed)
    old = [{"path": first, "columns": {"prompt": "question", "completion": "answer"}}]
    new = settings(second, given.second, 3e-3 if stage == "sft" else 1e-3)
    measure = {"kind": "likelihood" if stage == "sft" else "preference", "rows": 200}
    return {
        "model": {"path": str(base)},
        "tasks": [
            {"name": "gsm8k", "settings": settings(old, given.first, 3e-3)},
            {"name": "harmless", "stage": stage, "settings": new, "measure": measure},
        ],
    }


def world_and_ppo(folder: Path, seed: int, given: argparse.Namespace) -> Json:
    """The quickstart's demonstrations, then PPO against its reward model."""
    marker = folder / "made"
    if not marker.is_file():
        prepare(folder / "world", seed, Scale(pairs=2000, members=1))
        marker.write_text("")
    world, place = World(seed), folder / "world"
    files = {
        "prompts": world.prompts(2000),
        "asked": world.prompts(200, "test"),
        "texts": [  # past those that the base model has read
            {"prompt": lead, "completion": text} for lead, text in world.corpus(8250)[8000:] if lead
        ],
    }
    paths = {name: folder / f"{name}.jsonl" for name in files}
    for name, rows in files.items():
        paths[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    ppo = {
        "data": {"train": str(paths["prompts"]), "validation_fraction": 0.0},
        "reward": [{"path": str(place / "member-0/reward/model")}],
        "trainer": {
            "total_episodes": given.episodes,
            "rollout_batch_size": 128,
            "per_device_train_batch_size": 64,
            "ppo_epochs": 2,
            "learning_rate": 3e-4,
            "kl_coef": 0.05,
            "save_strategy": "no",
        },
        "rollout": {"max_new_tokens": 64},
        "tracking": {"report_to": ["none"]},
    }
    gold = {"kind": "reward", "reward": GOLD, "data": str(paths["asked"])}
    return {
        "model": {"path": str(place / "base")},
        "tasks": [
            {
                "name": "demonstrations",
                "settings": settings(str(place / "data/sft.jsonl"), 90, 1e-3),
            },
            {"name": "gold", "stage": "ppo", "settings": ppo, "measure": gold},
        ],
        "others": [{"name": "language", "data": str(paths["texts"])}],
    }


PARTS: dict[str, Callable[[Path, int, argparse.Namespace], Json]] = {
    "sft": lambda folder, seed, given: two_sets(folder, seed, given, "sft"),
    "dpo": lambda folder, seed, given: two_sets(folder, seed, given, "dpo"),
    "ppo": world_and_ppo,
}


def run_part(part: str, folder: Path, given: argparse.Namespace) -> Json:
    """All seeds of a part, each a continual run of its own, as one story."""
    names = given.guards.split(",")
    found: Rows = {}
    columns: list[Column] = []
    for seed in map(int, given.seeds.split(",")):
        place = folder / part / f"seed-{seed}"
        place.mkdir(parents=True, exist_ok=True)
        run = place / "run"
        made = PARTS[part](place, seed, given)
        made |= {"run": {"dir": str(run), "seed": seed}, "arms": arms(names), "seeds": [seed]}
        config = ContinualStage.model_validate(made)
        resume = (run / "run.json").is_file()
        with open_run(config, resume=resume, command=["benchmarks.forgetting"]) as opened:
            rows, columns = continual.train_all(config, opened)
        for arm, seeds in rows.items():
            found.setdefault(arm, {}).update(seeds)
    return tell_story(found, columns, 2, arms(names))


def best_of_guards(story: Json, tolerance: float) -> Json:
    """For each guard the strength that forgets least while the new task is near naive."""
    found: Json = {}
    for arm, one in story["arms"].items():
        figures: Mapping[str, Any] = one["figures"]
        if arm == story["naive"] or "new less naive" not in figures:
            continue
        guard = arm.split("-")[0]  # a strength may be 1e-05
        if figures["new less naive"]["value"] < -tolerance:
            continue
        known = found.get(guard)
        if known is None or figures["forgetting"]["value"] < known["forgetting"]["value"]:
            removed = figures.get("forgetting removed", {}).get("value")
            found[guard] = {"arm": arm, **figures}
            found[guard]["goal"] = removed is not None and removed >= GOAL
    return found


def main() -> None:
    """Run, print and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--folder", type=Path, help="where the runs are kept; default: nowhere")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the sets")
    parser.add_argument("--parts", default=",".join(PARTS), help="with commas")
    parser.add_argument("--guards", default=",".join(STRENGTHS), help="with commas")
    parser.add_argument("--seeds", default="0,1,2", help="with commas")
    parser.add_argument("--first", type=int, default=300, help="steps of the first task")
    parser.add_argument("--second", type=int, default=60, help="steps of the second")
    parser.add_argument("--episodes", type=int, default=1280, help="of PPO")
    parser.add_argument("--tolerance", type=float, default=0.08, help="of the new task's score")
    given = parser.parse_args()
    torch.set_num_threads(1)
    report: Json = {}
    with tempfile.TemporaryDirectory() as name:
        for part in given.parts.split(","):
            story = run_part(part, given.folder or Path(name), given)
            report[part] = {"story": story, "best": best_of_guards(story, given.tolerance)}
            for guard, one in report[part]["best"].items():
                removed = one.get("forgetting removed", {}).get("value")
                print(f"{part} {guard}: {one['arm']} removed {removed}", flush=True)
            if given.json:
                whole = {"parts": report, "settings": vars(given), "device": machine()}
                whole |= {"versions": versions(["torch", "transformers", "trl"])}
                write_json(given.json, json.loads(json.dumps(whole, default=str)))


if __name__ == "__main__":
    main()
