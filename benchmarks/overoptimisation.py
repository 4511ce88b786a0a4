"""Over-optimisation on the quickstart's world: best-of-n and PPO against a reward of few labels.

    python -m benchmarks.overoptimisation --json figures.json --folder runs/overoptimisation

For every seed: a world, a base model, SFT, and some hundred pairs judged by the noisy annotators,
on which an ensemble of reward models is trained (`align reward`). The first member starts from the
policy's SFT model; each other one from a base model and SFT of its own, because members that share
theirs err alike (Eisenstein et al. 2023, arXiv 2312.09244). The hidden gold scorer measures and is
never trained on. Best-of-n draws n <= 256 answers of the SFT policy for each
test question and lets one reward model, the ensemble's mean, or its lower confidence bound choose.
PPO runs against each of the three without a KL penalty and with one (`--kl-coef`), gold logged
beside. Written are the curves against d = sqrt(KL), the fits of Gao et al. (2023), whether gold
turned over, and which alarms were raised at which step.

What `--folder` holds of a seed is read and not repeated. A report of all runs is written
beside the figures. Leaves out other sizes of policy and reward model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from align.engine.models import load_policy
from align.evaluate.overoptimisation import (
    Curve,
    best_of_n_curve,
    fit,
    training_curve,
    turnover,
)
from align.quickstart.gold import gold_score
from align.quickstart.judges import simulated_judge
from align.quickstart.pretrain import make_base_model
from align.quickstart.recipe import DEMONSTRATIONS, issue_pairs, stage, write_jsonl
from align.quickstart.world import World
from align.report import build_report
from align.rollout.transformers import TransformersSampler
from align.run import read_jsonl, write_json
from benchmarks.paired import machine, versions
from feedback.store import FeedbackStore
from reward.ensemble import EnsembleReward, lower_bound
from reward.functions import call_reward
from reward.model import RewardModel

GOLD = "gold/gold_score"
MODES = {"mean": "mean", "bound": "lower_bound"}  # of an ensemble's reward
REWARDS = {"one": "one model", "mean": "mean", "bound": "lower bound"}
BEST_OF = {reward: f"best of n, {name}" for reward, name in REWARDS.items()}
PPO = {reward: f"PPO without KL, {name}" for reward, name in REWARDS.items()}
PPO |= {f"{reward}_kl": f"PPO with KL, {name}" for reward, name in REWARDS.items()}
INTERLEAVE = (
    8  # units of a run where intervals are over its rollouts: an eighth of the updates each
)
Json = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """How large the experiment is."""

    pairs: int = 400  # judged by every annotator
    members: int = 4  # reward models
    prompts: int = 100  # test questions
    draws: int = 256  # answers of each
    updates: int = 80  # of PPO
    batch: int = 128  # rollouts of an update
    pretrain: int = 800  # steps
    learning_rate: float = 3e-4
    pessimism: float = 1.0  # standard deviations below the ensemble's mean
    kl_coef: float = 0.1  # of the arms with a KL penalty


TINY = Scale(40, 2, 4, 4, 10, 8, 4, 1e-3)


def prepare(folder: Path, seed: int, scale: Scale) -> tuple[World, Path, list[Path]]:
    """World, SFT policy and reward models of one seed."""
    world, data = World(seed), folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    write_jsonl(data / "sft.jsonl", world.demonstrations(DEMONSTRATIONS))
    sft = make_policy(folder, world, seed, data / "sft.jsonl", scale)
    url = f"sqlite:///{data / 'feedback.db'}"
    (data / "feedback.db").unlink(missing_ok=True)
    with FeedbackStore(url) as store:
        issue_pairs(store, sft, world, seed, count=scale.pairs)
        simulated_judge(store, world, folder)
    members = []
    for member in range(scale.members):
        place, own = folder / f"member-{member}", 1000 * seed + member
        start = make_policy(place, world, own, data / "sft.jsonl", scale) if member else sft
        given = [f"model.path={start}", f"data.train={url}", f"normalisation.policy={sft}"]
        given += ["trainer.max_steps=4", "normalisation.prompts=8"] if scale == TINY else []
        stage("reward", place, own, given)
        members.append(place / "reward" / "model")
    return world, sft, members


def make_policy(folder: Path, world: World, seed: int, data: Path, scale: Scale) -> Path:
    """A base model of this seed, fine-tuned on the demonstrations."""
    make_base_model(folder / "base", world, seed, steps=scale.pretrain)
    start = [f"model.path={folder / 'base'}", f"data.train={data}"]
    stage("sft", folder, seed, start + (["trainer.max_steps=4"] if scale == TINY else []))
    return folder / "sft" / "model"


def choose(sft: Path, members: Sequence[Path], world: World, seed: int, scale: Scale) -> Json:
    """Scores of every draw: by one model, by the ensemble's mean and lower bound, by gold."""
    policy, _, tokenizer = load_policy(sft, with_reference=False)
    sampler = TransformersSampler(policy, tokenizer, max_new_tokens=64, batch_size=256)
    torch.manual_seed(seed)
    ensemble = EnsembleReward(members)
    scorers: dict[str, Callable[..., Any]] = {
        "one": RewardModel.load(members[0]),
        "gold": gold_score,
    }
    found: dict[str, list[list[float]]] = {name: [] for name in (*REWARDS, "gold")}
    for row in world.prompts(scale.prompts, "test"):
        facts = [row["facts"]]
        rollout = sampler([row["prompt"]], group_size=scale.draws, facts=facts)
        for name, scorer in scorers.items():
            found[name].append(
                call_reward(scorer, rollout.prompts, rollout.completions, **rollout.columns)
            )
        scores = ensemble.scores(rollout.prompts, rollout.completions, **rollout.columns)
        found["mean"].append(scores.mean(dim=0).tolist())
        found["bound"].append(lower_bound(scores, scale.pessimism).tolist())
    return found


