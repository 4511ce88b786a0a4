"""Prefix sharing: the states and gradients of the plain pass, whatever the batch looks like."""

from __future__ import annotations

import copy
import functools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    DiffLlamaConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Mamba2Config,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from align.engine.head import position_ids
from align.engine.prefix import cannot_share, share_prefixes, sharing_of
from align.errors import ModelError
from reward import packed_attention
from reward.layout import lay_out

SIZES = {
    "vocab_size": 90,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
WINDOW = {"head_dim": 8, "sliding_window": 40}
SHARED = {
    "llama": lambda: LlamaConfig(**GROUPED),
    "qwen2": lambda: Qwen2Config(**GROUPED),
    "qwen3": lambda: Qwen3Config(**GROUPED, head_dim=8),
    "mistral": lambda: MistralConfig(**GROUPED, sliding_window=40),
    "gemma": lambda: GemmaConfig(**GROUPED, head_dim=8),
    "gemma2": lambda: Gemma2Config(**GROUPED, **WINDOW),
    "gemma3": lambda: Gemma3TextConfig(**GROUPED, **WINDOW),
    "gpt2": lambda: GPT2Config(vocab_size=90, n_embd=16, n_layer=2, n_head=4, n_positions=64),
    "gpt_neox": lambda: GPTNeoXConfig(**SIZES),
}
PROMPT = [*range(7, 27)]
ROWS = [
    [*PROMPT, 1, 2, 3],
    [*PROMPT, 1, 2, 4, 5, 6, 7],
    PROMPT,  # a prefix of others
    [*PROMPT, 1, 2, 3],  # identical
    [30],
    [*PROMPT[:11], 40, 41],
    [50, 51, 52],
]


def make(config, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """Without dropout; norms in the dtype too, where a model's own would compute in float32."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, module in list(model.named_modules()):
        if type(module).__name__ in (
            "LlamaRMSNorm",
            "Qwen2RMSNorm",
            "Qwen3RMSNorm",
            "MistralRMSNorm",
        ):
            parent = model.get_submodule(name.rpartition(".")[0])
            norm = torch.nn.RMSNorm(len(module.weight), eps=1e-6)
            setattr(parent, name.rpartition(".")[2], norm)
        elif type(module).__name__.endswith("RMSNorm"):  # Gemma's multiply by 1 + weight
            module.forward = gemma_norm.__get__(module)
        elif isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    return model.to(dtype)


def gemma_norm(module, states: Tensor) -> Tensor:
    """Gemma's norm in the states' own precision."""
    scale = torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + 1e-6)
    return states * scale * (1 + module.weight)


def batch(rows, side: str = "right") -> tuple[Tensor, Tensor]:
    """Ids and mask, padded."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), 3)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        at = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[place, at], mask[place, at] = torch.tensor(row), 1
    return ids, mask


def measure(backbone, ids: Tensor, mask: Tensor, **more):
    """Real tokens' states, and every gradient of a weighted sum of them."""
    backbone.zero_grad()
    output = backbone(input_ids=ids, attention_mask=mask, use_cache=False, **more)
    states = output.last_hidden_state[mask.bool()]
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(1))
    (states * weights.to(states.dtype)).sum().backward()
    found = {n: p.grad.clone() for n, p in backbone.named_parameters() if p.grad is not None}
    return states.detach(), found


def gap(first, second) -> float:
    """The greatest difference of states and, relative to their size, of gradients."""
    assert first[1].keys() == second[1].keys()
    gaps = [((first[0] - second[0]).abs().max())]
    for name, value in first[1].items():
        other = second[1][name]
        gaps.append((value - other).abs().max() / (1 + other.abs().max()))
    return float(torch.stack(gaps).max())


def compare(backbone, ids: Tensor, mask: Tensor) -> float:
    """How far the shared pass is from the plain one."""
    plain = measure(backbone, ids, mask, position_ids=position_ids(mask))
    sharing, why = share_prefixes(backbone, "on")
    assert sharing is not None, why
    try:
        ours = measure(backbone, ids, mask)
        assert sharing.counts.shared == 1
    finally:
        sharing.remove()
    return gap(ours, plain)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", SHARED)
def test_states_and_gradients_are_the_plain_ones(name, side):
    model = make(SHARED[name]()).train()
    assert compare(model.base_model, *batch(ROWS, side)) < 1e-10
    assert compare(model.base_model, *batch(ROWS[:1], side)) < 1e-10


@functools.cache
def backbone_of(name: str) -> torch.nn.Module:
    """One of each architecture, for tests that leave it as it was."""
    return make(SHARED[name]()).base_model


@pytest.mark.parametrize("name", SHARED)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=12, deadline=None)
def test_any_tree_will_do(name, seed):
    draw = random.Random(seed)
    rows: list[list[int]] = []
    for _ in range(draw.randint(1, 7)):  # of 40 tokens at most: no longer than a window
        start = draw.choice(rows)[: draw.randint(0, 20)] if rows and draw.random() < 0.8 else []
        rows.append(start + [draw.randrange(4, 90) for _ in range(draw.randint(0, 20))] or [5])
    ids, mask = batch(rows, draw.choice(["left", "right"]))
    if draw.random() < 0.3:  # a row of padding alone
        ids, mask = torch.cat([ids, ids[:1]]), torch.cat([mask, torch.zeros_like(mask[:1])])
    assert compare(backbone_of(name), ids, mask) < 1e-10
    assert len(lay_out(ids, mask).tree.ids) <= int(mask.sum())


