"""avalanche-lib on the very tasks of `benchmarks.digits`, in an environment of its own.

    python -m benchmarks.digits_peers --json peers.json [--methods ewc si --worlds class --seeds 1]

Handed over are the rows and the first weights, bit for bit: what avalanche's datasets gave out is
summed up and compared. Network, epochs, batches and optimizer are ours, accuracy on each task is
avalanche's own, and ACC and forgetting are computed from it by the same function. Strengths are the
best of a few tried on seed 0 of permuted digits, by ACC there; `tried` has all of them.

Three things to know of the peer (0.6.0):

- `si` is a no-op on a CPU: it keeps views of the live weights, so that all its importances are 0.
  `si_is_naive` says whether its weights at the end equalled those of `naive`, bit for bit, in
  every run. `si_mended` is the same code with two repairs, which `avalanche_digits.py` tells.
- `ewc` squares gradients of mini-batches, not of examples: its strength is not to be compared.
- its optimizer keeps its momentum from task to task; ours is a new one for each task.

`cumulative` is what `benchmarks.digits` calls joint; `joint` learns all tasks at once, for ten
epochs, so that its one row stands for all. iCaRL runs where its loss applies: where no class comes
again and the task is not told. It all takes about half an hour.

Left out is Mammoth (aimagelab/mammoth). No package index has it (`mammoth` there turns Word files
into HTML), and none of its data sets is scikit-learn's digits, so its published figures say nothing
about these tasks. It is not imitated here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.digits import summary
from benchmarks.digits_world import Task, network, worlds
from benchmarks.paired import Json, machine
from benchmarks.peers import peer_versions, run_script
from feedback import environments

SCRIPT = Path(__file__).with_name("avalanche_digits.py")
NAME = "avalanche-lib-0.6.0"
TORCH = "torch==2.13.0"
# Without what they require, most of which is not imported. How PyPI's torchvision, built for CUDA,
# is imported beside a CPU build of torch is in the script.
BARE = ("avalanche-lib==0.6.0", "torchvision==0.28.0")
IMPORTED = (  # what avalanche imports as it starts, and GEM's solver; not all that it requires
    *("dill", "gdown", "gputil", "matplotlib", "numpy", "packaging", "pillow", "psutil"),
    *("pytorchcv", "qpsolvers", "quadprog", "scikit-learn", "tensorboard", "torchmetrics"),
    *("tqdm", "typing-extensions", "wandb"),
)
CONTENT = "\n".join([TORCH, *BARE, *IMPORTED])
PARTS = ("x", "y", "x_test", "y_test")
TRIED: dict[str, tuple[float, ...]] = {  # one: nothing to choose
    "naive": (0.0,),
    "joint": (0.0,),
    "cumulative": (0.0,),
    "ewc": (100.0, 300.0, 1000.0),
    "si": (100.0,),
    "si_mended": (10.0, 30.0, 100.0, 300.0),
    "mas": (0.001, 0.003, 0.01, 0.03, 0.1),
    "lwf": (1.0, 2.0, 5.0, 10.0),
    "replay_200": (0.0,),
    "replay_500": (0.0,),
    "agem": (0.0,),
    "gem": (0.0, 0.5, 1.0),
    "er_ace": (0.0,),
    "icarl": (0.0,),
}


def main(arguments: list[str]) -> int:
    """Run the peer and write its figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--methods", nargs="*", default=list(TRIED), choices=list(TRIED))
    parser.add_argument("--worlds", nargs="*", default=["permuted", "class", "task"])
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args(arguments)
    python = ensure_environment()
    figures: Json = {
        "peer": "avalanche-lib",
        "versions": peer_versions(python, ["avalanche-lib", "torch", "torchvision"]),
        "device": machine(),
        "seeds": given.seeds,
        "tried": {},
    } | {world: {} for world in given.worlds}
    ends: dict[str, dict[str, str]] = {}  # SHA-256 of the last weights, of each method's runs
    for name in given.methods:
        strength = TRIED[name][0]
        if len(TRIED[name]) > 1:
            found = learn(python, name, [("permuted", 0, one) for one in TRIED[name]])
            scores = [summary([one["table"]])["acc"] for one in found]
            strength = best(TRIED[name], scores)
            figures["tried"][name] = dict(zip(map(str, TRIED[name]), scores, strict=True))
        asked = [world for world in given.worlds if name != "icarl" or world == "class"]
        cases = [(world, seed, strength) for world in asked for seed in range(given.seeds)]
        runs = learn(python, name, cases)
        ends[name] = {f"{c[0]}-{c[1]}": run["weights"] for c, run in zip(cases, runs, strict=True)}
        for world in asked:
            mine = [run for case, run in zip(cases, runs, strict=True) if case[0] == world]
            one = summary([run["table"] for run in mine]) | {"strength": strength}
            figures[world][name] = one | {"seconds": sum(run["seconds"] for run in mine)}
            line = f"{world:9} {name:14} ACC {one['acc']:.3f} +- {one['std']:.3f}"
            print(f"{line}  forgetting {one['forgetting']:.3f}", flush=True)
        if {"si", "naive"} <= set(ends):
            figures["si_is_naive"] = ends["si"] == ends["naive"]
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if "si_is_naive" in figures:
        print(f"si is naive, bit for bit: {figures['si_is_naive']}")
    return 0


