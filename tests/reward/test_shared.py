"""Prefixes computed once: the states and gradients of rows that stand alone."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModel,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForSequenceClassification,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from reward import packed_attention, shared
from reward.packed import can_pack
from reward.score import pool_scores
from reward.shared import last_states, pooled_states, shared_states
from reward.tree import share

SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
PACKED = {
    "llama": lambda: LlamaConfig(**GROUPED),
    "qwen2": lambda: Qwen2Config(**GROUPED),
    "qwen3": lambda: Qwen3Config(**GROUPED, head_dim=8),
    "gpt2": lambda: GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=4, n_positions=64),
    "gpt_neox": lambda: GPTNeoXConfig(**SIZES),
}
PADDED = {
    "eager": lambda: LlamaConfig(**GROUPED, attn_implementation="eager"),
    "gemma2": lambda: Gemma2Config(**GROUPED, head_dim=8, sliding_window=8),
    "mistral": lambda: MistralConfig(**GROUPED, sliding_window=8),
}
CPU = torch.device("cpu")
PROMPTS = [[7, 8, 9, 10, 11], [7, 8, 9, 3], [20, 21]]
ROWS = [[*prompt, *answer] for prompt in PROMPTS for answer in ([1, 2, 3], [1, 2, 4, 5], [1, 2])]
ROWS += [ROWS[0], [20], [30, 31, 32, 33]]  # identical, a prefix of others, alone


def make(config) -> torch.nn.Module:
    """In float64 throughout: Llama's own norms would compute in float32."""
    torch.manual_seed(0)
    model = AutoModel.from_config(config)
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm") and "Gemma" not in type(module).__name__:
            parent = model.get_submodule(name.rpartition(".")[0])
            norm = torch.nn.RMSNorm(len(module.weight), eps=1e-6)
            setattr(parent, name.rpartition(".")[2], norm)
    return model.double().eval()


def alone(model, rows):
    """Every row by itself through the plain model."""
    return torch.stack(
        [model(input_ids=torch.tensor([row])).last_hidden_state[0, -1] for row in rows]
    )


def left_padded(model, rows):
    """One padded batch, the way most people write it."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    found = model(input_ids=ids, attention_mask=mask, position_ids=positions)
    return found.last_hidden_state[:, -1]


def gradients(model, states):
    model.zero_grad()
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(2))
    (states * weights).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", PACKED)
def test_states_and_gradients_are_those_of_padded_rows(name):
    model = make(PACKED[name]())
    assert can_pack(model, CPU)
    ours, theirs = last_states(model, ROWS, least=1), left_padded(model, ROWS)
    assert (ours - theirs).abs().max() < 1e-11
    assert (ours - alone(model, ROWS)).abs().max() < 1e-11
    first, second = gradients(model, ours), gradients(model, theirs)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert (value - second[key]).abs().max() < 1e-10 * (1 + value.abs().max()), key


LLAMA = make(PACKED["llama"]())
TRIES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=7)


@settings(deadline=None, max_examples=40)
@given(rows=TRIES, least=st.integers(1, 4), data=st.data())
def test_any_token_of_any_tree(rows, least, data):
    tree = share(rows, least)
    asked = [(index, at) for index, row in enumerate(rows) for at in range(len(row))]
    asked = data.draw(st.lists(st.sampled_from(asked), min_size=1, max_size=12))
    places = torch.tensor([tree.places(index)[at] for index, at in asked])
    with torch.no_grad():
        found = shared_states(LLAMA, tree, places)
        wanted = alone(LLAMA, [rows[index][: at + 1] for index, at in asked])
    assert (found - wanted).abs().max() < 1e-11


def test_a_mask_that_leaks_and_wrong_positions_are_seen(monkeypatch):
    wanted = alone(LLAMA, ROWS)

    def gap():
        return (last_states(LLAMA, ROWS, least=1) - wanted).abs().max()

    assert gap() < 1e-11
    own = packed_attention.seen_by
    monkeypatch.setattr(
        packed_attention, "seen_by", lambda at, end: torch.ones(len(at), end).bool()
    )
    assert gap() > 1e-3
    monkeypatch.setattr(packed_attention, "seen_by", own)
    begin = packed_attention.Packing.__init__

    def moved(self, segments, kept, **given):
        begin(self, segments, kept, **given)
        self.positions = self.positions + torch.arange(len(self.positions)) // 5

    monkeypatch.setattr(packed_attention.Packing, "__init__", moved)
    assert gap() > 1e-3


def test_shared_tokens_pass_the_dense_layers_once_and_only_ends_the_last(monkeypatch):
    model, seen = make(PACKED["llama"]()), []
    for layer in model.layers:
        layer.mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    last_states(model, ROWS, least=1)
    tree = share(ROWS, least=1)
    assert seen == [len(tree.ids), len(set(tree.ends()))]
    assert len(tree.ids) < sum(map(len, ROWS)) / 1.5


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_reward_model_reads_the_prompt_of_a_pair_once(side):
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig(**GROUPED, num_labels=1)).eval()
    prompt = list(range(10, 30))
    rows = [[*prompt, 1, 2, 3], [*prompt, 4], [7, 8]]
    seen = []
    model.model.layers[0].mlp.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].shape[1])
    )
    fill = [[0] * (23 - len(row)) for row in rows]
    both = [(f, row) if side == "left" else (row, f) for f, row in zip(fill, rows, strict=True)]
    ids = torch.tensor([a + b for a, b in both])
    scores = pool_scores(model, ids, (ids != 0).long())
    assert seen == [20 + 3 + 1 + 2]
    plain = [model(input_ids=torch.tensor([row])).logits[0, 0] for row in rows]
    assert (scores - torch.stack(plain)).abs().max() < 1e-5


@pytest.mark.parametrize("name", [*PACKED, *PADDED])
def test_batches_order_and_grouping_change_nothing(name):
    model = make((PACKED | PADDED)[name]())
    assert can_pack(model, CPU) == (name in PACKED)
    wanted = alone(model, ROWS)
    for seed, budget in enumerate((1, 9, 15, 10_000)):
        order = random.Random(seed).sample(range(len(ROWS)), len(ROWS))
        found = torch.zeros_like(wanted)
        batches = 0
        with torch.no_grad():
            for places, states in pooled_states(
                model, [ROWS[i] for i in order], batch_tokens=budget, least=2
            ):
                found[[order[place] for place in places]] = states
                batches += 1
        # eager attention takes its softmax in float32
        assert (found - wanted).abs().max() < (1e-5 if name == "eager" else 1e-11)
        assert (batches == 1) == (budget == 10_000)


def test_an_empty_row_is_refused_before_anything_runs(monkeypatch):
    monkeypatch.setattr(shared, "last_states", None)
    with pytest.raises(ValueError, match="row 1 has no tokens"):
        next(pooled_states(LLAMA, [[1], []]))
    assert list(pooled_states(LLAMA, [])) == []
