"""Learning curves on real pools: every strategy of `feedback.acquisition` beside random choice.

    python -m benchmarks.active_pools --data ../shared/data --json active_pools.json

Three sets of real preferences (hh_harmless, gsm8k_solutions, pandalm_votes). For every seed a
quarter of the prompts is held out; a small Llama, tokenizer and weights made of the other prompts'
texts alone and of no label, gives each answer its state (last token and mean), and a linear reward
on 64 principal components of the two answers' difference is fitted anew after each batch of 20. Its
prior is the likeliest by Laplace's evidence; the committee are 8 draws from its posterior. Accuracy
is on held-out pairs, against what people said. Every strategy, random too, has the same first
batches; differences from random are paired by seed, intervals are Student's over seeds.

Written for each strategy: the curve; its mean over all batches less random's; accuracy at the end;
and the labels after which the mean curve (over three batches) reaches what random has at the end.
A set and seed that the file holds is read and not repeated. Leaves out training the trunk, which
`align active` does: here it is frozen, as it is for a last layer on a large model's states.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.decomposition import PCA
from transformers import AutoModel, AutoTokenizer

from align.data.rows import plain_text
from align.run import write_json
from benchmarks.acquisition_pool import committee, fit, interval
from benchmarks.paired import machine, versions
from benchmarks.preference_sets import DATA, SETS, arms_of, held_out, start_model
from feedback.acquisition import STRATEGIES, Acquirer, Pool, Strategy
from feedback.acquisition.design import information

Array = NDArray[np.float64]
Json = dict[str, Any]
BATCH, MOST, POOL, WIDTH, PROMPT_WIDTH = 20, 400, 2000, 64, 16
PRIORS = (0.1, 1.0, 10.0, 100.0, 1000.0)
SHORTLISTED = ("error_reduction",)  # too dear to look at the whole pool


def strategies() -> dict[str, Callable[[], Strategy]]:
    """Every strategy with its default options; `density` is only for a mix."""
    found = {name: make for name, make in STRATEGIES.items() if name not in ("density", "random")}
    for name in SHORTLISTED:
        found[name] = lambda name=name: STRATEGIES[name](others=200, shortlist=300)
    return {"random": STRATEGIES["random"], **found}


@torch.inference_mode()
def states(start: Path, prompts: Sequence[str], answers: Sequence[str]) -> tuple[Array, Array]:
    """(N, 2H) state of the last token and mean over the answer; (N, H) mean over the prompt."""
    tokenizer = AutoTokenizer.from_pretrained(start)
    model = AutoModel.from_pretrained(start).eval()
    longest = model.config.max_position_embeddings
    found, of_prompts = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        head = tokenizer(prompt, add_special_tokens=False)["input_ids"][-longest // 2 :]
        tail = tokenizer(answer, add_special_tokens=False)["input_ids"] or [tokenizer.eos_token_id]
        ids = torch.tensor([head + tail[: longest - len(head)]])
        hidden = model(input_ids=ids).last_hidden_state[0]
        own = hidden[len(head) :]
        found.append(torch.cat([hidden[-1], own.mean(0)]))
        of_prompts.append(hidden[: max(1, len(head))].mean(0))
    return torch.stack(found).double().numpy(), torch.stack(of_prompts).double().numpy()


def evidence(z: Array, labels: NDArray[np.bool_], weights: Array, prior: float) -> float:
    """Laplace's log marginal likelihood (MacKay 1992), without terms that no prior changes."""
    margins = np.where(labels, 1.0, -1.0) * (z @ weights)
    precision = information(z, expit(z @ weights), prior)
    _, determinant = np.linalg.slogdet(precision)
    value = -np.logaddexp(0, -margins).sum() - prior / 2 * weights @ weights
    return float(value + 0.5 * len(weights) * np.log(prior) - 0.5 * determinant)


def likeliest(z: Array, labels: NDArray[np.bool_]) -> tuple[Array, float]:
    """Weights and the prior's precision, the likeliest of `PRIORS`."""
    fits = [(fit(z, labels, prior), prior) for prior in PRIORS]
    return max(fits, key=lambda one: evidence(z, labels, *one))


def curve(
    make: Callable[[], Strategy], pool: Pool, labels: NDArray[np.bool_], test: Array, seed: Any
) -> list[float]:
    """Held-out accuracy after each batch; `test` (T, D) are differences of better less worse."""
    rng = np.random.default_rng(seed)
    z = pool.z
    asked: list[int] = rng.permutation(len(z))[:BATCH].tolist()
    counts, found = [], []
    while True:
        weights, prior = likeliest(z[asked], labels[asked])
        counts.append(len(asked))
        found.append(float((test @ weights > 0).mean()))
        if len(asked) >= MOST:
            break
        # draws under N(0, I / prior): in units where the prior is 1
        unit = np.sqrt(prior)
        margins = committee(weights * unit, z[asked] / unit, rng) @ z.T / unit
        acquirer = Acquirer(make(), holdout=None, prior=prior)
        done = [pool.ids[i] for i in asked]
        chosen = acquirer.select(pool, margins, min(BATCH, MOST - len(asked)), rng, done)
        if not chosen.ids:
            break
        asked += pool.places(chosen.ids).tolist()
    # A batch is smaller where little was left that differs; curves are compared at equal labels.
    at = np.arange(BATCH, MOST + 1, BATCH)
    return [float(value) for value in np.interp(at, counts, found)]


