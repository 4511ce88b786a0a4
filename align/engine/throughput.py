"""How fast a run trains: real tokens a second, and which share of the machine's peak they use.

Only tokens that are no padding count, once for each time that they are trained on. The model FLOPs
utilisation (MFU; PaLM, Chowdhery et al. 2022, appendix B) divides the arithmetic that those tokens
need, 6 for a parameter of the backbone's matrices and attention, by what the machine could have
done meanwhile. The head over the vocabulary, passes without gradients (a reference, sampling) and
what is computed again count nothing, so it is a lower bound of what the machine did.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from trl.trainer.utils import get_peak_flops

from align.engine.prefix import Counts, PrefixSharing

MASKS = ("attention_mask", "prompt_mask", "completion_mask")
SIDE = 1024  # of the product that measures a CPU's peak


class SpeedMixin:
    """Adds `speed/tokens_per_second`, `speed/mfu` and the shares of computed tokens to the logs."""

    sharing: Sequence[PrefixSharing] = ()
    trained_tokens = 0  # of this process, since the last log
    trained_rows = 0
    measured_from: float | None = None

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """The trainer's step, its clock started."""
        if self.measured_from is None:
            self.measured_from = time.perf_counter()
        return super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """The trainer's loss; counts the batch."""
        if model.training:
            rows, tokens = real_tokens(inputs)
            self.trained_rows += rows
            self.trained_tokens += tokens
        return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add what was measured since the last log of a training step."""
        if "loss" in logs and self.measured_from is not None:  # as on every other process
            logs |= self._speed()
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _speed(self) -> dict[str, float]:
        now = time.perf_counter()
        seconds = max(now - (self.measured_from or now), 1e-9)
        found = {"speed/tokens_per_second": self.trained_tokens / seconds}
        model: Any = self.model  # type: ignore[attr-defined]
        peak = peak_flops(model, self.args)  # type: ignore[attr-defined]
        if peak:
            length = self.trained_tokens / max(1, self.trained_rows)
            each = flops_per_token(model, length)
            found["speed/mfu"] = each * found["speed/tokens_per_second"] / peak
        accelerator: Any = self.accelerator  # type: ignore[attr-defined]
        if accelerator.num_processes > 1:
            mean = accelerator.reduce(
                torch.tensor(list(found.values()), device=accelerator.device), reduction="mean"
            )
            found = dict(zip(found, mean.tolist(), strict=True))
            found["speed/tokens_per_second"] *= accelerator.num_processes
        if not found["speed/tokens_per_second"]:
            found = {}  # a batch of a kind that holds no tokens
        found |= shares([one.counts for one in self.sharing])
        for one in self.sharing:
            one.counts = Counts()
        self.trained_tokens = self.trained_rows = 0
        self.measured_from = now
        return found


def real_tokens(inputs: dict[str, Any]) -> tuple[int, int]:
    """Rows of a batch, and its tokens that are no padding."""
    masks = [inputs[name] for name in MASKS if isinstance(inputs.get(name), Tensor)]
    if isinstance(inputs.get("attention_mask"), Tensor):
        masks = masks[:1]  # the others say which of its tokens train
    if masks:
        return len(masks[0]), int(sum(mask.sum() for mask in masks))
    ids = inputs.get("input_ids")
    return (len(ids), ids.numel()) if isinstance(ids, Tensor) else (0, 0)


def shares(counts: Sequence[Counts]) -> dict[str, float]:
    """Which share of the padded tokens was real, and which was computed."""
    padded = sum(one.padded for one in counts)
    if not padded:
        return {}
    return {
        "speed/real_share": sum(one.real for one in counts) / padded,
        "speed/computed_share": sum(one.computed for one in counts) / padded,
    }


def flops_per_token(model: nn.Module, length: float) -> float:
    """Arithmetic of training on one token in a row of this many, forward and backward.

    6 for each parameter of a matrix but embeddings and the head over the vocabulary, and
    6 * layers * width * length for causal attention (half of the 12 of PaLM, appendix B).
    """
    config: Any = model.config
    text = config.get_text_config()
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    matrices = sum(
        p.numel()
        for p in model.parameters()
        if p.ndim > 1 and id(p) not in tables and p.shape[0] != text.vocab_size
    )
    layers, width = text.num_hidden_layers, text.hidden_size
    return 6.0 * matrices + 6.0 * layers * width * length


def peak_flops(model: nn.Module, args: Any) -> float | None:
    """Multiply-adds, counted as two, that the device can do a second; None: not known.

    Args:
        model: on its device.
        args: the trainer's, whose `bf16` and `fp16` say in what it multiplies.
    """
    parameter = next(model.parameters())
    if parameter.device.type == "cuda":
        half = "bfloat16" if args.bf16 else "float16" if args.fp16 else None
        kind = half or str(parameter.dtype).removeprefix("torch.")
        return get_peak_flops(torch.cuda.get_device_name(parameter.device), kind)
    if parameter.device.type == "cpu":
        return cpu_peak(torch.get_num_threads())
    return None


@cache
def cpu_peak(threads: int) -> float:
    """What this CPU reaches in a float32 product of two matrices, on so many threads."""
    first, second = torch.ones(SIDE, SIDE), torch.ones(SIDE, SIDE)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        torch.mm(first, second)
        best = min(best, time.perf_counter() - started)
    return 2 * SIDE**3 / best
