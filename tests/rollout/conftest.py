"""vLLM for the tests that are marked with it: installed once, one server for all of them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from align.rollout.vllm_environment import ensure_environment, environment_variables
from align.rollout.vllm_remote import serve_policy
from align.rollout.vllm_server import VLLMServer

SCRIPT = Path(__file__).with_name("colocated_script.py")


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    return ensure_environment(print)


@pytest.fixture(scope="session")
def vllm_llama(tiny_llama, tiny_tokenizer) -> Callable[..., LlamaForCausalLM]:
    """A tiny Llama whose heads are wide enough for vLLM on a CPU; some answers end early."""

    def make(seed: int = 3, **changes: Any) -> LlamaForCausalLM:
        settings = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
        settings |= {"intermediate_size": 128, "max_position_embeddings": 256}
        model = tiny_llama(seed, **settings | changes)
        model.generation_config.eos_token_id = [tiny_tokenizer.eos_token_id, *range(100, 114)]
        return model

    return make


@pytest.fixture(scope="session")
def vllm_server(tmp_path_factory, vllm_llama, tiny_tokenizer, vllm_python) -> Iterator[VLLMServer]:
    """A server that takes checkpoints and adapters, and scores at any temperature."""
    server = serve_policy(
        vllm_llama(),
        tiny_tokenizer,
        tmp_path_factory.mktemp("vllm"),
        vllm_python,
        temperature=0.6,
        gpu_memory_utilization=0.5,
        kv_cache_gib=0.25,
        timeout=900,
    )
    server.lora_rank = 4
    with server:
        yield server


@pytest.fixture(scope="session")
def colocated(tmp_path_factory, vllm_llama, tiny_tokenizer, vllm_python) -> dict[str, Any]:
    """What the script saw that ran beside vLLM, in its environment."""
    folder = tmp_path_factory.mktemp("colocated")
    vllm_llama().save_pretrained(folder / "policy")
    tiny_tokenizer.save_pretrained(folder / "policy")
    done = subprocess.run(
        [str(vllm_python), str(SCRIPT), str(folder)],
        env=environment_variables(),
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found