def train(
    arm: str,
    sft: Path,
    members: Sequence[Path],
    world: World,
    seed: int,
    folder: Path,
    scale: Scale,
) -> Json:
    """One arm of PPO; what it logged at each update, and its alarms."""
    prompts = write_jsonl(folder / "data" / "prompts.jsonl", world.prompts(4200))
    kind, _, penalised = arm.partition("_")
    reward: Json = {"path": str(members[0])}
    if kind != "one":
        reward = {"ensemble": [str(member) for member in members], "mode": MODES[kind]}
        reward["pessimism"] = scale.pessimism
    gold = {"function": "align.quickstart.gold:gold_score", "gold": True}
    overrides = [
        f"model.path={sft}",
        f"data.train={prompts}",
        f"reward={json.dumps([reward, gold])}",
        f"trainer.kl_coef={scale.kl_coef if penalised else 0.0}",
        f"trainer.learning_rate={scale.learning_rate}",
        f"trainer.rollout_batch_size={scale.batch}",
        f"trainer.per_device_train_batch_size={min(64, scale.batch)}",
        f"trainer.total_episodes={scale.updates * scale.batch}",
    ]
    stage("ppo", folder / arm, seed, overrides)
    run = folder / arm / "ppo"
    logged = [row for row in read_jsonl(run / "metrics.jsonl") if GOLD in row]
    kept = ("step", "kl/reference", "reward/mean", "reward/disagreement", GOLD)
    return {
        "metrics": [{key: row[key] for key in kept if key in row} for row in logged],
        "alarms": read_jsonl(run / "alarms.jsonl"),
    }


def run_seed(folder: Path, seed: int, scale: Scale) -> Json:
    """All arms of one seed; parts that the folder has are read and not repeated.

    Raises:
        SystemExit: the folder's were made at another scale.
    """
    figures = folder / "figures.json"
    found: Json = {"seed": seed, "scale": vars(scale), "ppo": {}, "seconds": {}}
    if figures.is_file():
        found = json.loads(figures.read_text(encoding="utf-8"))
        if found["scale"] != vars(scale):
            raise SystemExit(
                f"{figures}: its runs were made with {found['scale']}, not with {vars(scale)}. "
                "Fix: take another --folder, or the same settings."
            )

    def once(place: Json, part: str, make: Callable[[], Any]) -> None:
        if part not in place:
            started = time.perf_counter()
            place[part] = make()
            found["seconds"][part] = round(time.perf_counter() - started, 1)
            write_json(figures, found)

    def reward_models() -> list[str]:
        return [str(model.relative_to(folder)) for model in prepare(folder, seed, scale)[2]]

    once(found, "members", reward_models)
    world, sft = World(seed), folder / "sft" / "model"
    members = [folder / member for member in found["members"]]
    once(found, "best_of", lambda: choose(sft, members, world, seed, scale))
    for arm in PPO:
        once(found["ppo"], arm, partial(train, arm, sft, members, world, seed, folder, scale))
    return found


