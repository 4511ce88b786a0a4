"""Ours and a peer in turn, each in a process of its own; the figures every benchmark writes."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Json = dict[str, Any]


def run_arm(module: str, arguments: Sequence[str], python: Path | None = None) -> Json:
    """Run one arm (`python -m MODULE arm ...`) in a process of its own; what it printed last.

    `python` is another environment's, for a peer that cannot live in this one.

    Raises:
        RuntimeError: it failed; the message holds the end of its output.
    """
    command = [str(python or sys.executable), "-m", module, "arm", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()[-2000:]}")
    found: Json = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def peak_megabytes() -> float:
    """The greatest resident size of this process so far."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM: this needs Linux.")


def compared(pairs: Sequence[tuple[Json, Json]]) -> Json:
    """Medians and ratios of (ours, peer) pairs; a ratio above 1 says that ours needs less."""
    ours, peers = [a for a, _ in pairs], [b for _, b in pairs]
    times = [peer["seconds"] / our["seconds"] for our, peer in pairs]
    return {
        "ratio": _median(peers, "seconds") / _median(ours, "seconds"),
        "ratio_range": [min(times), max(times)],
        "peak_memory_ratio": _median(peers, "peak_mb") / _median(ours, "peak_mb"),
        "ours_seconds": _median(ours, "seconds"),
        "peer_seconds": _median(peers, "seconds"),
        "ours_peak_mb": _median(ours, "peak_mb"),
        "peer_peak_mb": _median(peers, "peak_mb"),
        "pairs": [{"ours": a, "peer": b} for a, b in pairs],
    }


def machine() -> str:
    """The processor and how many cores of it this process may use."""
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            break
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Installed versions."""
    return {name: importlib.metadata.version(name) for name in packages}


def _median(arms: Sequence[Json], name: str) -> float:
    return float(statistics.median(arm[name] for arm in arms))
