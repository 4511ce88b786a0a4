"""Guards on two processes (gloo): DDP and FSDP2 train as one process does; ZeRO-2 as plain."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from align.engine.guards.ewc import EWC
from align.engine.guards.si import SI
from feedback.ports import free_port

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = Path(__file__).with_name("processes_script.py")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script's functions, for one process: this one."""
    spec = importlib.util.spec_from_file_location("guards_on_processes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def launch(arguments: list[str], folder: Path, **more: str) -> None:
    """The script on two processes, to its end."""
    paths = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    shared = {
        "PYTHONPATH": paths,
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    started = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), *arguments],
            cwd=folder,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=800)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)[-4000:]


def alike(two: dict[str, torch.Tensor], one: dict[str, torch.Tensor]) -> None:
    assert two.keys() == one.keys()
    for name, value in one.items():
        assert torch.allclose(two[name], value, atol=1e-5, rtol=1e-4), name
    moves = [float(v.abs().max()) for n, v in one.items() if n.startswith("si/") or n == "ewc"]
    assert max(moves) > 0


def test_two_processes_are_one(script, policy_dir, tmp_path):
    launch([str(policy_dir), str(tmp_path), "4"], tmp_path)
    one = {"sft": script.train(policy_dir, tmp_path, 8), "loop": script.loop(shard=False)}
    for part, expected in one.items():
        for rank in range(2):
            alike(torch.load(tmp_path / f"{part}-{rank}.pt"), expected)


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is an extra")
def test_zero_2_trains_as_plain_and_si_sees_the_task_alone(script, tmp_path, policy_dir):
    launch([str(policy_dir), str(tmp_path), "4", "2"], tmp_path, DS_ACCELERATOR="cpu")
    for kind in ("ewc", "si"):  # through the trainer
        one = script.train(policy_dir, tmp_path / kind, 8, (kind,))
        for rank in range(2):
            alike(torch.load(tmp_path / f"{kind}-{rank}.pt"), one)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    generator = torch.Generator().manual_seed(2)
    fisher = {n: torch.rand(p.shape, generator=generator) for n, p in model.named_parameters()}
    anchor = {n: p.detach() + 0.1 for n, p in model.named_parameters()}
    guards = [EWC(2.0, fisher, anchor), SI(1.0)]
    for guard in guards:
        guard.begin(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        (loss + sum(guard.penalty(model, {}) for guard in guards)).backward()
        for guard in guards:
            guard.before_step(model)
        optimizer.step()
        for guard in guards:
            guard.after_step(model, optimizer)
    for rank in range(2):
        found = torch.load(tmp_path / f"zero-{rank}.pt")
        for name, parameter in model.named_parameters():
            assert torch.allclose(found[name], parameter, atol=1e-5), name
            assert torch.allclose(found[f"si/{name}"], guards[1].path[name], atol=1e-5), name