def curves(seeds: Sequence[Json], blocks: int) -> dict[str, Curve]:
    """The curves of all arms; prompts of all seeds are best-of-n's units, seeds are PPO's."""
    found = {}
    for arm, name in BEST_OF.items():
        proxy, gold = (np.concatenate([s["best_of"][key] for s in seeds]) for key in (arm, "gold"))
        ks = [2**power for power in range(int(np.log2(proxy.shape[1])) + 1)]
        found[f"best_of {arm}"] = best_of_n_curve(proxy, gold, ks, name)
    for arm, name in PPO.items():
        runs = [seed["ppo"][arm]["metrics"] for seed in seeds]
        found[f"ppo {arm}"] = training_curve(runs, GOLD, blocks, name)
    return found


def summarise(seeds: Sequence[Json], blocks: int) -> Json:
    """Curves, fits, turnovers and alarms."""
    made = curves(seeds, blocks)
    summary: Json = {"overoptimisation": [curve.as_dict() for curve in made.values()]}
    for key, curve in made.items():
        law = fit(curve.d, curve.gold.mean(axis=0), "best_of_n" if "best_of" in key else "rl")
        summary[key] = {"fit": vars(law) | {"peak": law.peak}}
        if len(curve.gold) > 1:
            summary[key]["turnover"] = turnover(curve.d, curve.gold).as_dict()
    for arm in PPO:
        runs = [seed["ppo"][arm]["metrics"] for seed in seeds]
        if min(map(len, runs)) >= blocks * INTERLEAVE:
            within = training_curve(runs, GOLD, blocks, interleave=INTERLEAVE)
            summary[f"ppo {arm}"]["turnover_over_rollouts"] = turnover(
                within.d, within.gold
            ).as_dict()
        summary[f"ppo {arm}"]["alarms"] = [
            [
                (alarm["name"], alarm["severity"], alarm["step"])
                for alarm in seed["ppo"][arm]["alarms"]
            ]
            for seed in seeds
        ]
    return summary


def main() -> None:
    """Run, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--folder", type=Path, help="where the runs are kept; default: nowhere")
    parser.add_argument("--seeds", default="0,1,2", help="with commas")
    parser.add_argument("--blocks", type=int, default=8, help="points of PPO's curves")
    parser.add_argument("--tiny", action="store_true", help="to see that it works; says nothing")
    for one in fields(Scale):
        option = f"--{one.name.replace('_', '-')}"
        parser.add_argument(option, type=type(one.default), default=one.default)
    given = parser.parse_args()
    torch.set_num_threads(1)
    chosen = {one.name: getattr(given, one.name) for one in fields(Scale)}
    scale = TINY if given.tiny else Scale(**chosen)
    with tempfile.TemporaryDirectory() as name:
        folder = given.folder or Path(name)
        numbers = [int(seed) for seed in given.seeds.split(",")]
        seeds = [run_seed(folder / f"seed-{seed}", seed, scale) for seed in numbers]
        summary = summarise(seeds, given.blocks)
        runs = [folder / f"seed-{seed}" / arm / "ppo" for seed in numbers for arm in PPO]
        page = folder / "report.html"
        build_report(runs, page, title="Over-optimisation", summary=summary)
        if given.json:
            report = summary | {
                "scale": vars(scale),
                "seeds": seeds,
                "device": machine(),
                "versions": versions(["torch", "transformers", "trl"]),
            }
            given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            (given.json.parent / f"{given.json.stem}.html").write_bytes(page.read_bytes())
    for key, one in summary.items():
        if key != "overoptimisation":
            print(f"{key}: {json.dumps(one)}")


if __name__ == "__main__":
    main()