def test_in_float32_it_is_within_rounding():
    model = make(LlamaConfig(**GROUPED | {"initializer_range": 0.05}), torch.float32)
    ids, mask = batch(ROWS)
    plain = measure(model.model, ids, mask, position_ids=position_ids(mask))[0]
    share_prefixes(model.model, "on")
    assert (measure(model.model, ids, mask)[0] - plain).abs().max() < 1e-5


@pytest.mark.parametrize("fault", [None, "a leaky mask", "wrong positions"])
def test_in_bfloat16_it_is_as_near_to_float32_as_the_plain_pass(fault, faults):
    """Within twice the plain pass's own noise, states and gradients; the faults are not."""
    model = make(LlamaConfig(**GROUPED), torch.bfloat16).model
    ids, mask = batch(ROWS)
    places = position_ids(mask)
    exact = measure(copy.deepcopy(model).float(), ids, mask, position_ids=places)
    plain = distances(measure(model, ids, mask, position_ids=places), exact)
    assert 0 < max(plain.values()) < 0.1
    share_prefixes(model, "on")
    if fault:
        faults[fault]()
    ours = distances(measure(model, ids, mask), exact)
    assert sharing_of(model).counts.shared == 1
    for name, noise in plain.items():
        assert (ours[name] < 2 * noise) is (fault is None), name


def distances(found, exact) -> dict[str, float]:
    """Of states and of weights' gradients, relative to their length."""
    names = (
        "embed_tokens.weight",
        "layers.0.self_attn.k_proj.weight",
        "layers.1.mlp.up_proj.weight",
    )
    pairs = {"states": (found[0], exact[0])} | {n: (found[1][n], exact[1][n]) for n in names}
    return {n: float((a.float() - b).norm() / b.norm()) for n, (a, b) in pairs.items()}


@pytest.fixture
def faults(monkeypatch):
    """What puts a bug into the shared pass, by name."""
    seen_by, begin = packed_attention.seen_by, packed_attention.Packing.__init__

    def leaky(at, end):
        return seen_by(at, end) | torch.ones(len(at), end).bool()

    def moved(self, *args, **given):
        begin(self, *args, **given)
        self.positions = self.positions + (self.positions > 20).long()

    return {
        "a leaky mask": lambda: monkeypatch.setattr(packed_attention, "seen_by", leaky),
        "wrong positions": lambda: monkeypatch.setattr(packed_attention.Packing, "__init__", moved),
    }


@pytest.mark.parametrize("fault", ["a leaky mask", "wrong positions"])
def test_a_leaky_mask_and_wrong_positions_are_seen(fault, faults):
    """The negative controls."""
    assert compare(backbone_of("llama"), *batch(ROWS)) < 1e-10  # tried and found right
    faults[fault]()
    assert compare(backbone_of("llama"), *batch(ROWS)) > 1e-3


