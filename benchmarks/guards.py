"""What guards on weights cost: EWC on a 31M-parameter model beside AdamW's step and naive autograd.

    python -m benchmarks.guards --json guards.json

The weights of configs/models/qwen3-30m.json (random, float32), one thread by default, medians over
the rounds; arms take turns within a round. Measured are

- `ewc`: a step's gradient added in place (`WeightGuard.before_step`), its value not computed;
- `ewc_logged`: with the value too, as in a step that logs;
- `naive`: the penalty written with autograd and its backward, as one would at first;
- `foreach`: the same gradient by plain `torch._foreach_*`, a fresh buffer each time;
- `si`: both halves of synaptic intelligence around a step;
- `adamw`: a step of torch's AdamW with foreach=True;
- `step`: forward and backward of 8 x 256 tokens and that AdamW step;
- `replay`: the same with a guard that replays 2 rows as long: a share of the tokens, 1.25.

`ewc_step_ratio` is (step + ewc) / step, `ewc_adamw_ratio` ewc / adamw, `replay_step_ratio`
replay / step, `memory_copies` what EWC keeps, in copies of the weights. In-place and naive
gradients are compared as they are timed.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from align.engine.guards.ewc import EWC, ewc_penalty
from align.engine.guards.replay import Replay
from align.engine.guards.si import SI
from benchmarks.paired import machine, versions

MODEL = Path(__file__).resolve().parents[1] / "configs" / "models" / "qwen3-30m.json"
ROWS, TOKENS, STRENGTH, VOCABULARY = 8, 256, 10.0, 4096
REPLAYED = 2  # rows


def main(arguments: list[str]) -> int:
    """Time everything and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=2, help="Full steps after a first one.")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    shape = json.loads(MODEL.read_text(encoding="utf-8"))
    config = AutoConfig.for_model(shape.pop("model_type"), **shape, vocab_size=VOCABULARY)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fisher = {n: torch.rand_like(p) for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, foreach=True)
    rows = torch.randint(config.vocab_size, (8, 1, TOKENS))
    replay = Replay([{"input_ids": row, "labels": row} for row in rows], summed, 0.5, REPLAYED)
    full: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(given.steps + 1):  # the first allocates
        for with_replay, found in full.items():
            seconds = full_step(model, optimizer, replay if with_replay else None)
            found += [seconds] * (turn > 0 or not given.steps)
    guard, si = EWC(STRENGTH, fisher, in_place=True), SI(1.0, in_place=True)
    guard.begin(model)
    si.begin(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    agree(model, guard)
    times = in_turn(arms(model, guard, si, optimizer), given.rounds)
    middle = {name: statistics.median(found) for name, found in times.items()}
    count = sum(p.numel() for p in model.parameters())
    kept = sum(v.numel() for v in [*guard.importance.values(), *guard.anchor.values()])
    step, replayed = (statistics.median(found) for found in full.values())
    figures: dict[str, Any] = {
        "parameters": count,
        "milliseconds": {k: 1000 * v for k, v in middle.items()}
        | {"step": 1000 * step, "replay": 1000 * replayed},
        "ranges": {k: [1000 * min(v), 1000 * max(v)] for k, v in times.items()},
        "ewc_adamw_ratio": middle["ewc"] / middle["adamw"],
        "naive_adamw_ratio": middle["naive"] / middle["adamw"],
        "ewc_step_ratio": (step + middle["ewc"]) / step,
        "si_step_ratio": (step + middle["si"]) / step,
        "replay_step_ratio": replayed / step,
        "memory_copies": kept / count,
        "device": machine(),
        "threads": given.threads,
        "versions": versions(["torch", "transformers"]),
    }
    given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    for name, value in figures["milliseconds"].items():
        print(f"{name:11} {value:9.1f} ms")
    for name in (name for name in figures if name.endswith("_ratio")):
        print(f"{name}: {figures[name]:.3f}")
    print(f"memory: {figures['memory_copies']:.2f} copies of the weights")
    return 0


def full_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, replay: Replay | None = None
) -> float:
    """Seconds of a whole training step; it leaves gradients, and the optimizer its states."""
    ids = torch.randint(VOCABULARY, (ROWS, TOKENS))
    started = time.perf_counter()
    optimizer.zero_grad(set_to_none=False)
    loss = model(input_ids=ids, labels=ids).loss
    if replay is not None:
        loss = loss + replay.penalty(model, {})
    loss.backward()
    optimizer.step()
    return time.perf_counter() - started


def summed(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The loss of a batch over its tokens."""
    loss: Tensor = model(**batch).loss
    return loss * (batch["labels"].numel() - len(batch["labels"]))


def arms(
    model: nn.Module, guard: EWC, si: SI, optimizer: torch.optim.Optimizer
) -> dict[str, Callable[[], object]]:
    """What is timed."""
    parameters = dict(model.named_parameters())
    anchors = [guard.anchor[n] for n in guard.importance]
    fishers = list(guard.importance.values())
    held = [parameters[n] for n in guard.importance]

    def logged() -> None:
        guard.penalty(model, {})
        guard.before_step(model)

    def naive() -> None:
        ewc_penalty(parameters, guard.anchor, guard.importance, STRENGTH).backward()

    def foreach() -> None:
        with torch.no_grad():
            apart = torch._foreach_sub(held, anchors)
            torch._foreach_mul_(apart, fishers)
            torch._foreach_add_([p.grad for p in held], list(apart), alpha=STRENGTH)

    def both_halves() -> None:
        si.before_step(model)
        si.after_step(model)

    return {
        "ewc": lambda: guard.before_step(model),
        "ewc_logged": logged,
        "naive": naive,
        "foreach": foreach,
        "si": both_halves,
        "adamw": optimizer.step,
    }


def in_turn(timed: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, in another order every round; a first round is thrown away."""
    found: dict[str, list[float]] = {name: [] for name in timed}
    names = list(timed)
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started = time.perf_counter()
            timed[name]()
            if turn:
                found[name].append(time.perf_counter() - started)
    return found


def agree(model: nn.Module, guard: EWC) -> None:
    """The gradient in place is autograd's.

    Raises:
        RuntimeError: they differ by more than rounding.
    """
    before = [copy.copy(p.grad) for p in model.parameters()]
    gradients: list[list[Tensor]] = []
    for way in ("in place", "naive"):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        if way == "naive":
            parameters = dict(model.named_parameters())
            ewc_penalty(parameters, guard.anchor, guard.importance, STRENGTH).backward()
        else:
            guard.before_step(model)
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    worst = max(float((a - b).abs().max()) for a, b in zip(*gradients, strict=True))
    if worst > 1e-5:
        raise RuntimeError(f"gradients differ by {worst}: the timing would compare two things")
    for parameter, gradient in zip(model.parameters(), before, strict=True):
        parameter.grad = gradient


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
