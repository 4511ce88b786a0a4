"""Guards on two processes (gloo): DDP and FSDP2 train as one process does; ZeRO-2 as plain."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from align.engine.guards.ewc import EWC
from align.engine.guards.si import SI
from align.engine.launch import launch_command
from feedback.ports import free_port

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = Path(__file__).with_name("processes_script.py")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def launch(arguments: list[str], processes: int, folder: Path, **more: str) -> None:
    start = [sys.executable]
    if processes > 1:
        command = launch_command("cpu2", [], processes=processes, main_port=free_port())
        start = command[: command.index("--module")]
        preset = start.index("--config_file") + 1
        start[preset] = str((ROOT / start[preset]).resolve())
    paths = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    done = subprocess.run(
        [*start, str(SCRIPT), *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | more,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def test_two_processes_are_one(policy_dir, tmp_path):
    for name, processes, rows in (("one", 1, 8), ("two", 2, 4)):
        (tmp_path / name).mkdir()
        launch([str(policy_dir), str(tmp_path / name), str(rows)], processes, tmp_path)
    for part in ("sft", "loop"):
        one = torch.load(tmp_path / "one" / f"{part}-0.pt")
        for rank in range(2):
            two = torch.load(tmp_path / "two" / f"{part}-{rank}.pt")
            assert two.keys() == one.keys()
            for name, value in one.items():
                assert torch.allclose(two[name], value, atol=1e-5, rtol=1e-4), (part, name)
        assert float(one["ewc"]) > 0
        paths = [float(v.abs().max()) for n, v in one.items() if n.startswith("si/")]
        assert max(paths) > 0


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is an extra")
def test_zero_2_trains_as_plain_and_si_sees_the_task_alone(tmp_path, policy_dir):
    launch([str(policy_dir), str(tmp_path), "4", "2"], 2, tmp_path, DS_ACCELERATOR="cpu")
    (tmp_path / "plain").mkdir()
    launch([str(policy_dir), str(tmp_path / "plain"), "8", "plain"], 1, tmp_path)
    for kind in ("ewc", "si"):  # through the trainer
        one = torch.load(tmp_path / "plain" / f"{kind}-0.pt")
        for rank in range(2):
            two = torch.load(tmp_path / f"{kind}-{rank}.pt")
            for name, value in one.items():
                assert torch.allclose(two[name], value, atol=1e-5, rtol=1e-4), (kind, name)
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