def test_rows_longer_than_a_window_keep_the_plain_pass_and_that_is_said_once(caplog):
    model = make(SHARED["mistral"]())
    sharing, _ = share_prefixes(model.model, "on")
    for length, shared in ((40, True), (41, False), (42, False)):
        ids, mask = batch([[*range(4, 4 + length)], [*range(4, 20)]])
        output = model.model(input_ids=ids, attention_mask=mask, use_cache=False)
        assert output.last_hidden_state.shape == (2, length, 16)
        assert (sharing.counts.shared == 1) is shared
        sharing.counts.shared = 0
        if shared:
            assert not caplog.messages
    (said,) = caplog.messages
    assert "MistralModel keeps its plain pass for a batch whose longest row has 41 tokens" in said
    assert "looks back 40 tokens only" in said


@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_that_are_computed_again_attend_alike(reentrant):
    ids, mask = batch(ROWS)
    model = make(LlamaConfig(**GROUPED)).train()
    plain = measure(model.model, ids, mask)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    share_prefixes(model.model, "on")
    assert gap(measure(model.model, ids, mask), plain) < 1e-10
    assert sharing_of(model.model).counts.shared == 1
    sharing_of(model.model).remove()
    assert gap(measure(model.model, ids, mask), plain) < 1e-10  # its own pass is sdpa's still


def test_adapters_learn_alike():
    ids, mask = batch(ROWS)
    base = make(LlamaConfig(**GROUPED))
    settings_ = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(base, settings_).double()
    assert compare(base.model, ids, mask) < 1e-10
    assert any("lora_A" in n for n, p in base.model.named_parameters() if p.grad is not None)


def test_documents_in_one_row_stay_apart():
    first, second = [*range(5, 20)], [*range(5, 17), 40]
    ids = torch.tensor([first + second])
    positions = torch.tensor([[*range(15), *range(13)]])
    model = make(LlamaConfig(**GROUPED))
    plain = model.model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
    sharing, _ = share_prefixes(model.model, "on")
    ours = model.model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
    assert sharing.counts.computed == 16
    assert (ours - plain).abs().max() < 1e-11


def test_what_asks_for_more_than_last_states_gets_the_plain_pass():
    ids, mask = batch(ROWS)
    model = make(LlamaConfig(**GROUPED)).train()
    sharing, _ = share_prefixes(model.model, "on")
    assert model.model(ids, mask, use_cache=True).past_key_values is not None
    hidden = model.model(ids, mask, output_hidden_states=True).hidden_states
    assert len(hidden) == 3
    model.model(ids, mask, position_ids=position_ids(mask) + 1, use_cache=False)
    model.model(inputs_embeds=model.model.embed_tokens(ids), attention_mask=mask, use_cache=False)
    assert sharing.counts.shared == 0
    again = model.eval().generate(ids[:1, :5], max_new_tokens=3, do_sample=False)
    sharing.remove()
    assert torch.equal(again, model.generate(ids[:1, :5], max_new_tokens=3, do_sample=False))


def test_dropout_keeps_the_plain_pass():
    model = make(LlamaConfig(**GROUPED, attention_dropout=0.0)).train()
    sharing, _ = share_prefixes(model.model, "on")
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    ids, mask = batch(ROWS)
    model.model(ids, mask, use_cache=False)
    assert sharing.counts.shared == 0
    assert "dropout" in cannot_share(model.model)
    model.eval().model(ids, mask, use_cache=False)
    assert sharing.counts.shared == 1


def test_others_are_left_plain_and_named():
    mamba = Mamba2Config(
        vocab_size=90, hidden_size=16, num_heads=4, head_dim=8, n_groups=1, num_hidden_layers=1
    )
    for config, attention, why in (
        (mamba, None, "common one"),
        (BertConfig(**SIZES), "sdpa", "other states"),
        (DiffLlamaConfig(**GROUPED), "sdpa", "other states"),
        (LlamaConfig(**GROUPED), "eager", "eager, not sdpa"),
    ):
        made = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        backbone = made.eval().base_model
        sharing, reason = share_prefixes(backbone, "auto")
        assert sharing is None
        assert why in reason
        with pytest.raises(ModelError, match=r"prefix_sharing=on.*Fix: set"):
            share_prefixes(backbone, "on")


def test_a_copy_has_its_own():
    model = make(LlamaConfig(**GROUPED))
    sharing, _ = share_prefixes(model.model, "on")
    other = copy.deepcopy(model)
    ids, mask = batch(ROWS)
    other.model(ids, mask, use_cache=False)
    assert sharing.counts.passes == 0
    assert sharing_of(other.model).counts.shared == 1
    assert sharing_of(other.model).backbone is other.model