def run_set(name: str, seed: int, given: argparse.Namespace) -> Json:
    """All strategies on one set and seed."""
    rows = arms_of(name, given.data)["trl"][0]
    known = [row for row in rows if not held_out(row, seed)]
    judged = [row for row in rows if held_out(row, seed)]
    rng = np.random.default_rng([seed, 7])
    known = [known[i] for i in rng.permutation(len(known))[: given.pool]]
    with tempfile.TemporaryDirectory() as folder:
        start = start_model(Path(folder), known, seed, given.warm_up)
        parts = []
        for part in (known, judged):
            texts = [plain_text(row["prompt"]) for row in part]
            good, prompts = states(start, texts, [plain_text(row["chosen"]) for row in part])
            bad, _ = states(start, texts, [plain_text(row["rejected"]) for row in part])
            parts.append((good - bad, prompts))
    (raw, prompts), (raw_test, _) = parts
    flat = PCA(min(WIDTH, *raw.shape)).fit(np.concatenate([raw, -raw]))  # pairs have no order
    z, test = raw @ flat.components_.T, raw_test @ flat.components_.T
    scale = np.sqrt((z**2).sum(axis=1).mean() / z.shape[1])
    z, test = z / scale, test / scale
    first = rng.random(len(z)) < 0.5
    z = np.where(first[:, None], z, -z)
    near = PCA(min(PROMPT_WIDTH, *prompts.shape)).fit_transform(prompts)
    pool = Pool(ids=[f"{i:05d}" for i in range(len(z))], differences=z, prompts=near)
    weights, _ = likeliest(z, first)
    found: Json = {"set": name, "seed": seed, "pairs": len(z), "held_out": len(test)}
    found["all"] = float((test @ weights > 0).mean())
    found["curves"] = {
        one: [curve(make, pool, first, test, [seed, repeat]) for repeat in range(given.repeats)]
        for one, make in strategies().items()
    }
    return found


def summarise(runs: Sequence[Json]) -> Json:
    """Figures of each set and strategy."""
    table: Json = {}
    for name in dict.fromkeys(run["set"] for run in runs):
        mine = [run for run in runs if run["set"] == name]
        each = {
            one: np.array([np.mean(run["curves"][one], axis=0) for run in mine])  # (seeds, rounds)
            for one in mine[0]["curves"]
        }
        level = float(each["random"].mean(axis=0)[-3:].mean())
        table[name] = {
            "pairs": mine[0]["pairs"],
            "all_labels": interval(np.array([run["all"] for run in mine])),
            "random_at_the_end": level,
            "strategies": {
                one: {
                    "curve": values.mean(axis=0).round(4).tolist(),
                    "end": interval(values[:, -3:].mean(axis=1)),
                    "mean_less_random": interval((values - each["random"]).mean(axis=1)),
                    "end_less_random": interval((values - each["random"])[:, -3:].mean(axis=1)),
                    "labels_for_random_s_end": labels_for(values.mean(axis=0), level),
                }
                for one, values in each.items()
            },
        }
    return table


def labels_for(mean: Array, level: float) -> int | None:
    """Labels after which the curve, over three batches, is at a level; None if it never is."""
    smooth = np.convolve(mean, np.ones(3) / 3, "valid")
    hit = np.flatnonzero(smooth >= level - 1e-9)
    return (int(hit[0]) + 3) * BATCH if len(hit) else None  # the third of the three batches


def main() -> None:
    """Run, print and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the three sets")
    parser.add_argument("--sets", default=",".join(SETS), help="with commas")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="with commas")
    parser.add_argument("--pool", type=int, default=POOL, help="pairs that may be asked")
    parser.add_argument("--repeats", type=int, default=2, help="first batches of each seed")
    parser.add_argument("--warm-up", type=int, default=100, help="steps on the texts")
    given = parser.parse_args()
    torch.set_num_threads(1)
    runs: list[Json] = []
    if given.json and given.json.is_file():
        runs = json.loads(given.json.read_text(encoding="utf-8"))["runs"]
    for name in given.sets.split(","):
        for seed in map(int, given.seeds.split(",")):
            if (name, seed) in {(run["set"], run["seed"]) for run in runs}:
                continue
            runs.append(run_set(name, seed, given))
            if given.json:
                report = {"summary": summarise(runs), "runs": runs, "device": machine()}
                report |= {"versions": versions(["torch", "transformers", "scikit-learn"])}
                write_json(given.json, report)
    for name, one in summarise(runs).items():
        print(f"{name}: {one['pairs']} pairs, all labels {one['all_labels']['value']:.3f}")
        for strategy, figures in one["strategies"].items():
            less = figures["mean_less_random"]
            print(
                f"  {strategy:18s} end {figures['end']['value']:.3f}   mean less random "
                f"{less['value']:+.4f} [{less['low']:+.4f}, {less['high']:+.4f}]   "
                f"labels {figures['labels_for_random_s_end']}"
            )


if __name__ == "__main__":
    main()
