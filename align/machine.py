"""What this machine has and what fits on it: cores, memory, disk, CPU features, model sizes.

Limits set on a container count, since they are what a training run meets. Nothing here imports
torch, and every probe answers None or an empty set where the system does not say.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

GIB = 1024**3

# Bytes per parameter of the policy while a stage trains, activations apart: every model of the
# stage as large as the policy, weights and gradients in float32, AdamW with two float32 moments
# (4 + 4 + 8 = 16 per trained model), 4 for each model that only reads.
FULL_BYTES = {
    "sft": 16.0,
    "reward": 16.0,
    "dpo": 16.0 + 4.0,  # policy, reference
    "ppo (shared critic)": 16.0 + 2 * 4.0,  # policy with value head, reference, reward model
    "ppo (separate critic)": 2 * 16.0 + 2 * 4.0,  # policy, critic, reference, reward model
}
# LoRA keeps the policy's weights frozen. The reference is the same weights with the adapters off,
# a shared critic adds nothing but its head, and a separate one is a full copy that trains in full.
# Adapters are taken as 1% of the parameters.
ADAPTERS = 0.01 * 16.0
LORA_BYTES = {
    "sft": 4.0 + ADAPTERS,
    "reward": 4.0 + ADAPTERS,
    "dpo": 4.0 + ADAPTERS,
    "ppo (shared critic)": 2 * 4.0 + ADAPTERS,
    "ppo (separate critic)": 2 * 4.0 + 16.0 + ADAPTERS,
}
SHARE = 0.7  # of the memory; the rest is for activations, logits and the libraries


@dataclass(frozen=True)
class Fit:
    """The largest models, in parameters, that a stage can train in a given memory."""

    stage: str
    full: float
    lora: float


def largest_models(memory: int, share: float = SHARE) -> list[Fit]:
    """The largest full and LoRA fine-tunes in float32 for every stage.

    Args:
        memory: bytes, of one device or of the machine.
        share: how much of it weights, gradients and moments may take.
    """
    usable = memory * share
    return [
        Fit(stage, full=usable / FULL_BYTES[stage], lora=usable / LORA_BYTES[stage])
        for stage in FULL_BYTES
    ]


def in_words(parameters: float) -> str:
    """1.24e9 as `1.2B`, 3.6e8 as `360M`; two digits, which is what an estimate is good for."""
    value, unit = (parameters / 1e9, "B") if parameters >= 995e6 else (parameters / 1e6, "M")
    return f"{value:.1f}{unit}" if value < 10 else f"{float(f'{value:.2g}'):.0f}{unit}"


def cpu_cores() -> float:
    """Cores this process may use: its affinity, or a container's quota where that is less."""
    if hasattr(os, "sched_getaffinity"):
        cores = float(len(os.sched_getaffinity(0)))
    else:
        cores = float(os.cpu_count() or 1)
    quota = _first_line(Path("/sys/fs/cgroup/cpu.max")).split()
    if len(quota) == 2 and quota[0] != "max":
        return min(cores, int(quota[0]) / int(quota[1]))
    return cores


def memory_total() -> int | None:
    """Bytes of memory, or of the container's limit where that is less."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    limits = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
    for limit in map(_first_line, map(Path, limits)):
        if limit.isdigit():
            total = min(total, int(limit))
    return total


def memory_available(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that are free for a new process; None where only the total is known."""
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
    except OSError:
        return None
    total = memory_total()
    if match is None or total is None:
        return None
    return min(int(match.group(1)) * 1024, total)


def disk_free(folder: Path) -> int:
    """Bytes free where `folder` is, or would be made."""
    place = folder.expanduser().absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """Instruction sets of the CPU as Linux names them; empty elsewhere."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return set()
    match = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    return set(match.group(1).split()) if match else set()


def cpu_bfloat16(flags: set[str]) -> str | None:
    """What the CPU computes bfloat16 with; None where it can only imitate it."""
    names = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16", "bf16": "ARM BF16"}
    return next((name for flag, name in names.items() if flag in flags), None)


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's model, or its architecture."""
    try:
        match = re.search(r"^model name\s*:\s*(.*)$", cpuinfo.read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match.group(1).strip() if match else platform.processor() or platform.machine()


def _first_line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
