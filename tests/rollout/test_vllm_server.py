"""vLLM on a real server: parity after every synchronisation, then what servers do to people."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
from peft import LoraConfig, get_peft_model

from align.engine.head import policy_logprobs
from align.errors import ConfigError, ModelError, SamplerError
from align.rollout.transformers import TransformersSampler
from align.rollout.vllm_remote import VLLMServerSampler

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]  # the first run installs vLLM

PROMPTS = ["Where is", "Thank you, that", "I", "The quick brown fox jumps over the lazy"]


@pytest.fixture
def make(vllm_server, tiny_tokenizer, tmp_path):
    def sampler(policy, **changes) -> VLLMServerSampler:
        settings = {"max_new_tokens": 24, "temperature": 0.6, "timeout": 120.0} | changes
        return VLLMServerSampler(policy, tiny_tokenizer, tmp_path, server=vllm_server, **settings)

    return sampler


@pytest.fixture
def push():
    """Moves every trainable weight in place."""

    def move(policy, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in policy.parameters():
                if weight.requires_grad:
                    weight += 0.03 * torch.randn(weight.shape, generator=generator)

    return move


def assert_greedy_agrees(sampler, policy, tokenizer) -> None:
    temperature, sampler.temperature = sampler.temperature, 0.0
    ours = sampler(PROMPTS, 2)
    theirs = TransformersSampler(policy, tokenizer, max_new_tokens=24, temperature=0)(PROMPTS, 2)
    sampler.temperature = temperature
    assert ours.completion_ids.tolist() == theirs.completion_ids.tolist()
    assert (ours.logprobs - theirs.logprobs).abs().max() < 1e-3
    assert ours.finished.tolist() == theirs.finished.tolist()
    assert ours.mask.tolist() == theirs.mask.tolist()


def test_checkpoints_arrive_and_draws_agree(make, vllm_llama, tiny_tokenizer, push, tmp_path):
    policy = vllm_llama()
    sampler = make(policy)
    for version in (1, 2, 3):
        push(policy, version)
        metrics = sampler.sync(policy, version)
        assert metrics["rollout/probe_gap"] < 1e-4
        assert_greedy_agrees(sampler, policy, tiny_tokenizer)
        rollout = sampler(PROMPTS * 3, 3, name=list("abcdefghijkl"))
        assert rollout.version == version
        with torch.no_grad():
            gap = (policy_logprobs(policy, rollout) - rollout.logprobs).abs().max()
        assert gap < 1e-3
    assert len(list(tmp_path.glob("align-*"))) == 1  # older weights are gone
    assert rollout.columns["name"][:4] == ["a", "a", "a", "b"]
    assert rollout.prompts[:4] == ["Where is"] * 3 + ["Thank you, that"]
    assert 0 < rollout.finished.float().mean() < 1
    full = rollout.mask.sum(1) == 24
    assert (full | rollout.finished).all()
    assert len(set(rollout.completions)) > 30
    rollout.temperature = 0.66  # the negative control
    with torch.no_grad():
        assert (policy_logprobs(policy, rollout) - rollout.logprobs).abs().max() > 1e-2


def test_seeds_repeat_draws(make, vllm_llama):
    sampler = make(vllm_llama())
    sampler.seed = 4
    assert sampler(PROMPTS, 2).completions == sampler(PROMPTS, 2).completions
    sampler.seed = None
    torch.manual_seed(5)
    first, second = sampler(PROMPTS).completions, sampler(PROMPTS).completions
    assert first != second
    torch.manual_seed(5)
    assert sampler(PROMPTS).completions == first


def test_limits_per_prompt_and_what_is_too_long(make, vllm_llama):
    sampler = make(vllm_llama())
    draws = sampler.draw([[5], [6], [7]], 2, [3, 1, 5])
    assert all(len(d.tokens) <= room for d, room in zip(draws, [3, 3, 1, 1, 5, 5], strict=True))
    assert len(draws[2].tokens) == 1
    with pytest.raises(ModelError, match=r"prompt 1 has 250 tokens.*274.*context of 256"):
        sampler.draw([[5], [5] * 250])
    with pytest.raises(ModelError, match="no prompts"):
        sampler([])
    with pytest.raises(ConfigError, match="top_p"):
        make(vllm_llama(), top_p=0.9)


def test_adapters_are_loaded_under_new_names(make, vllm_llama, tiny_tokenizer, push, tmp_path):
    make(vllm_llama())  # the server has the base's weights again
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    policy = get_peft_model(vllm_llama(), config)
    sampler = make(policy, sync="lora")
    for version in (1, 2):
        push(policy, version)
        sampler.sync(policy, version)
        assert_greedy_agrees(sampler, policy, tiny_tokenizer)
    served = [model["id"] for model in sampler.client.models()]
    assert len(served) == 2  # the base, and one adapter
    assert served[1] == sampler.current
    # Merged into a checkpoint the same policy draws the same, and its base is as it was.
    before = {name: weight.clone() for name, weight in policy.state_dict().items()}
    merged = make(policy)
    assert_greedy_agrees(merged, policy, tiny_tokenizer)
    assert all(torch.equal(weight, before[n]) for n, weight in policy.state_dict().items())
    # The adapter's base is gone from the server now: that is noticed at the next synchronisation.
    with pytest.raises(SamplerError, match="did not arrive"):
        sampler.sync(policy, 3)


def test_a_policy_without_an_adapter_cannot_go_by_adapter(make, vllm_llama):
    with pytest.raises(ModelError, match="the policy has none"):
        make(vllm_llama(), sync="lora")


def test_weights_that_stay_behind_are_found(make, vllm_llama, push, monkeypatch):
    policy = vllm_llama()
    sampler = make(policy)
    post = type(sampler.client).post

    def lossy(self, path, body=None):
        return {} if path == "/collective_rpc" else post(self, path, body)

    push(policy, 1)
    with monkeypatch.context() as patch:
        patch.setattr(type(sampler.client), "post", lossy)
        with pytest.raises(SamplerError, match=r"version 1 did not arrive.*policy \[.*engine \["):
            sampler.sync(policy, 1)
        with pytest.raises(SamplerError, match="synchronise before drawing"):
            sampler(PROMPTS)  # nobody draws from what did not arrive
    with torch.no_grad():  # an update a thousand times smaller than the tolerance allows
        sampler.sync(policy, 2)
        for weight in policy.parameters():
            weight += 1e-3 * torch.randn(weight.shape) * weight.abs()
    with monkeypatch.context() as patch:
        patch.setattr(type(sampler.client), "post", lossy)
        with pytest.raises(SamplerError, match="did not arrive"):
            sampler.sync(policy, 3)


def test_the_servers_own_words_are_in_the_error(make, vllm_llama):
    sampler = make(vllm_llama())
    sampler.model = "nobody"
    with pytest.raises(SamplerError, match=r"refused /v1/completions \(404\).*`nobody` does not"):
        sampler(PROMPTS)


def test_another_runs_weights_are_noticed(make, vllm_llama):
    first = make(vllm_llama())
    make(vllm_llama())
    with pytest.raises(SamplerError, match="another run uses it"):
        first(PROMPTS)


def test_the_server_offers_what_nccl_needs(make, vllm_llama):
    paths = make(vllm_llama()).client.get("/openapi.json")["paths"]
    needed = ["init_weight_transfer_engine", "start_weight_update", "update_weights"]
    needed += ["finish_weight_update", "get_world_size", "shutdown_weight_transfer_engine"]
    assert {f"/{name}" for name in needed} <= set(paths)


def test_hung_killed_and_restarted(make, vllm_llama, tiny_tokenizer, vllm_server):
    policy = vllm_llama(5)
    sampler = make(policy)
    group = vllm_server.process.pid
    os.killpg(group, signal.SIGSTOP)
    try:
        sampler.client.timeout = 3.0
        start = time.monotonic()
        with pytest.raises(
            SamplerError, match=r"did not answer /v1/completions within 3 s.*Its log"
        ):
            sampler(PROMPTS)
        with pytest.raises(SamplerError, match="within 3 s"):
            sampler.sync(policy, 1)
        assert time.monotonic() - start < 60
    finally:
        os.killpg(group, signal.SIGCONT)
    sampler.client.timeout = 120.0
    sampler.sync(policy, 1)  # it lives again
    assert_greedy_agrees(sampler, policy, tiny_tokenizer)

    os.killpg(group, signal.SIGKILL)
    vllm_server.process.wait(60)
    start = time.monotonic()
    with pytest.raises(SamplerError, match=r"cannot be reached.*not running"):
        sampler(PROMPTS)
    with pytest.raises(SamplerError, match="cannot be reached"):
        sampler.sync(policy, 2)
    assert time.monotonic() - start < 60

    vllm_server.restart()
    with pytest.raises(SamplerError, match="synchronise before drawing"):
        sampler(PROMPTS)
    sampler.sync(policy, 2)
    assert_greedy_agrees(sampler, policy, tiny_tokenizer)
    sampler.current = "align-before-a-restart"  # as after one that nobody told the sampler of
    with pytest.raises(SamplerError, match="it was restarted"):
        sampler(PROMPTS)
