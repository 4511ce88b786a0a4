"""avalanche-lib's side of `benchmarks.digits_peers`, by the Python of its own environment.

Imports nothing of Align. The job says which runs; the tasks and the first weights are read from
Align's file. Training, memories, penalties and evaluation are avalanche's own. The line printed
last has a result for each run: the table of accuracies, and SHA-256 sums of the weights at the
end and of the rows as avalanche's datasets gave them out.

`si_mended` is avalanche's SI with two small repairs. On a CPU `extract_weights` keeps views of the
live weights, so that no weight ever seems to have moved: it copies them. Importances are clipped
from above only, and a few of the second task's are far below zero, which rewards moving away
until the loss is NaN: they are clipped at zero too.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

# PyPI's torchvision is built for CUDA: beside a CPU build of torch its library does not load, and
# its import then fails on operators that nobody declared. Nothing here calls them.
for operator in ("nms", "qnms"):
    torch.library.define(
        f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    )
os.environ |= {"WANDB_MODE": "disabled", "WANDB_ERROR_REPORTING": "false"}
warnings.filterwarnings("ignore")

from avalanche.benchmarks import tensors_benchmark  # noqa: E402
from avalanche.evaluation.metrics import accuracy_metrics  # noqa: E402
from avalanche.models import MultiTaskModule  # noqa: E402
from avalanche.training import supervised  # noqa: E402
from avalanche.training.plugins import (  # noqa: E402
    EvaluationPlugin,
    SynapticIntelligencePlugin,
)


class Masked(MultiTaskModule):
    """The perceptron with the task known: only the task's classes compete."""

    def __init__(self, network: nn.Sequential, allowed: Tensor):
        super().__init__()
        self.network = network
        self.register_buffer("allowed", allowed)  # (tasks, 10)

    def forward(self, x: Tensor, task_labels: Any) -> Any:
        """Logits (B, 10); of all tasks seen, where none is given."""
        if task_labels is None:
            return self.forward_all_tasks(x)
        return self.network(x).masked_fill(~self.allowed[task_labels], -1e4)

    def forward_single_task(self, x: Tensor, task_label: int) -> Tensor:
        """Logits (B, 10) of one task."""
        return self.forward(x, task_label)


def perceptron(weights: list[Tensor]) -> nn.Sequential:
    """Linear layers of these weights and biases, ReLU between them."""
    layers: list[nn.Module] = []
    for weight, bias in zip(weights[::2], weights[1::2], strict=True):
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def strategies(model: nn.Module, strength: float, epochs: int) -> dict[str, Callable[[], Any]]:
    """Every method, not yet made. Memories hold 200 rows unless the name says another number."""
    given: dict[str, Any] = {
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        "train_mb_size": 32,
        "train_epochs": epochs,
        "eval_mb_size": 512,
        "evaluator": EvaluationPlugin(accuracy_metrics(experience=True)),
    }
    usual = given | {"model": model, "criterion": nn.CrossEntropyLoss()}
    each = {"patterns_per_exp": 50}  # 200 of the four tasks before the last
    s = supervised
    return {
        "naive": lambda: s.Naive(**usual),
        "joint": lambda: s.JointTraining(**usual),
        "cumulative": lambda: s.Cumulative(**usual),
        "ewc": lambda: s.EWC(ewc_lambda=strength, mode="separate", **usual),
        "si": lambda: s.SynapticIntelligence(si_lambda=strength, **usual),
        "si_mended": lambda: s.SynapticIntelligence(si_lambda=strength, **usual),
        "mas": lambda: s.MAS(lambda_reg=strength, **usual),
        "lwf": lambda: s.LwF(alpha=strength, temperature=2.0, **usual),
        "replay_200": lambda: s.Replay(mem_size=200, **usual),
        "replay_500": lambda: s.Replay(mem_size=500, **usual),
        "agem": lambda: s.AGEM(sample_size=64, **each, **usual),
        "gem": lambda: s.GEM(memory_strength=strength, **each, **usual),
        "er_ace": lambda: s.ER_ACE(mem_size=200, batch_size_mem=32, **usual),
        "icarl": lambda: s.ICaRL(
            feature_extractor=model[:-1],  # type: ignore[index]
            classifier=model[-1],  # type: ignore[index]
            memory_size=200,
            buffer_transform=None,
            fixed_memory=True,
            **given,
        ),
    }


