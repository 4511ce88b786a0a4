"""The weights of a policy as an inference engine wants them: whole, merged, under checkpoint names.

Adapters are merged layer by layer into a copy, and every base weight is put back bit for bit:
PEFT's own unmerging subtracts, which leaves rounding behind at every update. Leaves out shards
(PPO refuses ZeRO-3 and FSDP) and quantised bases (their merged weights would be others).
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion

from align.engine.checkpoint import disk_errors
from align.engine.head import causal_lm, has_virtual_tokens
from align.errors import ModelError


def unwrapped(policy: nn.Module) -> nn.Module:
    """The policy inside a DistributedDataParallel wrapper, if any."""
    inner = getattr(policy, "module", None)
    return inner if isinstance(inner, nn.Module) else policy


def whole_weights(
    policy: nn.Module, *, with_adapters: bool = True, untied: bool = False
) -> dict[str, Tensor]:
    """Every weight under its checkpoint name; adapted ones are merged copies, others the live ones.

    Args:
        policy: a causal language model, a PEFT wrapper included.
        with_adapters: False leaves the adapters out: the base model.
        untied: name a tied weight by each of its names (see `needs_untied`), not by the first.

    Raises:
        ModelError: the adapters cannot be merged into weights.
    """
    if with_adapters and has_virtual_tokens(policy):
        raise ModelError(
            "prompt, prefix and p-tuning learn virtual tokens, which no weights of vLLM can hold. "
            "Fix: use rollout.engine=transformers, or peft.method=lora."
        )
    model = causal_lm(unwrapped(policy))
    if getattr(model, "quantization_method", None):
        raise ModelError(
            "a quantised policy has no plain weights to send to vLLM. Fix: rollout.vllm.sync=lora "
            "with a server of the same quantisation, or rollout.engine=transformers."
        )
    weights: dict[str, Tensor] = {}
    _collect(model, "", weights, with_adapters, set())
    if untied:
        for one, other in tied_names(model):
            weights[other] = weights[one].clone()  # safetensors stores no weight twice
    # transformers fuses some models' weights on loading (experts, mostly); checkpoints have them
    # apart.
    return dict(revert_weight_conversion(model, weights))


def needs_untied(policy: nn.Module) -> bool:
    """Whether vLLM must not know that the output layer is the embedding.

    On a CPU it repacks the output layer's weights into a copy, which a reload would leave behind.
    """
    model = causal_lm(unwrapped(policy))
    return not torch.cuda.is_available() and bool(list(tied_names(model)))


def tied_names(model: nn.Module) -> Iterator[tuple[str, str]]:
    """The first and each further name of every weight that has several."""
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        plain = name.replace(".base_layer", "")
        first = names.setdefault(id(parameter), plain)
        if first != plain:
            yield first, plain


def _collect(
    module: nn.Module, prefix: str, found: dict[str, Tensor], merge: bool, seen: set[int]
) -> None:
    """Add the weights of a module and its children to `found`, adapters resolved.

    A tied weight is there once, as in a checkpoint: `seen` holds the ids of the parameters so far.
    """
    if isinstance(module, BaseTunerLayer):
        found |= {prefix + name: w for name, w in _merged(module, merge, seen).items()}
        return
    if isinstance(module, AuxiliaryTrainingWrapper):
        _collect(_chosen(module, prefix, merge), prefix, found, merge, seen)
        return
    for name, parameter in module.named_parameters(recurse=False):
        if id(parameter) not in seen:
            seen.add(id(parameter))
            found[prefix + name] = parameter.detach()
    # What a checkpoint has besides: persistent buffers, such as a batch norm's.
    for name, buffer in module.named_buffers(recurse=False):
        if name not in module._non_persistent_buffers_set:
            found[prefix + name] = buffer.detach()
    for name, child in module.named_children():
        _collect(child, f"{prefix}{name}.", found, merge, seen)


def _merged(layer: BaseTunerLayer, merge: bool, seen: set[int]) -> dict[str, Tensor]:
    """Weights of an adapted layer as copies, merged; the layer itself is as before."""
    base = layer.get_base_layer()
    parameters = {name: p for name, p in base.named_parameters() if id(p) not in seen}
    seen |= {id(parameter) for parameter in parameters.values()}
    layers = [layer]  # outermost first: an adapter may wrap another
    while isinstance(inner := getattr(layers[-1], "base_layer", None), BaseTunerLayer):
        layers.append(inner)
    if not merge or layer.disable_adapters or layer.merged:
        return {name: parameter.detach() for name, parameter in parameters.items()}
    kept = {name: parameter.detach().clone() for name, parameter in base.named_parameters()}
    with torch.no_grad():
        try:
            for one in reversed(layers):
                one.merge()
            merged = {name: p.detach().clone() for name, p in parameters.items()}
        finally:
            for one in layers:
                one.unmerge()
            for name, parameter in base.named_parameters():
                parameter.copy_(kept[name])
    return merged


def _chosen(wrapper: AuxiliaryTrainingWrapper, prefix: str, merge: bool) -> nn.Module:
    """Of a module that PEFT trains whole: the trained copy, or the original."""
    if not merge or wrapper.disable_adapters:
        return wrapper.original_module
    if not isinstance(wrapper, ModulesToSaveWrapper):
        raise ModelError(
            f"{prefix.rstrip('.')} is wrapped by PEFT's {type(wrapper).__name__}, which cannot be "
            "merged. Fix: leave trainable_token_indices out, or use rollout.engine=transformers."
        )
    trained: nn.Module = wrapper.modules_to_save[wrapper.active_adapters[0]]
    return trained


def save_whole(
    policy: nn.Module,
    folder: Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    with_adapters: bool = True,
) -> None:
    """Write a checkpoint that transformers and vLLM load; it is there whole, or not at all.

    Raises:
        ModelError: see `whole_weights`.
        CheckpointError: the disk is full.
    """
    untied = needs_untied(policy)
    weights = whole_weights(policy, with_adapters=with_adapters, untied=untied)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with disk_errors(partial):
        save_config(policy, partial)
        save_torch_state_dict(weights, partial)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)


def save_config(policy: nn.Module, folder: Path) -> None:
    """Write a model's configuration without its weights."""
    model: PreTrainedModel = causal_lm(unwrapped(policy))
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = model.dtype
    if needs_untied(policy):
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)


def save_adapter(policy: nn.Module, folder: Path) -> None:
    """Write a LoRA adapter, whole or not at all.

    Raises:
        ModelError: the policy has no LoRA adapter.
        CheckpointError: the disk is full.
    """
    lora_settings(policy)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with disk_errors(partial):
        unwrapped(policy).save_pretrained(partial)  # type: ignore[operator]
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)


def lora_settings(policy: nn.Module) -> int:
    """The greatest rank of a policy's LoRA adapter.

    Raises:
        ModelError: it has none.
    """
    configs = getattr(unwrapped(policy), "peft_config", None) or {}
    config = configs.get("default")
    if config is None or config.peft_type.value != "LORA":
        raise ModelError(
            "rollout.vllm.sync=lora sends a LoRA adapter, but the policy has none. Fix: set "
            "peft.method=lora, or rollout.vllm.sync=checkpoint."
        )
    return max([config.r, *(config.rank_pattern or {}).values()])
