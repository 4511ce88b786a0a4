"""Labels needed for accuracy 0.85 on a pool of near-duplicates, for each strategy and at random.

    python -m benchmarks.acquisition_pool --json acquisition_pool.json

3,000 pairs with d = 32 feature differences: 600 of one kind each, and 2,400 near-duplicates of a
few of them. Labels are Bradley and Terry's, wrong one time in ten. A linear reward is fitted anew
after each batch of 10; the committee are 8 draws from its Laplace posterior. Accuracy is against
the noiseless answer on 1,000 fresh pairs, so it needs no holdout, and none is kept here. The ten
seeds are the same for all strategies; intervals are Student's over seeds, differences from random
are paired.

Leaves out language: features, label noise and duplicates are made up. Compares no times.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import t

from benchmarks.paired import machine
from feedback.acquisition import STRATEGIES, Acquirer, Pool, Strategy
from feedback.acquisition.design import information

Array = NDArray[np.float64]

TARGET, BATCH, MOST, SEEDS = 0.85, 10, 400, 10
WIDTH, PAIRS, TWINS, MEMBERS = 32, 3000, 0.8, 8
SCALE, KINDS, NEARNESS = 5.0, 10, 0.05  # |reward weights|, prototypes, and how near copies are


@dataclass(frozen=True)
class World:
    """One made-up pool with its truth."""

    pool: Pool
    labels: NDArray[np.bool_]  # (N,) noisy: the first is better
    test: Array  # (T, D)
    answers: NDArray[np.bool_]  # (T,) without noise


def make_world(seed: int, pairs: int = PAIRS, width: int = WIDTH, twins: float = TWINS) -> World:
    """A pool of `pairs`, of which a share are near-duplicates of a few."""
    rng = np.random.default_rng([seed, 0])
    truth = rng.normal(size=width)
    truth *= SCALE / np.linalg.norm(truth)
    copies = int(twins * pairs)
    own = rng.normal(size=(pairs - copies, width))
    # Near-duplicates of a handful: what everybody asks a chat model, in a few words' difference.
    models = own[rng.integers(KINDS, size=copies)]
    near = models + NEARNESS * rng.normal(size=(copies, width))
    z = np.concatenate([own, near])[rng.permutation(pairs)]
    labels = rng.random(pairs) < expit(z @ truth)
    test = rng.normal(size=(1000, width))
    pool = Pool(ids=[f"{i:05d}" for i in range(pairs)], differences=z)
    return World(pool, labels, test, test @ truth > 0)


def fit(z: Array, labels: NDArray[np.bool_], prior: float = 1.0) -> Array:
    """(D,) the likeliest weights under N(0, I / prior)."""
    sign = np.where(labels, 1.0, -1.0)

    def loss(weights: Array) -> tuple[float, Array]:
        margin = sign * (z @ weights)
        value = np.logaddexp(0, -margin).sum() + prior / 2 * weights @ weights
        return value, prior * weights - z.T @ (sign * expit(-margin))

    found: Array = minimize(loss, np.zeros(z.shape[1]), jac=True, method="L-BFGS-B").x
    return found


def committee(weights: Array, z: Array, rng: np.random.Generator, members: int = MEMBERS) -> Array:
    """(M, D) draws from the Laplace posterior given labelled pairs."""
    precision = information(z, expit(z @ weights), 1.0)
    root = solve_triangular(cholesky(precision), np.eye(len(weights)))
    return weights + rng.normal(size=(members, len(weights))) @ root.T


def curve(
    strategy: Strategy, world: World, seed: int, most: int = MOST, diverse: bool = False
) -> list[float]:
    """Accuracy after each batch; the first batch is at random, and the same for all strategies."""
    rng = np.random.default_rng([seed, 1])
    z = np.asarray(world.pool.differences)
    acquirer = Acquirer(strategy, holdout=None, similarity=0.98 if diverse else None)
    asked = rng.permutation(len(z))[:BATCH].tolist()
    found = []
    while True:
        weights = fit(z[asked], world.labels[asked])
        found.append(float(((world.test @ weights > 0) == world.answers).mean()))
        if len(asked) >= most:
            return found
        margins = committee(weights, z[asked], rng) @ z.T
        done = [world.pool.ids[i] for i in asked]
        chosen = acquirer.select(world.pool, margins, BATCH, rng, done)
        if not chosen.ids:
            return found
        asked += world.pool.places(chosen.ids).tolist()


def labels_needed(accuracies: Sequence[float], target: float = TARGET) -> float:
    """Labels at the first batch that reaches the target; infinity if none does."""
    hit = [place for place, value in enumerate(accuracies) if value >= target]
    return (hit[0] + 1) * BATCH if hit else float("inf")


def strategies() -> dict[str, tuple[Strategy, bool]]:
    """What is compared: by name, with whether near-duplicates are passed over."""
    found: dict[str, tuple[Strategy, bool]] = {
        name: (STRATEGIES[name](), False)
        for name in (
            "random",
            "uncertainty",
            "badge",
            "vote_entropy",
            "gradient_length",
            "k_center",
            "d_optimal",
            "bald",
            "power_bald",
        )
    }
    found["error_reduction"] = (STRATEGIES["error_reduction"](others=200, shortlist=300), False)
    found["random, no near-duplicates"] = (STRATEGIES["random"](), True)
    found["uncertainty, no near-duplicates"] = (STRATEGIES["uncertainty"](), True)
    found["bald, no near-duplicates"] = (STRATEGIES["bald"](), True)
    return found


def summarise(curves: dict[str, list[list[float]]], most: int = MOST) -> dict[str, Any]:
    """Labels needed from the mean curve, and by seed with intervals; a miss counts as `most`."""
    found: dict[str, Any] = {}
    by_seed = {
        name: np.minimum([labels_needed(one) for one in each], most)
        for name, each in curves.items()
    }
    for name, each in curves.items():
        mean = np.mean(np.array(each), axis=0)
        needed = labels_needed(mean.tolist())
        found[name] = {
            "labels": needed if np.isfinite(needed) else None,  # None: more than `most`
            "by_seed": interval(by_seed[name]),
            "missed": int(sum(labels_needed(one) > most for one in each)),
            "saved_against_random": interval(by_seed["random"] - by_seed[name]),
            "accuracy": [round(float(value), 4) for value in mean],
            "final": interval(np.array([one[-1] for one in each])),
        }
    return found


def interval(values: NDArray[Any], level: float = 0.95) -> dict[str, float]:
    """Mean and Student's interval over seeds."""
    mean = float(values.mean())
    spread = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
    half = float(t.ppf(0.5 + level / 2, len(values) - 1)) * spread / len(values) ** 0.5
    return {"value": mean, "low": mean - half, "high": mean + half, "n": len(values)}


def main() -> None:
    """Run all strategies, print and write what they need."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--most", type=int, default=MOST)
    parser.add_argument("--only", nargs="*", help="of the strategies; random is always run")
    given = parser.parse_args()
    wanted = strategies()
    if given.only:
        wanted = {name: one for name, one in wanted.items() if name in {"random", *given.only}}
    curves: dict[str, list[list[float]]] = {name: [] for name in wanted}
    for seed in range(given.seeds):
        world = make_world(seed)
        for name, (strategy, diverse) in wanted.items():
            curves[name].append(curve(strategy, world, seed, given.most, diverse))
    found = summarise(curves, given.most)
    for name, one in sorted(found.items(), key=lambda item: item[1]["labels"] or np.inf):
        each = one["by_seed"]
        print(
            f"{name:34s} {one['labels'] or f'> {given.most}'!s:>6}   by seed {each['value']:.0f} "
            f"[{each['low']:.0f}, {each['high']:.0f}]   missed {one['missed']} of {each['n']}"
        )
    report = {"target": TARGET, "batch": BATCH, "seeds": given.seeds, "strategies": found}
    if given.json:
        report["device"] = machine()
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
