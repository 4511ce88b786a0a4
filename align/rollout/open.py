"""A sampler from a configuration's `rollout` section.

`check_rollout` finds what is wrong before a model loads; `open_sampler` starts the engine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from align.config.sections import PeftSection, RolloutSection, VLLMSection
from align.engine.head import causal_lm
from align.errors import ConfigError, MissingDependencyError, Problem
from align.rollout.environment import load_environment
from align.rollout.episodes import EnvironmentSampler, SyncedEnvironmentSampler
from align.rollout.transformers import TransformersSampler
from align.rollout.vllm import VLLMSampler, resolve_dtype
from align.rollout.vllm_environment import INSTALL, find_python, vllm_here
from align.rollout.vllm_server import VLLMServer
from align.types import Sampler

VIRTUAL = ("prefix_tuning", "prompt_tuning", "p_tuning")  # PEFT methods without weights to merge


def open_sampler(
    section: RolloutSection,
    policy: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
) -> Sampler:
    """Start the engine that a configuration asks for.

    Args:
        section: how to sample.
        policy: what is trained; an engine of its own gets its weights at once.
        tokenizer: the policy's.
        folder: a run's, for weights in transit and logs; both go into its `vllm/`.

    Returns:
        A sampler; a vLLM one is a `SyncedSampler`, to be closed in the end.

    Raises:
        ConfigError: what `check_rollout` finds and only a running process can know.
        MissingDependencyError: vLLM is not installed.
        SamplerError: the engine did not start or did not get the weights.
    """
    if section.engine == "transformers":
        engine: TransformersSampler | VLLMSampler = TransformersSampler(
            policy,
            tokenizer,
            max_new_tokens=section.max_new_tokens,
            min_new_tokens=section.min_new_tokens,
            temperature=section.temperature,
            top_p=section.top_p,
            top_k=section.top_k,
            batch_size=section.batch_size,
        )
    else:
        engine = _open_vllm(section, policy, tokenizer, Path(folder) / "vllm")
    return in_environment(section, engine, policy, tokenizer)


def in_environment(
    section: RolloutSection,
    engine: TransformersSampler | VLLMSampler,
    policy: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
) -> Sampler:
    """Episodes drawn by an engine, where the section names an environment; else the engine itself.

    Raises:
        ConfigError: the environment cannot be imported.
        ModelError: the tokenizer has no chat template.
    """
    if section.environment is None:
        return engine
    model = causal_lm(policy)
    limits = [
        getattr(model.config.get_text_config(), "max_position_embeddings", None),
        section.vllm.max_model_len,
        getattr(engine, "context", None),  # a server's own, which may be the smallest
    ]
    settings: dict[str, Any] = {
        "make_environment": load_environment(section.environment),
        "max_turns": section.max_turns,
        "max_new_tokens": section.max_new_tokens,
        "context": min(filter(None, limits), default=None),
        "timeout": section.environment_timeout,
        "device": model.device,
    }
    if isinstance(engine, TransformersSampler):
        return EnvironmentSampler(engine, tokenizer, **settings)
    return SyncedEnvironmentSampler(engine, tokenizer, **settings)


def _open_vllm(
    section: RolloutSection, policy: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> VLLMSampler:
    vllm = section.vllm
    sampling = {
        "max_new_tokens": section.max_new_tokens,
        "min_new_tokens": section.min_new_tokens,
        "temperature": section.temperature,
        "top_p": section.top_p,
        "top_k": section.top_k,
        "dtype": vllm.dtype,
        "max_model_len": vllm.max_model_len,
        "timeout": vllm.timeout,
        "tolerance": vllm.tolerance,
    }
    if section.engine == "vllm":
        from align.rollout.vllm_colocated import VLLMColocatedSampler

        return VLLMColocatedSampler(
            policy,
            tokenizer,
            folder,
            gpu_memory_utilization=vllm.gpu_memory_utilization or 0.3,
            kv_cache_gib=vllm.kv_cache_gib,
            sleep=vllm.sleep,
            **sampling,
        )
    from align.rollout.vllm_remote import VLLMServerSampler, serve_policy, started

    def sampler(server: VLLMServer | None) -> VLLMSampler:
        return VLLMServerSampler(
            policy,
            tokenizer,
            folder,
            server=server,
            url=vllm.url,
            sync=vllm.sync,
            concurrency=vllm.concurrency,
            **sampling,
        )

    if vllm.url is not None:
        return sampler(None)
    described = serve_policy(
        policy,
        tokenizer,
        folder,
        find_python(vllm.python),
        sync=vllm.sync,
        dtype=resolve_dtype(vllm.dtype, policy),
        temperature=section.temperature,
        max_model_len=vllm.max_model_len,
        gpu_memory_utilization=vllm.gpu_memory_utilization or 0.9,
        kv_cache_gib=vllm.kv_cache_gib,
        timeout=vllm.timeout,
        devices=vllm.devices,
    )
    with started(described) as server:
        return sampler(server)


def check_rollout(
    section: RolloutSection, peft: PeftSection | None = None, quantization: str | None = None
) -> list[Problem]:
    """Everything wrong with a `rollout` section that shows before a model loads.

    Args:
        section: how to sample.
        peft: the run's adapters, if any.
        quantization: of the policy, if any.
    """
    return _check_environment(section) + _check_engine(section, peft, quantization)


def _check_environment(section: RolloutSection) -> list[Problem]:
    if section.environment is not None:
        try:
            load_environment(section.environment)
        except ConfigError as error:
            return error.problems
        return []
    used = sorted({"max_turns", "environment_timeout"} & section.model_fields_set)
    what = "set, but there is no environment."
    return [
        Problem(f"rollout.{key}", what, "set rollout.environment, or remove it.") for key in used
    ]


def _check_engine(
    section: RolloutSection, peft: PeftSection | None, quantization: str | None
) -> list[Problem]:
    if section.engine == "transformers":
        used = sorted(section.vllm.model_fields_set)
        what = f"set, but rollout.engine is transformers ({', '.join(used)})."
        fix = "set rollout.engine to vllm or vllm-server, or remove it."
        return [Problem("rollout.vllm", what, fix)] if used else []
    found = [
        _check_installed(section),
        *_check_policy(section.vllm, peft, quantization, section.engine),
        *_check_lengths(section),
    ]
    found += _check_server(section.vllm) if section.engine == "vllm-server" else []
    found += _check_colocated(section.vllm) if section.engine == "vllm" else []
    return [problem for problem in found if problem is not None]


def _check_installed(section: RolloutSection) -> Problem | None:
    if section.engine == "vllm":
        missing = not vllm_here()
        return Problem("rollout.engine", "this Python has no vLLM.", INSTALL) if missing else None
    if section.vllm.url is not None:
        return None
    try:
        find_python(section.vllm.python)
    except MissingDependencyError as error:
        what, _, fix = str(error).partition(" Fix: ")
        where = "rollout.vllm.python" if section.vllm.python else "rollout.engine"
        return Problem(where, what, fix)
    return None


def _check_policy(
    vllm: VLLMSection, peft: PeftSection | None, quantization: str | None, engine: str
) -> list[Problem]:
    problems = []
    by_lora = engine == "vllm-server" and vllm.sync == "lora"
    if peft is not None and peft.method in VIRTUAL:
        what = f"{peft.method} learns virtual tokens, which no weights of vLLM can hold."
        problems.append(Problem("peft.method", what, "use lora, or rollout.engine: transformers."))
    if quantization is not None and not by_lora:
        what = f"a policy in {quantization} has no plain weights to send to vLLM."
        problems.append(Problem("model.quantization", what, "use rollout.engine: transformers."))
    if by_lora and (peft is None or peft.method != "lora"):
        what = "lora sends a LoRA adapter, but the run trains none."
        problems.append(
            Problem("rollout.vllm.sync", what, "set peft.method: lora, or sync: checkpoint.")
        )
    elif by_lora and peft is not None:
        refused = ("modules_to_save", "use_dora", "lora_bias", "trainable_token_indices")
        for key in refused:
            if peft.kwargs.get(key):
                what = "vLLM serves no such adapter."
                fix = "leave it out, or use rollout.vllm.sync: checkpoint."
                problems.append(Problem(f"peft.kwargs.{key}", what, fix))
    return problems


def _check_lengths(section: RolloutSection) -> list[Problem]:
    context = section.vllm.max_model_len
    if context is None or section.max_new_tokens < context:
        return []
    what = f"{section.max_new_tokens} leaves no room for a prompt in max_model_len={context}."
    return [Problem("rollout.max_new_tokens", what, "lower it, or raise max_model_len.")]


def _check_server(vllm: VLLMSection) -> list[Problem]:
    problems = []
    if vllm.url is not None:
        parts = urlsplit(vllm.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            what = f"{vllm.url!r} is no address of a server."
            problems.append(Problem("rollout.vllm.url", what, "write http://HOST:PORT."))
        for key in sorted(
            {"python", "kv_cache_gib", "gpu_memory_utilization", "devices"} & vllm.model_fields_set
        ):
            what = f"a server that runs at {vllm.url} has its own."
            problems.append(Problem(f"rollout.vllm.{key}", what, "remove it, or url."))
    if vllm.sleep:
        what = "a server of its own has nothing to give back to training."
        problems.append(Problem("rollout.vllm.sleep", what, "remove it, or use engine: vllm."))
    if vllm.sync == "nccl":
        if torch.cuda.device_count() < 2 and vllm.url is None:
            what = "nccl needs a GPU here and another for the server."
            problems.append(Problem("rollout.vllm.sync", what, "use checkpoint."))
        elif not torch.cuda.is_available():
            what = "nccl needs a GPU here."
            problems.append(Problem("rollout.vllm.sync", what, "use checkpoint."))
        elif vllm.url is None and vllm.devices is None:
            what = "nccl needs the server on other GPUs than the training."
            problems.append(Problem("rollout.vllm.devices", what, 'name them, for example "1".'))
        if not vllm_here():
            what = "nccl needs vLLM in this Python too."
            problems.append(Problem("rollout.vllm.sync", what, INSTALL))
    return problems


def _check_colocated(vllm: VLLMSection) -> list[Problem]:
    problems = []
    for key in sorted({"url", "sync", "python", "concurrency", "devices"} & vllm.model_fields_set):
        what = "only vllm-server has it."
        fix = "remove it, or set rollout.engine: vllm-server."
        problems.append(Problem(f"rollout.vllm.{key}", what, fix))
    if vllm.sleep and not torch.cuda.is_available():
        what = "vLLM cannot sleep on a CPU."
        problems.append(Problem("rollout.vllm.sleep", what, "remove it."))
    return problems
