"""Loading of policies, references and tokenizers; adapters, quantisation and freezing.

A policy that starts from an adapter has it merged first, and the reference is a snapshot of that
start: never the adapter's base model (pains: the LoRA reference was the base model).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from align.engine.tokenizer import load_tokenizer, match_embeddings, why_not
from align.errors import MissingDependencyError, ModelError
from reward.model import initialise_head, load_whole

PEFT_CONFIGS = {
    "lora": peft.LoraConfig,
    "prefix_tuning": peft.PrefixTuningConfig,
    "prompt_tuning": peft.PromptTuningConfig,
    "p_tuning": peft.PromptEncoderConfig,
    "ia3": peft.IA3Config,
    "adalora": peft.AdaLoraConfig,
    "oft": peft.OFTConfig,
    "boft": peft.BOFTConfig,
    "vera": peft.VeraConfig,
    "ln_tuning": peft.LNTuningConfig,
}


def load_policy(
    path: str | Path,
    *,
    tokenizer: str | None = None,
    chat_template: str | None = None,
    dtype: str = "auto",
    with_reference: bool = True,
    **kwargs: Any,
) -> tuple[PreTrainedModel, PreTrainedModel | None, PreTrainedTokenizerBase]:
    """A policy, a frozen snapshot of it, and its tokenizer.

    Args:
        path: directory or hub id; an adapter's directory is merged into its base.
        tokenizer: where the tokenizer is, if not with the model.
        chat_template: a built-in name or a .jinja file, if the tokenizer has none.
        dtype: float32, bfloat16, float16, or auto (see `resolve_dtype`).
        with_reference: False returns None in the reference's place.
        **kwargs: `revision`, `attn_implementation`, `quantization`, `trust_remote_code`.

    Raises:
        ModelError: the model or tokenizer cannot be loaded or used.
    """
    loaded = load_tokenizer(tokenizer or path, chat_template=chat_template)
    policy = load_causal_lm(path, dtype=dtype, **kwargs)
    match_embeddings(policy, loaded)
    disable_dropout(policy)
    reference = snapshot(policy) if with_reference else None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if not getattr(policy, "quantization_method", None):
        policy.to(device)  # type: ignore[arg-type]
        if reference is not None:
            reference.to(device)  # type: ignore[arg-type]
    return policy, reference, loaded


def load_causal_lm(
    path: str | Path,
    *,
    dtype: str = "auto",
    revision: str | None = None,
    attn_implementation: str | None = None,
    quantization: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A causal language model; an adapter's directory is loaded and merged.

    Raises:
        ModelError: nothing loadable is there, or the weights hold NaN or infinity.
        MissingDependencyError: quantisation without bitsandbytes.
    """
    kwargs: dict[str, Any] = {
        "dtype": resolve_dtype(dtype, quantized=quantization is not None),
        "revision": revision,
        "trust_remote_code": trust_remote_code,
    }
    if attn_implementation:
        kwargs["attn_implementation"] = attn_implementation
    if quantization:
        kwargs["quantization_config"] = quantization_config(quantization)
    try:
        if (Path(path) / "adapter_config.json").is_file():
            model = _load_adapted(path, dtype, attn_implementation, quantization, trust_remote_code)
        else:
            model = load_whole(AutoModelForCausalLM, path, **kwargs)
    except (OSError, ValueError) as error:
        raise ModelError(_not_loadable(path, error)) from error
    check_finite(model, path)
    return model


def _load_adapted(
    path: str | Path,
    dtype: str,
    attn_implementation: str | None,
    quantization: str | None,
    trust_remote_code: bool,
) -> PreTrainedModel:
    """An adapter's directory, merged into its base; the base may be another adapter's.

    transformers would load such a base without merging it, and PEFT would put the second adapter
    on the wrong layers without a word.
    """
    settings = peft.PeftConfig.from_pretrained(str(path))
    if settings.is_prompt_learning:
        raise ModelError(
            f"{path} holds {settings.peft_type.value.lower()}, whose virtual tokens cannot be "
            "merged into a model. Fix: start from its base model, or train LoRA."
        )
    base = load_causal_lm(
        str(settings.base_model_name_or_path),
        dtype=dtype,
        revision=settings.revision,
        attn_implementation=attn_implementation,
        quantization=quantization,
        trust_remote_code=trust_remote_code,
    )
    if (Path(path) / "tokenizer_config.json").is_file():
        match_embeddings(base, load_tokenizer(path, trust_remote_code=trust_remote_code))
    model = peft.PeftModel.from_pretrained(base, str(path)).merge_and_unload()
    for parameter in model.parameters():  # PEFT froze the base, and merging leaves it so
        parameter.requires_grad_(parameter.is_floating_point())
    # PEFT reads the attribute when it notes what a further adapter stands on.
    model.config._name_or_path = model.name_or_path = str(path)
    return model


