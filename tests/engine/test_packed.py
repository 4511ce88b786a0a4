"""The packed forward pass: the padded one's values and gradients, without its padding."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)

from align.engine import head, packed
from align.engine.head import backbone_states, completion_logprobs, states_before
from align.engine.packed import can_pack, packed_states

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
PACKED = {
    "llama": lambda: LlamaConfig(**GROUPED),
    "qwen3": lambda: Qwen3Config(**GROUPED, head_dim=8),
    "gpt2": lambda: GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "gpt_neox": lambda: GPTNeoXConfig(**SIZES),
}
PADDED = {  # attention within a window is not ours to cut
    "gemma2": lambda: Gemma2Config(**GROUPED, head_dim=8),
    "mistral": lambda: MistralConfig(**GROUPED, sliding_window=8),
}
CPU = torch.device("cpu")


def make(config) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).double().eval()


def measure(model, rollout, monkeypatch, *, pack: bool):
    """Completion states with or without packing, and the gradients of a weighted sum of them."""
    if not pack:
        monkeypatch.setattr(head, "can_pack", lambda *args: False)
    model.zero_grad()
    found = states_before(
        model.base_model, rollout.input_ids, rollout.attention_mask, rollout.mask.bool()
    )
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    (found * weights).sum().backward()
    monkeypatch.undo()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return found.detach(), gradients


@pytest.mark.parametrize("name", PACKED)
def test_states_and_gradients_equal_the_padded_ones(name, make_rollout, monkeypatch):
    model, rollout = make(PACKED[name]()), make_rollout()
    assert can_pack(model.base_model, CPU)
    ours, first = measure(model, rollout, monkeypatch, pack=True)
    theirs, second = measure(model, rollout, monkeypatch, pack=False)
    assert ours.shape == (int(rollout.mask.sum()), 32)
    assert (ours - theirs).abs().max() < 1e-6  # norms compute in float32
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert (value - second[key]).abs().max() < 1e-5 * (1 + value.abs().max()), key


@pytest.mark.parametrize("name", PADDED)
def test_other_attention_keeps_the_padded_pass(name, make_rollout):
    model, rollout = make(PADDED[name]()), make_rollout(prompts=(12, 3), lengths=(5, 9))
    assert not can_pack(model.base_model, CPU)
    kept = rollout.mask.bool()
    found = states_before(model.base_model, rollout.input_ids, rollout.attention_mask, kept)
    whole = backbone_states(model.base_model, rollout.input_ids, rollout.attention_mask)
    assert torch.equal(found, whole[:, -10:-1][kept])


def test_only_what_gives_the_same_result_is_packed(tiny_llama):
    model = tiny_llama().train()
    assert can_pack(model.model, CPU)
    assert not can_pack(model.model, torch.device("cuda"))
    assert not can_pack(torch.nn.Linear(2, 2), CPU)
    model.gradient_checkpointing_enable()
    assert not can_pack(model.model, CPU)
    assert can_pack(model.eval().model, CPU)
    eager = AutoModelForCausalLM.from_config(model.config, attn_implementation="eager")
    assert not can_pack(eager.model, CPU)


def test_sequences_do_not_see_each_other(make_rollout):
    model = make(PACKED["llama"]()).model
    ids = torch.randint(5, 250, (11,))
    other = ids.clone()
    other[:4] = (other[:4] + 7) % 250
    first, second = (packed_states(model, tokens, [4, 7]) for tokens in (ids, other))
    assert torch.equal(first[4:], second[4:])
    assert (first[:4] - second[:4]).abs().max() > 1e-3
    joined = packed_states(model, ids, [11])
    assert (joined[4:] - first[4:]).abs().max() > 1e-3


def test_dense_layers_see_real_tokens_only(make_rollout):
    model, rollout, seen = make(PACKED["llama"]()), make_rollout(), []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    completion_logprobs(model, rollout.input_ids, rollout.attention_mask, rollout.mask)
    assert seen == [(1, int(rollout.attention_mask.sum()), 32)]


def test_an_environments_tokens_are_read_and_not_scored(make_rollout, monkeypatch):
    model, rollout = make(PACKED["llama"]()), make_rollout()
    rollout.real = rollout.mask.clone()
    rollout.mask[1, 2:4] = 0
    ours, _ = measure(model, rollout, monkeypatch, pack=True)
    theirs, _ = measure(model, rollout, monkeypatch, pack=False)
    assert len(ours) == int(rollout.real.sum()) - 2
    assert (ours - theirs).abs().max() < 1e-6


def test_the_models_own_attention_is_back_afterwards(make_rollout, monkeypatch):
    model = make(PACKED["llama"]())
    config = model.model.config
    packed_states(model.model, torch.arange(5, 9), [4])
    assert config._attn_implementation == "sdpa"

    def fail(*args, **kwargs):
        raise RuntimeError

    monkeypatch.setattr(packed, "sdpa_attention_forward", fail)
    with pytest.raises(RuntimeError):
        packed_states(model.model, torch.arange(5, 9), [4])
    assert config._attn_implementation == "sdpa"


def test_adapters_are_seen(tiny_llama, make_rollout):
    base, rollout = tiny_llama(), make_rollout()
    args = (rollout.input_ids, rollout.attention_mask, rollout.mask)
    plain = completion_logprobs(base, *args)[0]
    adapted = get_peft_model(
        base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    assert (completion_logprobs(adapted, *args)[0] - plain).abs().max() > 1e-3
