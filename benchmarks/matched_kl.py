"""Each policy-gradient algorithm beside best-of-n of the SFT policy at the same KL.

    python -m benchmarks.matched_kl --json figures.json --folder runs/matched_kl

For every seed: the quickstart's world, base model, SFT policy and reward model (`align sft`,
`align reward`). Every arm is one `align ppo` run against that reward model, with a weight of the KL
that lands near the KL of best-of-4 (chosen on seed 100). Then for each of two hundred questions
that no arm and no reward model was trained on, of two kinds, `test` (combinations of facts that no
training text holds) and `like_training` (drawn as the training questions are):

- best-of-n: draws of the SFT policy; the expected gold of the best of k by the reward model, and
  its KL with ties counted (never above log k - (k - 1) / k), for k = 1 to 32;
- the optimum of all policies, p exp(r / beta) with one beta, estimated from the same draws: at its
  KL nothing has a higher mean reward by the reward model (Yang et al. 2024, arXiv 2404.01730);
- the trained policy: draws at temperature 1; their gold, their reward, and the KL to the SFT
  policy, summed over each answer's tokens from whole distributions.

An arm's gain is its gold less that of best-of-n at the arm's own KL (between two k along the
straight line); `reward_room_at_same_kl` is the optimum's in reward, all that there is to gain.
`over_best_of_4` compares with best-of-4 itself, and says something only where the arm's KL is no
higher. Intervals are Student's over seeds. A seed that is finished in `--folder` is read and not
repeated.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from align.engine.models import load_policy
from align.evaluate.significance import seeds_interval
from align.quickstart.gold import gold_score
from align.quickstart.recipe import stage, write_jsonl
from align.quickstart.world import World
from align.rollout.best_of import best_of_curve, best_of_kl
from align.rollout.transformers import TransformersSampler
from align.run import write_json
from align.types import Rollout
from benchmarks.overoptimisation import Scale, prepare
from benchmarks.paired import machine, versions
from reward.functions import call_reward
from reward.model import RewardModel

KS = list(range(1, 33))
BETAS = np.geomspace(30.0, 0.1, 40).tolist()
TRAINING = 4200  # questions
NO_CRITIC = ["value={}"]
ARMS = {  # what each changes in the quickstart's ppo.yaml
    "ppo": ["trainer.advantage=gae"],
    "rloo": ["trainer.advantage=rloo", "trainer.group_size=4", *NO_CRITIC],
    "grpo": ["trainer.advantage=grpo", "trainer.group_size=4", *NO_CRITIC],
    "reinforce++": ["trainer.advantage=reinforce++", *NO_CRITIC],
}
Json = dict[str, Any]


def main() -> None:
    """Run, print and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--folder", type=Path, help="where the runs are kept; default: nowhere")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="with commas")
    parser.add_argument("--arms", default=",".join(ARMS), help="with commas")
    parser.add_argument("--pairs", type=int, default=4200, help="judged for the reward model")
    parser.add_argument("--pretrain", type=int, default=800, help="steps of the base model")
    parser.add_argument("--updates", type=int, default=30, help="of each arm")
    parser.add_argument("--kl-coef", type=float, default=0.5, help="lands near best-of-4's KL")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--batch", type=int, default=256, help="answers of an update")
    parser.add_argument("--prompts", type=int, default=200, help="questions of each kind")
    parser.add_argument("--draws", type=int, default=128, help="of the SFT policy for each")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = given.folder or Path(name)
        seeds = [
            run_seed(folder / f"seed-{seed}", int(seed), given) for seed in given.seeds.split(",")
        ]
    figures = summarise(seeds)
    print(json.dumps({k: v for k, v in figures.items() if k != "seeds"}, indent=1))
    if given.json:
        figures |= {"settings": vars(given), "device": machine()}
        figures |= {"versions": versions(["torch", "transformers", "trl"])}
        given.json.write_text(json.dumps(figures, indent=1, default=str) + "\n", encoding="utf-8")


