"""Choosing 100 of a million pairs, and of 10,000 beside scikit-activeml.

    python -m benchmarks.acquisition --json acquisition.json

The pool is (N, 256) float32 feature differences on disk; eight linear members give the
probabilities. Timed is everything from opening the file to the 100 places: reading, the members'
margins, scores and choice, each arm in a process of its own with the same number of threads.

- million: BALD and the streaming D-optimal of 1,000,000 pairs (goal: 60 s and 4 GB each); the
  pool is 1 GB, and its file is made before;
- bald, mean_kl, k_center: of 10,000 pairs, beside scikit-activeml's `batch_bald` (in batches of
  one, which is BALD), `average_kl_divergence` and `k_greedy_center`, in an environment of its own.

`same` says which share of the 100 places both sides chose. The peer has no D-optimal design. It
takes about ten minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paired import Json, compared, machine, peak_megabytes, run_arm, versions
from benchmarks.peers import ensure_environment, peer_versions, run_script
from feedback.acquisition import arrays, committee, coverage, design

MODULE = "benchmarks.acquisition"
PEER = ("scikit-activeml-1.0.1", ("scikit-activeml==1.0.1",))
SCRIPT = Path(__file__).with_name("skactiveml_acquisition.py")
COMPARED = ("bald", "mean_kl", "k_center")
WIDTH, MEMBERS, CHOSEN, LABELLED, ROWS = 256, 8, 100, 1000, 32768


def main(arguments: list[str]) -> int:
    """Run everything and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1_000_000, help="pairs of the great pool")
    parser.add_argument("--peer-count", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    figures: Json = {"settings": {"width": WIDTH, "members": MEMBERS, "chosen": CHOSEN}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.count:
            make_pool(folder / "great", given.count)
            figures["million"] = {"count": given.count} | {
                arm: [bare(own(arm, folder / "great")) for _ in range(min(given.rounds, 3))]
                for arm in ("bald", "d_optimal")
            }
        if given.rounds and given.peer_count:
            python = ensure_environment(*PEER)
            make_pool(folder / "small", given.peer_count)
            for arm in COMPARED:
                pairs = []
                for turn in range(given.rounds):
                    sides = [lambda a=arm: own(a, folder / "small")]
                    sides.append(lambda a=arm: peer(python, a, folder / "small", given.threads))
                    order = (0, 1) if turn % 2 == 0 else (1, 0)
                    found = {side: sides[side]() for side in order}
                    pairs.append((found[0], found[1]))
                figures[arm] = compared([(bare(a), bare(b)) for a, b in pairs]) | {
                    "same": overlap(*pairs[0])
                }
            figures |= {
                "peer": "scikit-activeml",
                "versions": peer_versions(python, ["scikit-activeml"]),
                "peer_versions": peer_versions(python, ["numpy", "scipy", "scikit-learn"]),
            }
    figures |= {
        "our_versions": versions(["numpy", "scipy"]),
        "device": machine(),
        "threads": given.threads,
    }
    given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    for arm, runs in figures.get("million", {}).items():
        if arm != "count":
            print(arm, [f"{run['seconds']:.1f} s, {run['peak_mb']:.0f} MB" for run in runs])
    for arm in COMPARED:
        if arm in figures:
            print(f"{arm}: {figures[arm]['ratio']:.2f}, same {figures[arm]['same']:.2f}")
    return 0


def make_pool(folder: Path, count: int) -> None:
    """`pool.npy` (N, D) and `members.npy` (M, D), float32, and `labelled.npy` (L, D)."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    scale = 1 / np.arange(1, WIDTH + 1) ** 0.5  # pooled states have few strong directions
    pool = np.lib.format.open_memmap(
        folder / "pool.npy", mode="w+", dtype=np.float32, shape=(count, WIDTH)
    )
    for rows in arrays.chunks(count, ROWS):
        size = (rows.stop - rows.start, WIDTH)
        pool[rows] = rng.standard_normal(size, dtype=np.float32) * scale
    pool.flush()
    truth = rng.normal(size=WIDTH)
    members = truth + 0.5 * rng.normal(size=(MEMBERS, WIDTH))
    np.save(folder / "members.npy", members.astype(np.float32))
    np.save(folder / "labelled.npy", rng.normal(size=(LABELLED, WIDTH)) * scale)


def own(arm: str, folder: Path) -> Json:
    """Ours, in a process of its own."""
    return run_arm(MODULE, [arm, f"--folder={folder}"])


def peer(python: Path, arm: str, folder: Path, threads: int) -> Json:
    """scikit-activeml, by the Python of its environment."""
    job = folder / f"{arm}.json"
    job.write_text(json.dumps({"arm": arm, "folder": str(folder), "chosen": CHOSEN}))
    return run_script(python, SCRIPT, job, threads)


def arm(arguments: list[str]) -> int:
    """Time one arm and print its figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=(*COMPARED, "d_optimal"))
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args(arguments)
    started = time.perf_counter()
    places, more = choose(given.name, given.folder)
    seconds = time.perf_counter() - started
    found = {"seconds": seconds, "peak_mb": peak_megabytes(), "places": places, **more}
    print(json.dumps(found))
    return 0


def choose(name: str, folder: Path) -> tuple[list[int], dict[str, Any]]:
    """The places chosen, and what else there is to say."""
    members = np.load(folder / "members.npy")
    if name == "d_optimal":
        labelled = np.load(folder / "labelled.npy")
        p = committee.mean_probability(probabilities(labelled.astype(np.float32), members))
        precision = design.information(labelled, p, 1.0)
        found = design.stream_d_optimal(lambda: with_chances(folder, members), CHOSEN, precision)
        return found.index.tolist(), {"passes": found.passes}
    if name == "k_center":
        pool = np.load(folder / "pool.npy")
        return coverage.k_center(pool, CHOSEN, pool[:1])[0].tolist(), {}
    score = committee.bald if name == "bald" else committee.mean_kl
    scores = [score(probabilities(z, members)) for z in read(folder)]
    return arrays.top(np.concatenate(scores), CHOSEN).tolist(), {}


def read(folder: Path) -> Iterator[np.ndarray]:
    """Chunks of the pool, from disk."""
    pool = np.load(folder / "pool.npy", mmap_mode="r")
    for rows in arrays.chunks(len(pool), ROWS):
        yield np.asarray(pool[rows])


def with_chances(folder: Path, members: np.ndarray) -> Iterator[design.Chunk]:
    """Chunks with the committee's probabilities."""
    for z in read(folder):
        yield z, committee.mean_probability(probabilities(z, members))


def probabilities(z: np.ndarray, members: np.ndarray) -> np.ndarray:
    """(M, n) of each member."""
    return arrays.to_probabilities(members @ z.T)


def bare(one: Json) -> Json:
    """Without the places."""
    return {key: value for key, value in one.items() if key != "places"}


def overlap(ours: Json, theirs: Json) -> float:
    """Share of places that both chose."""
    return len(set(ours["places"]) & set(theirs["places"])) / len(ours["places"])


if __name__ == "__main__":
    run = arm if sys.argv[1:2] == ["arm"] else main
    raise SystemExit(run(sys.argv[2:] if run is arm else sys.argv[1:]))
