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

from align.engine import head
from align.engine.head import backbone_states, completion_logprobs, states_before
from align.errors import ModelError
from reward import packed_attention
from reward.packed import can_pack, packed_states

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
    "gemma2": lambda: Gemma2Config(**GROUPED, head_dim=8, sliding_window=8),
    "mistral": lambda: MistralConfig(**GROUPED, sliding_window=8),
}
CPU = torch.device("cpu")


def make(config) -> torch.nn.Module:
    """In float64 throughout: Llama's own norms would compute in float32."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            parent = model.get_submodule(name.rpartition(".")[0])
            norm = torch.nn.RMSNorm(len(module.weight), eps=1e-6)
            setattr(parent, name.rpartition(".")[2], norm)
    return model.double().eval()


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
    assert (ours - theirs).abs().max() < 1e-11
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert (value - second[key]).abs().max() < 1e-10 * (1 + value.abs().max()), key


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
    every = torch.ones(11, dtype=torch.bool)
    first, second = (packed_states(model, tokens, [4, 7], every) for tokens in (ids, other))
    assert torch.equal(first[4:], second[4:])
    assert (first[:4] - second[:4]).abs().max() > 1e-3
    joined = packed_states(model, ids, [11], every)
    assert (joined[4:] - first[4:]).abs().max() > 1e-3


def test_dense_layers_see_real_tokens_and_the_last_one_only_those_asked_for(make_rollout):
    model, rollout, seen = make(PACKED["llama"]()), make_rollout(), []
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    completion_logprobs(model, rollout.input_ids, rollout.attention_mask, rollout.mask)
    assert seen == [int(rollout.attention_mask.sum()), int(rollout.mask.sum())]


def test_any_tokens_can_be_asked_for():
    model, ids = make(PACKED["llama"]()).model, torch.randint(5, 250, (15,))
    lengths, every = [4, 7, 1, 3], torch.ones(15, dtype=torch.bool)
    whole = packed_states(model, ids, lengths, every)
    for places in ([0], [3, 4, 9, 14], [11], [5, 7, 8, 12], []):
        wanted = torch.zeros(15, dtype=torch.bool)
        wanted[places] = True
        found = packed_states(model, ids, lengths, wanted)
        assert found.shape == (len(places), 32)
        assert torch.allclose(found, whole[wanted], atol=1e-12)


def test_an_environments_tokens_are_read_and_not_scored(make_rollout, monkeypatch):
    model, rollout = make(PACKED["llama"]()), make_rollout()
    rollout.real = rollout.mask.clone()
    rollout.mask[1, 2:4] = 0
    ours, _ = measure(model, rollout, monkeypatch, pack=True)
    theirs, _ = measure(model, rollout, monkeypatch, pack=False)
    assert len(ours) == int(rollout.real.sum()) - 2
    assert (ours - theirs).abs().max() < 1e-11


def test_the_model_is_as_before_afterwards(make_rollout, monkeypatch):
    model = make(PACKED["llama"]()).model
    ids, every = torch.arange(5, 9), torch.ones(4, dtype=torch.bool)

    def untouched():
        last = model.layers[-1]
        return model.config._attn_implementation == "sdpa" and "forward" not in vars(last)

    packed_states(model, ids, [4], every)
    assert untouched()

    def fail(*args, **kwargs):
        raise RuntimeError

    monkeypatch.setattr(packed_attention, "sdpa_attention_forward", fail)
    with pytest.raises(RuntimeError):
        packed_states(model, ids, [4], every)
    assert untouched()
    hooked = model.layers[-1].forward
    model.layers[-1].forward = hooked
    with pytest.raises(RuntimeError):
        packed_states(model, ids, [4], every)
    assert vars(model.layers[-1])["forward"] is hooked


def test_a_backbone_with_more_after_its_last_layer_is_refused():
    model = make(PACKED["llama"]()).model
    model.norm.register_forward_hook(lambda _, args, out: torch.cat([out, out], dim=1))
    with pytest.raises(ModelError, match="LlamaModel gave 4 states for 2 tokens"):
        packed_states(model, torch.arange(5, 9), [4], torch.tensor([True, False, True, False]))


def test_adapters_are_seen(tiny_llama, make_rollout):
    base, rollout = tiny_llama(), make_rollout()
    args = (rollout.input_ids, rollout.attention_mask, rollout.mask)
    plain = completion_logprobs(base, *args)[0]
    adapted = get_peft_model(
        base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    assert (completion_logprobs(adapted, *args)[0] - plain).abs().max() > 1e-3