def run_seed(folder: Path, seed: int, given: argparse.Namespace) -> Json:
    """One world with all arms; arms that the folder holds are read."""
    figures = folder / "figures.json"
    found: Json = {"seed": seed, "arms": {}}
    if figures.is_file():
        found = json.loads(figures.read_text(encoding="utf-8"))
    if set(given.arms.split(",")) <= set(found["arms"]):
        return found
    world, sft, judge = World(seed), folder / "sft" / "model", folder / "member-0/reward/model"
    if "best_of" not in found:
        scale = Scale(pairs=given.pairs, members=1, pretrain=given.pretrain)
        prepare(folder, seed, scale)
        found["best_of"] = {
            name: best_of(sft, judge, rows, seed, given.draws)
            for name, rows in questions(world, given.prompts).items()
        }
        write_json(figures, found)
    for arm in given.arms.split(","):
        if arm not in found["arms"]:
            started = time.perf_counter()
            train(arm, folder, seed, world, sft, judge, given)
            trained = folder / arm / "ppo" / "model"
            found["arms"][arm] = {
                name: measure(trained, sft, judge, rows, seed)
                for name, rows in questions(world, given.prompts).items()
            }
            found["arms"][arm]["seconds"] = round(time.perf_counter() - started, 1)
            write_json(figures, found)
    return found


def questions(world: World, count: int) -> dict[str, list[Json]]:
    """Questions that nothing was trained on, of both kinds."""
    return {
        "test": world.prompts(count, "test"),
        "like_training": world.prompts(TRAINING + count)[TRAINING:],
    }


def best_of(sft: Path, judge: Path, rows: Sequence[Json], seed: int, draws: int) -> Json:
    """Mean gold, reward and KL of the best of k draws, for each k of `KS`."""
    policy, _, tokenizer = load_policy(sft, with_reference=False)
    sampler = TransformersSampler(policy, tokenizer, max_new_tokens=64, batch_size=256)
    torch.manual_seed(seed)
    model, proxy, gold = RewardModel.load(judge), [], []
    for row in rows:
        rollout = sampler([row["prompt"]], group_size=draws, facts=[row["facts"]])
        proxy.append(call_reward(model, rollout.prompts, rollout.completions))
        gold.append(
            call_reward(gold_score, rollout.prompts, rollout.completions, **rollout.columns)
        )
    return {
        "gold": best_of_curve(proxy, KS, gold).mean(axis=0).tolist(),
        "reward": best_of_curve(proxy, KS).mean(axis=0).tolist(),
        "kl": best_of_kl(proxy, KS).mean(axis=0).tolist(),
        "optimum": tilted(proxy, gold, BETAS),
    }


def tilted(proxy: Sequence[Any], gold: Sequence[Any], betas: Sequence[float]) -> Json:
    """Means over prompts under p exp(r / beta), from draws of p, by self-normalised weights.

    Args:
        proxy: (P, N) rewards r of N draws for each of P prompts.
        gold: (P, N) their gold.
        betas: falling, so that the KL rises.
    """
    r, g = np.asarray(proxy, dtype=float), np.asarray(gold, dtype=float)
    found: Json = {"kl": [], "reward": [], "gold": []}
    for beta in betas:
        tilt = np.exp((r - r.max(axis=1, keepdims=True)) / beta)
        weights = tilt / tilt.sum(axis=1, keepdims=True)
        logs = np.log(np.where(weights > 0, weights, 1.0)) + np.log(r.shape[1])
        found["kl"].append(float((weights * logs).sum(axis=1).mean()))
        found["reward"].append(float((weights * r).sum(axis=1).mean()))
        found["gold"].append(float((weights * g).sum(axis=1).mean()))
    return found


def train(
    arm: str, folder: Path, seed: int, world: World, sft: Path, judge: Path, given: Any
) -> None:
    """One arm's run."""
    prompts = write_jsonl(folder / "data" / "prompts.jsonl", world.prompts(TRAINING))
    overrides = [
        f"model.path={sft}",
        f"data.train={prompts}",
        f"reward=[{{path: {judge}}}]",
        f"trainer.rollout_batch_size={given.batch}",
        "trainer.per_device_train_batch_size=64",
        f"trainer.total_episodes={given.updates * given.batch}",
        f"trainer.kl_coef={given.kl_coef}",
        f"trainer.learning_rate={given.learning_rate}",
        "trainer.lr_scheduler_type=linear",  # settles at the end
        *ARMS[arm],
    ]
    stage("ppo", folder / arm, seed, overrides)


