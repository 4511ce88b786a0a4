"""Guards on two processes (gloo): under DDP, FSDP2 and ZeRO-2 they train as on one."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from align.engine.guards.ewc import EWC
from align.engine.guards.fisher import estimate_fisher
from align.engine.guards.si import SI
from align.engine.launch import launch_command
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


def variables(*paths: Path) -> dict[str, str]:
    """This process's, with Align and more to be imported."""
    all_paths = [*map(str, (ROOT, *paths)), os.environ.get("PYTHONPATH", "")]
    found = {"PYTHONPATH": os.pathsep.join(filter(None, all_paths)), "OMP_NUM_THREADS": "1"}
    return os.environ | found


def launch(arguments: list[str], folder: Path) -> None:
    """The script on two processes, to its end."""
    shared = variables() | {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    started = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), *arguments],
            cwd=folder,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
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


def launch_zero(stage: int, arguments: list[str], folder: Path, deepspeed_folder: Path) -> None:
    """The script as `align launch` starts a stage, but in float32, on two processes."""
    preset = ROOT / "configs" / "accelerate" / f"zero{stage}.yaml"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(deepspeed_folder))
        command = launch_command(preset, [], processes=2, main_port=free_port())
    command = command[: command.index("--module")]
    process = subprocess.Popen(
        [*command, "--mixed_precision", "no", str(SCRIPT), *arguments],
        cwd=folder,
        env=variables(deepspeed_folder) | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said = process.communicate(timeout=800)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with those that it started
    assert process.returncode == 0, said[-4000:]


def alike(two: dict[str, torch.Tensor], one: dict[str, torch.Tensor]) -> None:
    assert two.keys() == one.keys()
    for name, value in one.items():
        assert torch.allclose(two[name], value, atol=1e-5, rtol=1e-4), name
    told = [n for n in one if n.startswith("si/") or n in ("ewc", "replay")]
    moves = [float(one[name].abs().max()) for name in told]
    assert max(moves) > 0


def test_two_processes_are_one(script, policy_dir, tmp_path):
    launch([str(policy_dir), str(tmp_path), "4"], tmp_path)
    one = {"sft": script.train(policy_dir, tmp_path, 8), "loop": script.loop(shard=False)}
    for part, expected in one.items():
        for rank in range(2):
            alike(torch.load(tmp_path / f"{part}-{rank}.pt"), expected)


def test_replay_under_zero_3_trains_as_plain(script, tmp_path, policy_dir, deepspeed_folder):
    launch_zero(3, [str(policy_dir), str(tmp_path), "4", "replay"], tmp_path, deepspeed_folder)
    one = script.train(policy_dir, tmp_path / "one", 8, ("replay",))
    for rank in range(2):
        alike(torch.load(tmp_path / f"replay-{rank}.pt"), one)


def test_zero_2_trains_as_plain_and_si_sees_the_task_alone(
    script, tmp_path, policy_dir, deepspeed_folder
):
    kinds = ("ewc", "si", "replay", "lora")
    launch_zero(2, [str(policy_dir), str(tmp_path), "4", *kinds], tmp_path, deepspeed_folder)
    for kind in kinds:  # through the trainer
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
    kept = estimate_fisher(model, [{"x": row[None]} for row in x], script.square)
    for saved in (f"zero-{stage}-{rank}.pt" for stage in (1, 2) for rank in range(2)):
        found = torch.load(tmp_path / saved)
        for name, parameter in model.named_parameters():
            assert torch.allclose(found[name], parameter, atol=1e-5), name
            assert torch.allclose(found[f"si/{name}"], guards[1].path[name], atol=1e-6), name
            assert torch.allclose(found[f"fisher/{name}"], kept[name], atol=1e-5), name
