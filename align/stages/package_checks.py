"""Packages that a run's settings need, looked for before weights are read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from align.errors import MissingDependencyError

TRACKERS = {
    name: f"pip install {name}, or 'align-rlhf[tracking]' for all of them"
    for name in ("wandb", "mlflow", "trackio")
}
# `trainer.optim` by name: the module it needs, and how to have it. The first that matches.
OPTIMIZERS = (
    (r"galore_", "galore_torch", "galore-torch"),
    (r"apollo_", "apollo_torch", "apollo-torch"),
    (r"(ada)?lomo", "lomo_optim", "lomo-optim"),
    (r"grokadamw", "grokadamw", "grokadamw"),
    (r"schedule_free_", "schedulefree", "schedulefree"),
    (r"stable_adamw", "optimi", "torch-optimi"),
    (r"adamw_torch_[48]bit", "torchao", "torchao"),
    (r".*8bit|paged_|rmsprop_bnb|lion_|ademamix", "bitsandbytes", "'align-rlhf[quantization]'"),
)


def check_packages(trainer: Mapping[str, Any], report_to: Sequence[str]) -> None:
    """Refuse settings whose package is not installed.

    Args:
        trainer: a stage's `trainer` section.
        report_to: trackers, as in `tracking.report_to`.

    Raises:
        MissingDependencyError: with every setting that lacks its package.
    """
    missing = [
        f"{setting}: {module} is not installed. Fix: {fix}."
        for setting, module, fix in _needed(trainer, report_to)
        if find_spec(module) is None
    ]
    if missing:
        raise MissingDependencyError("\n".join(missing))


def _needed(trainer: Mapping[str, Any], report_to: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Settings, the module each needs, and how to have it."""
    for name in report_to:
        if name in TRACKERS:
            yield "tracking.report_to", name, TRACKERS[name]
    optim = str(trainer.get("optim", ""))
    for pattern, module, package in OPTIMIZERS:
        if re.match(pattern, optim):
            fix = f"pip install {package}, or leave trainer.optim out (adamw_torch_fused)"
            yield f"trainer.optim={optim}", module, fix
            break
    if trainer.get("use_liger_kernel"):
        fix = "pip install liger-kernel (it needs a GPU), or leave the setting out"
        yield "trainer.use_liger_kernel", "liger_kernel", fix
    if trainer.get("deepspeed"):
        yield "trainer.deepspeed", "deepspeed", "pip install 'align-rlhf[deepspeed]'"
