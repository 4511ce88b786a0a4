"""The weights that a guard holds, by the names that the plain model gives them.

Names are those of the model as it is saved: the same with and without DistributedDataParallel, a
critic beside the policy, or adapters. With LoRA a weight is W + s B A; what is held is that sum,
never A and B apart: at B = 0 the Fisher of A is 0, and A would move freely.

Leaves out quantised weights and adapters other than LoRA: a guard on weights refuses them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from align.errors import ConfigError, Problem

ADAPTER_PREFIX = "base_model.model."
ELSEWHERE = "use a guard on outputs (replay, distill), or none: the base weights stay as they are."


@dataclass(frozen=True)
class Plain:
    """A parameter that trains."""

    parameter: nn.Parameter

    @property
    def shape(self) -> torch.Size:
        """Of the whole weight, over all shards."""
        return self.parameter.shape

    def now(self) -> Tensor:
        """The weight, or this process's shard of it; with gradient."""
        return local(self.parameter)

    def gradient(self) -> Tensor | None:
        """Its gradient, or the shard's; None where nothing has reached it.

        Under ZeRO-1/2 a copy, gathered from all processes: what is added to it is lost.
        """
        if zero_splits(self.parameter):
            from deepspeed.utils import safe_get_full_grad

            return safe_get_full_grad(self.parameter)
        found = self.parameter.grad
        return None if found is None else local(found)


@dataclass(frozen=True)
class Product:
    """A weight under LoRA: base + scale * B A, of which A and B train."""

    base: Tensor  # (out, in), or (in, out) where `transposed`
    a: nn.Parameter  # (r, in)
    b: nn.Parameter  # (out, r)
    scale: float
    transposed: bool = False

    @property
    def shape(self) -> torch.Size:
        """Of the weight."""
        return self.base.shape

    def now(self) -> Tensor:
        """Base + scale * B A, with gradient."""
        product = self.scale * (self.b.float() @ self.a.float())
        return self.base.float() + (product.T if self.transposed else product)

    def add_gradient(self, wanted: Tensor) -> None:
        """Hand the gradient of the weight on to A and B: s B^T G and s G A^T, in place."""
        change = wanted.T if self.transposed else wanted
        for factor, passed in (
            (self.a, self.b.float().T @ change),
            (self.b, change @ self.a.float().T),
        ):
            if factor.grad is not None:
                factor.grad.add_(passed.to(factor.grad.dtype), alpha=self.scale)


Weight = Plain | Product


def inner_module(model: nn.Module) -> nn.Module:
    """What a guard looks at: without wrappers; the policy of an actor-critic."""
    while isinstance(
        found := getattr(model, "module", getattr(model, "_orig_mod", None)), nn.Module
    ):
        model = found
    guarded = getattr(model, "guarded", None)
    return guarded if isinstance(guarded, nn.Module) else model


def trained_weights(model: nn.Module) -> dict[str, Weight]:
    """Weights that train, by the names of the plain model, each tensor once."""
    inner = inner_module(model)
    products = dict(_products(inner))
    factors = {id(p) for product in products.values() for p in (product.a, product.b)}
    found: dict[str, Weight] = dict(products)
    for name, parameter in inner.named_parameters():
        if parameter.requires_grad and id(parameter) not in factors:
            found[plain_name(name)] = Plain(parameter)
    return found


def plain_name(name: str) -> str:
    """A parameter's name without what PEFT puts around and into it."""
    parts = name.removeprefix(ADAPTER_PREFIX).split(".")
    kept = []
    skip = False
    for part in parts:
        if skip or part == "base_layer":
            skip = False
            continue
        skip = part == "modules_to_save"  # followed by the adapter's name
        if not skip:
            kept.append(part)
    return ".".join(kept)