@torch.no_grad()
def measure(
    trained: Path, sft: Path, judge: Path, rows: Sequence[Json], seed: int, draws: int = 16
) -> Json:
    """Mean gold, reward and KL to the SFT policy of a trained policy's answers."""
    policy, _, tokenizer = load_policy(trained, with_reference=False)
    start, _, _ = load_policy(sft, with_reference=False)
    sampler = TransformersSampler(policy, tokenizer, max_new_tokens=64, batch_size=256)
    torch.manual_seed(seed)
    facts = [row["facts"] for row in rows]
    rollout = sampler([row["prompt"] for row in rows], group_size=draws, facts=facts)
    model = RewardModel.load(judge)
    reward = call_reward(model, rollout.prompts, rollout.completions)
    gold = call_reward(gold_score, rollout.prompts, rollout.completions, **rollout.columns)
    return {
        "gold": float(np.mean(gold)),
        "reward": float(np.mean(reward)),
        "kl": float(sequence_kl(policy, start, rollout).mean()),
    }


def sequence_kl(
    policy: torch.nn.Module, start: torch.nn.Module, rollout: Rollout, size: int = 64
) -> torch.Tensor:
    """KL(policy || start) along each answer, (B,) nats.

    The sum over its tokens of the divergence of the two next-token distributions: its mean over
    the policy's own answers is the KL of answers, with less variance than log-ratios have.
    """
    width, found = rollout.mask.shape[1], []
    for at in range(0, len(rollout), size):
        part = slice(at, at + size)
        given = {
            "input_ids": rollout.input_ids[part],
            "attention_mask": rollout.attention_mask[part],
            "logits_to_keep": width + 1,
        }
        position = given["attention_mask"].long().cumsum(1).sub(1).clamp(min=0)
        mine, theirs = (
            model(**given, position_ids=position).logits[:, :-1].double().log_softmax(-1)
            for model in (policy, start)
        )
        divergence = (mine.exp() * (mine - theirs)).sum(-1)
        found.append((divergence * rollout.mask[part]).sum(1))
    return torch.cat(found)


def summarise(seeds: Sequence[Json]) -> Json:
    """Gains over best-of-n at the same KL, with intervals over seeds."""
    kinds = seeds[0]["best_of"]
    return {kind: of_questions(kind, seeds) for kind in kinds} | {"seeds": list(seeds)}


def of_questions(kind: str, seeds: Sequence[Json]) -> Json:
    """The gains on one kind of questions."""
    found: Json = {"best_of_4": level_of([seed["best_of"][kind] for seed in seeds], 4)}
    for arm in seeds[0]["arms"]:
        runs = [
            (seed["arms"][arm][kind], seed["best_of"][kind])
            for seed in seeds
            if arm in seed["arms"]
        ]
        found[arm] = {
            "kl": spread([run["kl"] for run, _ in runs]),
            "gold": spread([run["gold"] for run, _ in runs]),
            "reward": spread([run["reward"] for run, _ in runs]),
            "gain_at_same_kl": spread([run["gold"] - at(best, run["kl"]) for run, best in runs]),
            "reward_gain_at_same_kl": spread(
                [run["reward"] - at(best, run["kl"], "reward") for run, best in runs]
            ),
            "room_at_same_kl": spread(
                [at(best["optimum"], run["kl"]) - at(best, run["kl"]) for run, best in runs]
            ),
            "reward_room_at_same_kl": spread(
                [
                    at(best["optimum"], run["kl"], "reward") - at(best, run["kl"], "reward")
                    for run, best in runs
                ]
            ),
            "over_best_of_4": spread([run["gold"] - best["gold"][3] for run, best in runs]),
        }
    return found


def at(best: Json, kl: float, what: str = "gold") -> float:
    """Best-of-n's figure at a KL, between the two k around it.

    Raises:
        ValueError: the KL is above that of the largest k.
    """
    if kl > best["kl"][-1]:
        raise ValueError(f"the curve ends at KL {best['kl'][-1]:.2f}, and {kl:.2f} is asked for")
    return float(np.interp(kl, best["kl"], best[what]))


def level_of(curves: Sequence[Json], k: int) -> Json:
    """The best of k, over seeds."""
    figures = ("gold", "reward", "kl")
    return {what: spread([curve[what][k - 1] for curve in curves]) for what in figures}


def spread(values: Sequence[float]) -> Json | float:
    """Mean and interval over seeds; of one seed, its value."""
    return seeds_interval(values).as_dict() if len(values) > 1 else float(values[0])


if __name__ == "__main__":
    main()
