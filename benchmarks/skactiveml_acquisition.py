"""scikit-activeml's side of `benchmarks.acquisition`, by the Python of its own environment.

Imports nothing of Align. The job says the arm and the folder; the line printed last has the
seconds, the peak memory and the places chosen. Probabilities are computed as on our side, and
count.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
from scipy.special import expit
from skactiveml.pool import average_kl_divergence, batch_bald, k_greedy_center


def main(job: Path) -> None:
    """Run one arm."""
    said = json.loads(job.read_text(encoding="utf-8"))
    folder, chosen = Path(said["folder"]), said["chosen"]
    started = time.perf_counter()
    pool = np.load(folder / "pool.npy")
    if said["arm"] == "k_center":
        labels = np.full(len(pool), np.nan)
        labels[0] = 0  # one label, as on our side
        places, _ = k_greedy_center(pool, labels, batch_size=chosen, random_state=0)
    else:
        p = expit((np.load(folder / "members.npy") @ pool.T).astype(np.float64))
        both = np.stack([p, 1 - p], axis=2)
        if said["arm"] == "bald":
            scores = batch_bald(both, batch_size=1, n_MC_samples=len(p), random_state=0)[0]
        else:
            scores = average_kl_divergence(both)
        places = np.argsort(-scores)[:chosen]
    seconds = time.perf_counter() - started
    found = {"seconds": seconds, "peak_mb": peak_megabytes(), "places": [int(i) for i in places]}
    print(json.dumps(found))


def peak_megabytes() -> float:
    """The greatest resident size so far."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM: this needs Linux.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