def learn(folder: Path, run: dict[str, Any]) -> dict[str, Any]:
    """One sequence of tasks."""
    started = time.perf_counter()
    with np.load(folder / run["tasks"]) as file:
        kept = {name: torch.from_numpy(file[name]) for name in file.files}
    known = run["world"] == "task"
    network = perceptron(numbered(kept, "weight"))
    model = Masked(network, torch.stack(numbered(kept, "allowed"))) if known else network
    benchmark = stream_of(kept, known)
    data = digest(rows_given_out(benchmark))
    random.seed(run["seed"])
    np.random.seed(run["seed"])
    torch.manual_seed(run["seed"])
    strategy = strategies(model, run["strength"], run["epochs"])[run["method"]]()
    with mended(run["method"] == "si_mended"):
        table = train(strategy, benchmark, run["method"] == "joint")
    weights = digest(p.detach() for p in strategy.model.parameters())
    seconds = time.perf_counter() - started
    return {"table": table, "weights": weights, "data": data, "seconds": seconds}


def numbered(kept: dict[str, Tensor], name: str) -> list[Tensor]:
    """`name0`, `name1` and so on, as many as there are."""
    return [kept[f"{name}{n}"] for n in range(len(kept)) if f"{name}{n}" in kept]


def stream_of(kept: dict[str, Tensor], known: bool) -> Any:
    """The tasks as avalanche's benchmark; their numbers are its task labels if they are known."""
    x, y, x_test, y_test = (numbered(kept, name) for name in ("x", "y", "x_test", "y_test"))
    made = tensors_benchmark(
        train_tensors=list(zip(x, y, strict=True)),
        test_tensors=list(zip(x_test, y_test, strict=True)),
        task_labels=list(range(len(x))) if known else [0] * len(x),
    )
    classes = [labels.unique().tolist() for labels in y]
    made.n_classes_per_exp = [len(found) for found in classes]  # iCaRL asks for both
    made.classes_order = [one for found in classes for one in found]
    return made


def rows_given_out(benchmark: Any) -> Iterator[Tensor]:
    """x, y, x_test and y_test of each task, as avalanche's datasets give them out."""
    for both in zip(benchmark.train_stream, benchmark.test_stream, strict=True):
        for experience in both:
            rows = list(experience.dataset)  # of (x, y, task)
            yield torch.stack([row[0] for row in rows])
            yield torch.tensor([row[1] for row in rows])


def train(strategy: Any, benchmark: Any, at_once: bool) -> list[list[float]]:
    """R[i][j]: avalanche's accuracy on task j after task i; `at_once` has one row for all."""
    tests = benchmark.test_stream
    if at_once:
        strategy.train(benchmark.train_stream)
        return [accuracies(strategy.eval(tests))] * len(tests)
    table = []
    for experience in benchmark.train_stream:
        strategy.train(experience)
        table.append(accuracies(strategy.eval(tests)))
    return table


def accuracies(said: dict[str, float]) -> list[float]:
    """Of each experience, in order, out of what `eval` returned."""
    found = {name[-3:]: value for name, value in said.items() if name.startswith("Top1_Acc_Exp/")}
    return [float(found[name]) for name in sorted(found)]


@contextmanager
def mended(wanted: bool) -> Iterator[None]:
    """Avalanche's own SI, and what it lacks."""
    plugin = SynapticIntelligencePlugin
    own_extract, own_update = plugin.extract_weights, plugin.update_ewc_data

    def extract(model: nn.Module, target: dict[str, Any], excluded: set[str]) -> None:
        own_extract(model, target, excluded)
        for kept in target.values():
            kept.data = kept.data.clone()

    def update(net: nn.Module, ewc_data: Any, *more: Any, **named: Any) -> None:
        own_update(net, ewc_data, *more, **named)
        for kept in ewc_data[1].values():
            kept.data = kept.data.clamp(min=0)

    if not wanted:
        yield
        return
    with (
        mock.patch.object(plugin, "extract_weights", staticmethod(extract)),
        mock.patch.object(plugin, "update_ewc_data", staticmethod(update)),
    ):
        yield


def digest(tensors: Iterable[Tensor]) -> str:
    """SHA-256 over the bytes of tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def main(job: Path) -> None:
    """Run all runs of a job."""
    said = json.loads(job.read_text(encoding="utf-8"))
    print(json.dumps({"runs": [learn(Path(said["folder"]), run) for run in said["runs"]]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
