"""What is measured of a training run: when its steps end, its memory, its speed in unique tokens.

Without a GPU the device is the processor, and memory the greatest resident size of the process
(`benchmarks.paired`). On one, memory is that of the tensors which PyTorch held at once while the
trainer ran, so that loading a model does not count; leaves out what the driver and other libraries
take.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.paired import Json, machine, peak_megabytes

if TYPE_CHECKING:
    from align.engine.prefix import Counts

UNIQUE = ("unique_tokens_per_second", "mfu_unique")


class Steps:
    """Notes when every optimizer step ends, and what was computed; a callback of a Trainer."""

    def __new__(cls, sharing: Sequence[Any] = ()) -> Any:
        """A callback; transformers is imported when it is needed."""
        from transformers import TrainerCallback

        class Noted(TrainerCallback):
            def __init__(self) -> None:
                self.ends: list[float] = []
                self.unique: list[int | None] = []  # tokens of the policy so far

            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                wait()
                self.ends.append(time.perf_counter())
                self.unique += [unique_so_far(one.counts) for one in sharing[:1]]

        return Noted()


class Choosing:
    """Seconds in which backbones decide whether to share a pass, and how its tokens would lie."""

    def __init__(self, sharing: Sequence[Any]):
        """Measure from now on."""
        self.seconds = 0.0
        for one in sharing:
            one.lay_out = self._timed(one.lay_out)

    def _timed(self, lay_out: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            layout = lay_out(*args, **kwargs)
            self.seconds += time.perf_counter() - began
            return layout

        return timed


def on_gpu() -> bool:
    """Whether training runs on one here, as transformers' trainers choose by themselves."""
    import torch

    return torch.cuda.is_available()


def device_name() -> str:
    """The GPU's name, or the processor's."""
    if not on_gpu():
        return machine()
    import torch

    return torch.cuda.get_device_name()


def forget_peak() -> None:
    """Begin to measure: from now on a peak is what is held now, or more."""
    if on_gpu():
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()


def peak() -> float:
    """The greatest memory since `forget_peak`, in MiB; on a CPU, since the process began."""
    if not on_gpu():
        return peak_megabytes()
    import torch

    return torch.cuda.max_memory_allocated() / 2**20


def wait() -> None:
    """Until the GPU has done what it was given: time is that of work that has ended."""
    if on_gpu():
        import torch

        torch.cuda.synchronize()


def best_attention(*, half: bool) -> dict[str, str]:
    """How to load the model that serves TRL best; empty: transformers' choice, which is `sdpa`.

    TRL 1.16 has no padding-free DPO or reward modelling (DPO's `padding_free` is switched off in
    its code), but FlashAttention 2 leaves padding out within attention, and its packing for SFT
    runs variable-length kernels. It takes half precision only, and has to be installed.

    Args:
        half: whether training runs in bf16 or fp16.
    """
    from transformers.utils import is_flash_attn_2_available

    if half and on_gpu() and is_flash_attn_2_available():
        return {"attn_implementation": "flash_attention_2"}
    return {}


def unique_so_far(counts: Counts) -> int | None:
    """Unique tokens that went through a backbone; None: some passes were plain, with padding."""
    return counts.computed if counts.shared == counts.passes else None


def unique_speed(
    so_far: Sequence[int | None], seconds: float, each: float, peak_flops: float | None
) -> Json:
    """Speed in unique tokens: what several rows of a batch share counts once.

    Args:
        so_far: `unique_so_far` of the policy at the end of each step, from where time begins.
        seconds: of the steps after the first.
        each: arithmetic of training on one token.
        peak_flops: of the device, in a second; None: not known, and so no MFU.

    Returns:
        Nothing where unique tokens are not at hand.
    """
    first, last = (so_far[0], so_far[-1]) if so_far else (None, None)
    if first is None or last is None:
        return {}
    found: Json = {UNIQUE[0]: (last - first) / seconds}
    return found | ({UNIQUE[1]: found[UNIQUE[0]] * each / peak_flops} if peak_flops else {})


def unique_medians(arms: Sequence[Json]) -> Json:
    """Medians of `unique_speed` over one side's arms; empty where they were not at hand."""
    known = [name for name in UNIQUE if all(name in arm for arm in arms)]
    return {name: float(statistics.median(arm[name] for arm in arms)) for name in known}