def load_reward_start(
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    heads: int = 1,
    dtype: str = "auto",
    revision: str | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A classifier on a causal model's backbone, its head or heads freshly initialised.

    A directory that holds a reward model already keeps its head.

    Raises:
        ModelError: nothing loadable is there, or a reward model with another number of heads.
    """
    given: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    attention: dict[str, Any] = {}
    if attn_implementation:
        attention["attn_implementation"] = attn_implementation
    try:
        if (Path(path) / "adapter_config.json").is_file():
            policy, trained = load_causal_lm(path, dtype=dtype, **attention, **given), False
            config = copy.deepcopy(policy.config)
            config.num_labels = heads
            model = AutoModelForSequenceClassification.from_config(
                config, dtype=policy.dtype, **attention
            )
            model.base_model.load_state_dict(policy.base_model.state_dict())
        else:
            config = AutoConfig.from_pretrained(str(path), **given)
            trained = any("SequenceClassification" in name for name in config.architectures or [])
            if trained and config.num_labels != heads:
                raise ModelError(
                    f"{path} is a reward model with {config.num_labels} head(s), and {heads} are "
                    "asked for. Fix: start from the policy, or set objective.heads to its number."
                )
            model = load_whole(
                AutoModelForSequenceClassification,
                path,
                fresh=None if trained else "score.",
                num_labels=heads,
                dtype=resolve_dtype(dtype),
                **attention,
                **given,
            )
    except (OSError, ValueError) as error:
        raise ModelError(_not_loadable(path, error)) from error
    match_embeddings(model, tokenizer)
    if not trained:
        initialise_head(model, seed)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model


def snapshot(model: PreTrainedModel) -> PreTrainedModel:
    """A frozen copy for the reference."""
    reference = copy.deepcopy(model)
    reference.requires_grad_(False)
    return reference.eval()


def disable_dropout(model: nn.Module) -> None:
    """Switch off every dropout, attention's (a plain number in most models) and LoRA's too."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


def resolve_dtype(name: str, quantized: bool = False) -> torch.dtype:
    """The dtype of the weights: auto is float32 (autocast does bf16), bf16 when quantised."""
    if name != "auto":
        return getattr(torch, name)
    return torch.bfloat16 if quantized else torch.float32


def quantization_config(bits: str) -> BitsAndBytesConfig:
    """4bit (NF4, double quantisation, bf16 compute: Dettmers et al. 2023) or 8bit.

    Raises:
        MissingDependencyError: bitsandbytes is not installed.
    """
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"model.quantization={bits} needs bitsandbytes. Fix: pip install "
            "'align-rlhf[quantization]' (a CUDA device is needed too), or remove it."
        ) from error
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def peft_config(method: str, kwargs: dict[str, Any], task: str) -> peft.PeftConfig:
    """A PEFT config; for a classifier the score head trains in full.

    Raises:
        ModelError: PEFT refuses the arguments.
    """
    given = {"task_type": task} | kwargs
    if task == "SEQ_CLS" and method == "lora":
        given.setdefault("modules_to_save", ["score"])
    try:
        return PEFT_CONFIGS[method](**given)
    except TypeError as error:
        raise ModelError(
            f"peft.kwargs does not fit {PEFT_CONFIGS[method].__name__}: {error}."
        ) from error


def find_frozen(patterns: Sequence[str], names: Sequence[str]) -> dict[str, set[str]]:
    """The names that each regular expression finds, anywhere in them.

    Raises:
        re.error: a pattern is malformed.
    """
    return {one: {name for name in names if re.search(one, name)} for one in patterns}


def freeze(model: nn.Module, patterns: Sequence[str]) -> int:
    """Freeze the parameters whose name a regular expression finds; returns how many.

    Raises:
        ModelError: a pattern is malformed, matches nothing, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    try:
        found = find_frozen(patterns, names)
    except re.error as error:
        raise ModelError(
            f"model.freeze: {error.pattern!r} is no regular expression: {error}."
        ) from None
    for pattern, matched in found.items():
        if not matched:
            shown = ", ".join(names[:4])
            raise ModelError(
                f"model.freeze: {pattern!r} matches no parameter. Names look like {shown}, ..."
            )
    frozen = set().union(*found.values())
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError("model.freeze leaves nothing to train. Fix: freeze less.")
    return len(frozen)


def check_finite(model: nn.Module, path: str | Path) -> None:
    """Refuse weights that hold NaN or infinity.

    Raises:
        ModelError: with the first such parameter.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not torch.isfinite(parameter).all():
            raise ModelError(
                f"{path}: parameter {name} holds NaN or infinity. Fix: use an earlier checkpoint."
            )


def _not_loadable(path: str | Path, error: Exception) -> str:
    place, why = Path(path), why_not(path, error)
    if place.is_dir():
        found = ", ".join(sorted(item.name for item in place.iterdir())[:6]) or "nothing"
        why = f"the directory holds {found}; a model needs config.json and *.safetensors ({why})"
    return f"cannot load a model from {str(path)!r}: {why}. Fix: check the path."
