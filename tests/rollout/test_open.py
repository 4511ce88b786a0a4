"""From a `rollout` section to a sampler, and everything that is wrong with one, at once."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from align.config.sections import PeftSection, RolloutSection
from align.errors import ConfigError, MissingDependencyError
from align.rollout import open as module
from align.rollout.open import check_rollout, open_sampler
from align.rollout.transformers import TransformersSampler
from align.rollout.vllm import logprobs_mode, memory_options, resolve_dtype, truncation_problem
from align.types import SyncedSampler


def problems(section, **changes):
    return {p.where: str(p) for p in check_rollout(RolloutSection(**section), **changes)}


@pytest.fixture
def with_vllm(monkeypatch):
    """As where vLLM is installed."""
    monkeypatch.setattr(module, "vllm_here", lambda: True)
    monkeypatch.setattr(module, "find_python", lambda named: named)


def test_transformers_is_the_default(tiny_llama, tiny_tokenizer, tmp_path):
    section = RolloutSection(max_new_tokens=5, temperature=0.5, batch_size=3)
    assert check_rollout(section) == []
    sampler = open_sampler(section, tiny_llama(), tiny_tokenizer, tmp_path)
    assert isinstance(sampler, TransformersSampler)
    assert not isinstance(sampler, SyncedSampler)
    assert (sampler.max_new_tokens, sampler.temperature, sampler.batch_size) == (5, 0.5, 3)
    assert not list(tmp_path.iterdir())


def test_settings_of_vllm_without_vllm_are_refused():
    found = problems({"vllm": {"url": "http://x:1"}})
    assert "rollout.engine is transformers (url)" in found["rollout.vllm"]


def test_a_missing_vllm_is_a_problem_and_an_error(
    tiny_llama, tiny_tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if torch.cuda.is_available() or module.vllm_here():
        monkeypatch.setattr(module, "vllm_here", lambda: False)
        monkeypatch.setattr("align.rollout.vllm_environment.vllm_here", lambda: False)
        monkeypatch.setattr("align.rollout.vllm_colocated.vllm_here", lambda: False)
    for engine in ("vllm", "vllm-server"):
        assert "make vllm" in problems({"engine": engine})["rollout.engine"]
        with pytest.raises(MissingDependencyError, match="make vllm"):
            open_sampler(RolloutSection(engine=engine), tiny_llama(), tiny_tokenizer, tmp_path)
    remote = {"engine": "vllm-server", "vllm": {"url": "http://host:8000"}}
    assert problems(remote) == {}  # vLLM is there, not here


def test_everything_wrong_is_said_at_once(with_vllm, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    section = {
        "engine": "vllm-server",
        "max_new_tokens": 64,
        "vllm": {
            "url": "localhost",
            "sync": "nccl",
            "max_model_len": 64,
            "sleep": True,
            "kv_cache_gib": 1,
        },
    }
    peft = PeftSection(method="prompt_tuning")
    found = problems(section, peft=peft, quantization="4bit")
    assert set(found) == {
        "peft.method",
        "model.quantization",
        "rollout.max_new_tokens",
        "rollout.vllm.url",
        "rollout.vllm.kv_cache_gib",
        "rollout.vllm.sleep",
        "rollout.vllm.sync",
    }
    assert all("Fix: " in text for text in found.values())
    colocated = {"engine": "vllm", "vllm": {"url": "http://x:1", "sync": "lora", "sleep": True}}
    assert set(problems(colocated)) == {
        "rollout.vllm.url",
        "rollout.vllm.sync",
        "rollout.vllm.sleep",
    }


def test_adapters_that_can_and_cannot_travel(with_vllm):
    section = {"engine": "vllm-server", "vllm": {"sync": "lora"}}
    assert "trains none" in problems(section)["rollout.vllm.sync"]
    assert problems(section, peft=PeftSection(), quantization="4bit") == {}
    dora = PeftSection(kwargs={"use_dora": True})
    assert set(problems(section, peft=dora)) == {"peft.kwargs.use_dora"}
    assert problems({"engine": "vllm-server"}, peft=dora) == {}  # merged


def test_truncation_is_only_scored_at_temperature_one():
    assert truncation_problem(1.0, 0.9, 5, 0.1, 3) is None
    assert truncation_problem(0.7, 1.0, 0) is None
    for key, values in {
        "top_p": (0.9, 0, 0.0, 0),
        "top_k": (1.0, 5, 0.0, 0),
        "min_p": (1.0, 0, 0.1, 0),
        "min_new_tokens": (1.0, 0, 0.0, 2),
    }.items():
        assert truncation_problem(0.7, *values).where == f"rollout.{key}"
    assert [logprobs_mode(t).split("_")[0] for t in (0, 0.7, 1.0)] == ["raw", "processed", "raw"]


def test_defaults_follow_the_device(tiny_llama, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_dtype("auto", tiny_llama()) == "float32"
    assert memory_options(None) == {"block_size": 32, "kv_cache_memory_bytes": 2**30}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_dtype("auto", tiny_llama()) == "bfloat16"
    assert resolve_dtype("auto", tiny_llama().half()) == "float16"
    assert resolve_dtype("float32", tiny_llama().half()) == "float32"
    assert memory_options(None) == {}
    assert memory_options(0.5) == {"kv_cache_memory_bytes": 2**29}


def test_odd_values_are_refused_by_the_section():
    for wrong in ({"timeout": 0}, {"dtype": "int8"}, {"gpu_memory_utilization": 2}, {"uri": "x"}):
        with pytest.raises(ValidationError):
            RolloutSection(vllm=wrong)


def test_a_sampler_refuses_what_it_cannot_score(tiny_llama, tiny_tokenizer, tmp_path, with_vllm):
    section = RolloutSection(engine="vllm", temperature=0.7, top_k=5)
    with pytest.raises(ConfigError, match="top_k"):
        open_sampler(section, tiny_llama(), tiny_tokenizer, tmp_path)
