"""Prefix sharing on two processes over gloo (DDP, FSDP2, ZeRO-2, ZeRO-3): the plain weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from feedback.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("prefix_script.py")


def weights(way: str, kind: str, folder: Path, *paths: Path) -> dict[str, torch.Tensor]:
    """Of the first of two processes, after two steps; `paths` are for imports."""
    out, port = folder / f"{way}.pt", free_port()
    for_cpu = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    imports = os.pathsep.join(map(str, (ROOT, *paths)))
    processes = []
    for rank in range(2):
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
        mine = {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": imports} | for_cpu
        processes.append(
            subprocess.Popen(
                [sys.executable, str(SCRIPT), way, kind, str(out)],
                env=os.environ | place | mine | {"OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        said = [process.communicate(timeout=800)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)[-4000:]
    return torch.load(out, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_learn_alike(kind, tmp_path):
    plain, shared = (weights(way, kind, tmp_path) for way in ("plain", "shared"))
    assert plain.keys() == shared.keys()
    for name, value in plain.items():
        # TRL's head sums in float32
        assert (shared[name] - value).abs().max() < 1e-5, name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zero2", "zero3"])
def test_under_zero_two_processes_learn_alike(kind, tmp_path, deepspeed_folder):
    plain, shared = (weights(way, kind, tmp_path, deepspeed_folder) for way in ("plain", "shared"))
    assert plain.keys() == shared.keys()
    for name, value in plain.items():
        assert (shared[name] - value).abs().max() < 1e-5, name