def _products(inner: nn.Module) -> Iterator[tuple[str, Product]]:
    """Every weight that LoRA's active adapter changes."""
    if not hasattr(inner, "peft_config"):
        return
    from peft.tuners.lora import LoraLayer

    for name, module in inner.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        if len(module.active_adapters) != 1:
            raise _refused(f"{name} has {len(module.active_adapters)} adapters at work")
        (adapter,) = module.active_adapters
        plain = isinstance(module.get_base_layer(), nn.Linear) or hasattr(module, "fan_in_fan_out")
        if (
            adapter not in module.lora_A
            or not plain
            or getattr(module, "use_dora", {}).get(adapter)
        ):
            raise _refused(f"{name} is no plain LoRA of a linear layer")
        layer: Any = module
        base = layer.get_base_layer().weight
        if not base.is_floating_point():
            raise _refused(f"{name} is quantised")
        a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        if isinstance(a, DTensor):
            raise _refused(f"{name} is sharded, and a product of shards is no shard of the product")
        turned = bool(getattr(module, "fan_in_fan_out", False))
        yield plain_name(f"{name}.weight"), Product(base, a, b, module.scaling[adapter], turned)


def refuse_others(model: nn.Module, name: str) -> None:
    """Refuse what a guard on weights cannot hold.

    Raises:
        ConfigError: ZeRO-3 or the first FSDP, where no process knows whole weights by name, or
            adapters other than LoRA.
    """
    from torch.distributed.fsdp import FullyShardedDataParallel
    from transformers.integrations import is_deepspeed_zero3_enabled

    if is_deepspeed_zero3_enabled():
        what = f"{name} does not work under ZeRO-3, where no rank holds whole weights."
        raise ConfigError([Problem("guards", what, f"use ZeRO-2 or FSDP2; or {SHARDED}")])
    if any(isinstance(part, FullyShardedDataParallel) for part in model.modules()):
        what = f"{name} does not work under the first FSDP, which flattens weights."
        raise ConfigError([Problem("guards", what, f"set fsdp_version: 2; or {SHARDED}")])
    kinds = getattr(inner_module(model), "peft_config", {})
    other = [c.peft_type.value.lower() for c in kinds.values() if c.peft_type.value != "LORA"]
    if other:
        raise _refused(f"{name} on {other[0]}: only LoRA's product is held")


SHARDED = "use a guard on outputs (replay, distill)."


def _refused(what: str) -> ConfigError:
    return ConfigError([Problem("guards", f"{what}.", ELSEWHERE)])


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, or the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like_shards(values: Tensor, weight: Weight) -> Tensor:
    """A guard's tensor laid out as its weight is now: on its device, and sharded with it (FSDP2).

    The first process's values are what all get their shards of.
    """
    if isinstance(weight, Plain) and isinstance(weight.parameter, DTensor):
        whole = weight.parameter
        if values.shape == local(whole).shape and values.shape != whole.shape:
            return values  # sharded already
        placed = values.to(local(whole).device)
        return local(distribute_tensor(placed, whole.device_mesh, whole.placements))
    device = weight.parameter.device if isinstance(weight, Plain) else weight.base.device
    return values.to(device)


def zero_splits(parameter: Tensor) -> bool:
    """Whether DeepSpeed's ZeRO-1/2 has gradient and optimizer state of a parameter."""
    return hasattr(parameter, "_hp_mapping")


def gathered(values: dict[str, Tensor], weights: dict[str, Weight]) -> dict[str, Tensor]:
    """A guard's tensors whole again, where each process has a shard of them (FSDP2).

    Every process has to call it.
    """
    found = {}
    for name, value in values.items():
        weight = weights.get(name)
        whole = weight.parameter if isinstance(weight, Plain) else None
        if isinstance(whole, DTensor) and value.shape != whole.shape:
            split = DTensor.from_local(
                value, whole.device_mesh, whole.placements, shape=whole.shape, stride=whole.stride()
            )
            value = split.full_tensor()
        found[name] = value
    return found