def ensure_environment() -> Path:
    """The Python of the peer's environment, installed unless it is there."""
    pip = ["-m", "pip", "--disable-pip-version-check", "install", "-q"]
    steps = [
        [*pip, TORCH],
        [*pip, "--no-deps", *BARE],
        [*pip, TORCH, *IMPORTED],
        ["-c", f"import runpy; runpy.run_path({str(SCRIPT)!r})"],
    ]
    return environments.ensure_environment(NAME, CONTENT, steps, print)


def installed() -> Path | None:
    """The Python of the peer's environment, if its installation was completed."""
    return environments.cached_python(NAME, CONTENT)


def learn(
    python: Path, method: str, cases: Sequence[tuple[str, int, float]], epochs: int = 10
) -> list[Json]:
    """What avalanche made of each (world, seed, strength): `table`, `weights` and `seconds`.

    Raises:
        RuntimeError: it failed, or its rows were not ours.
    """
    with tempfile.TemporaryDirectory() as name:
        folder, runs, sums = Path(name), [], []
        for world, seed, strength in cases:
            file, tasks = f"{world}-{seed}.npz", worlds(world, seed)
            hand_over(folder / file, tasks, seed)
            sums.append(digest(getattr(task, part) for task in tasks for part in PARTS))
            run = {"tasks": file, "world": world, "seed": seed, "strength": strength}
            runs.append(run | {"method": method, "epochs": epochs})
        job = folder / "job.json"
        job.write_text(json.dumps({"folder": name, "runs": runs}), encoding="utf-8")
        found: list[Json] = run_script(python, SCRIPT, job, threads=1)["runs"]
    if [one["data"] for one in found] != sums:
        raise RuntimeError("avalanche's datasets gave out other rows than those handed over")
    return found


def hand_over(path: Path, tasks: Sequence[Task], seed: int) -> None:
    """Write the tasks, and the weights that `benchmarks.digits` begins with."""
    arrays: dict[str, Any] = {}
    for number, task in enumerate(tasks):
        for part in (*PARTS, "allowed"):
            arrays[f"{part}{number}"] = getattr(task, part).numpy()
    torch.manual_seed(seed)
    for number, weight in enumerate(network().parameters()):
        arrays[f"weight{number}"] = weight.detach().numpy()
    np.savez(path, **arrays)


def digest(tensors: Iterable[Tensor]) -> str:
    """SHA-256 over the bytes of tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def best(strengths: Sequence[float], scores: Sequence[float]) -> float:
    """The strength of the highest score; of equal ones the smallest."""
    return min(zip(strengths, scores, strict=True), key=lambda one: (-one[1], one[0]))[0]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
