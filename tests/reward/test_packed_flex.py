"""One kernel along all segments: the states of going segment by segment."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel, GPT2Config, LlamaConfig

from reward.errors import ModelError
from reward.packed import tree_states
from reward.packed_attention import Packing
from reward.packed_flex import flex
from reward.tree import Segment, share

SIZES = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
MODELS = {
    "llama": LlamaConfig(**SIZES, intermediate_size=32, num_key_value_heads=1),
    "gpt2": GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=2, n_positions=64),
}
PROMPT = [*range(5, 40)]
ROWS = [[*PROMPT, 1, 2, 3], [*PROMPT, 1, 4], PROMPT[:20], [50, 51], [*PROMPT[:20], 44, 45, 46]]


@pytest.mark.parametrize("name", MODELS)
def test_blocks_and_segments_give_the_same(name):
    torch.manual_seed(0)
    model = AutoModel.from_config(MODELS[name]).eval()
    tree = share(ROWS)
    ids, wanted = torch.tensor(tree.ids), torch.zeros(len(tree.ids), dtype=torch.bool)
    wanted[tree.ends()] = True
    with torch.no_grad():
        ours = tree_states(model, ids, tree.segments, wanted, in_blocks=True)
        theirs = tree_states(model, ids, tree.segments, wanted, in_blocks=False)
    assert ours.shape == (int(wanted.sum()), 32)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_mask_for_other_segments_is_seen():
    """The negative control."""
    torch.manual_seed(0)
    model = AutoModel.from_config(MODELS["llama"]).eval()
    other = share(ROWS, least=1 << 30)
    every = torch.ones(len(other.ids), dtype=torch.bool)
    with torch.no_grad():
        right = tree_states(model, torch.tensor(other.ids), other.segments, every, in_blocks=True)
        joined = [Segment(len(every))]
        wrong = tree_states(model, torch.tensor(other.ids), joined, every, in_blocks=True)
    assert (right - wrong).abs().max() > 1e-3


def test_what_a_block_mask_has_no_place_for_is_refused():
    packing = Packing(share(ROWS).segments, torch.ones(len(share(ROWS).ids)).bool(), in_blocks=True)
    states = torch.zeros(1, 2, 128, 16)
    for more in ({"dropout": 0.1}, {"position_bias": torch.zeros(1)}):
        with pytest.raises(ModelError, match=r"Fix: set model\.prefix_sharing=off"):
            flex(torch.nn.Identity(), states, states, states, packing.blocks, **more)
