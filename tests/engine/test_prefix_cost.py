"""The cost model: measured numbers that are what they should be, and the choices that follow."""

from __future__ import annotations

import pytest
import torch

from align.engine.prefix import share_prefixes
from align.engine.prefix_cost import Costs, attended, counted_costs, measure_costs
from reward.layout import lay_out
from reward.packed_flex import block_mask, filled_length, last_seen
from reward.tree import share

IDS = torch.tensor([[*range(10, 30), 1, 2, 3], [*range(10, 30), 4, 5, 0], [40, 41, 42] + [0] * 20])
MASK = (IDS != 0).long()


def test_a_layout_costs_what_the_formula_says():
    layout = lay_out(IDS, MASK)
    assert (layout.padded, layout.real, layout.unique) == (69, 48, 28)
    costs = Costs(fixed=1.0, token=0.1, pair=0.01, segment=0.5, laying=0.25)
    assert attended(layout.tree.segments) == 23 * 24 / 2 + 2 * 22 + 3 * 4 / 2
    expected = 1.0 + 0.1 * 28 + 0.01 * attended(layout.tree.segments) + 0.5 * 3 + 0.25
    assert costs.shared(layout) == pytest.approx(expected)
    assert costs.plain(3, 23, padded=True) == pytest.approx(1.0 + 6.9 + 0.01 * 3 * 23 * 23)
    assert costs.plain(3, 23, padded=False) == pytest.approx(1.0 + 6.9 + 0.01 * 3 * 23 * 12)
    assert costs.worth(layout, padded=True)
    assert not Costs(1.0, 0.1, 0.01, 6.0).worth(layout, padded=True)


def test_costs_are_found_again_from_the_times_of_passes(tiny_llama, monkeypatch):
    """A clock that follows the formula gives its numbers back."""
    true, time = Costs(fixed=2e-3, token=3e-5, pair=1e-8, segment=4e-4, laying=1e-3), [0.0]
    model = tiny_llama(max_position_embeddings=512).model
    forward = model.forward

    def timed(input_ids, position_ids=None, packing=None, **given):
        rows, width = input_ids.shape
        if packing is None:
            time[0] += true.plain(rows, width, padded=False)
        else:
            segments = packing.segments
            time[0] += true.fixed + true.token * width + true.pair * attended(segments)
            time[0] += true.segment * len(segments) + true.laying
        return forward(input_ids, position_ids=position_ids, packing=packing, **given)

    monkeypatch.setattr(model, "forward", timed)
    found = measure_costs(model, lambda: time[0])
    for name in ("fixed", "token", "pair", "segment"):
        assert getattr(found, name) == pytest.approx(getattr(true, name), rel=1e-3), name
    assert found.laying == pytest.approx(true.laying + true.segment, rel=1e-3)  # of its one segment


def test_measuring_leaves_the_model_and_the_random_numbers_alone(tiny_llama):
    model = tiny_llama().train().model
    before, state = [p.clone() for p in model.parameters()], torch.random.get_rng_state()
    costs = measure_costs(model)
    assert min(costs.token, costs.fixed + costs.laying) > 0
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.equal(old, new)


def test_auto_shares_what_the_costs_speak_for(tiny_llama):
    model = tiny_llama(max_position_embeddings=512).model
    for segment, shared in ((0.0, 1), (1e9, 0)):
        sharing, _ = share_prefixes(model, "auto", Costs(0.0, 1.0, 0.0, segment))
        model(input_ids=IDS, attention_mask=MASK, use_cache=False)
        assert sharing.counts.shared == shared
        assert sharing.counts.computed == (28 if shared else 69)


def test_counted_costs_are_the_same_every_time_and_speak_for_what_saves_much(tiny_llama):
    wide = {"hidden_size": 256, "intermediate_size": 1024, "max_position_embeddings": 1024}
    model = tiny_llama(**wide).model
    costs = counted_costs(model)
    assert costs == counted_costs(model) == counted_costs(tiny_llama(seed=3, **wide).model)
    draw = torch.Generator().manual_seed(0)
    prompt = torch.randint(5, 200, (1, 400), generator=draw).expand(8, -1)
    answers = torch.randint(5, 200, (8, 100), generator=draw)
    pairs = torch.cat([prompt, answers], dim=1)
    assert costs.worth(lay_out(pairs), padded=False)
    apart = torch.randint(5, 200, (8, 500), generator=draw)
    assert not costs.worth(lay_out(apart), padded=False)  # nothing to save
    assert not costs.worth(lay_out(pairs[:2, -110:]), padded=False)  # too little
    sharing, _ = share_prefixes(model)
    assert sharing.costs == costs


def sees(segments, end):
    """Which token sees which, from the segments themselves."""
    starts = [0]
    for one in segments:
        starts.append(starts[-1] + one.length)
    table = torch.zeros(end, end, dtype=torch.bool)
    for place, one in enumerate(segments):
        path = [t for at, n in one.before for t in range(starts[at], starts[at] + n)]
        for token in range(starts[place], starts[place + 1]):
            table[token, path] = True
            table[token, starts[place] : token + 1] = True
    return table


def test_a_block_mask_says_what_the_segments_say():
    torch.manual_seed(0)
    prompt = torch.randint(1, 9, (150,)).tolist()
    tails = [torch.randint(10, 90, (n,)).tolist() for n in (40, 200, 7, 90)]
    rows = [prompt + tails[0], prompt + tails[1], [*prompt[:70], *tails[2]], tails[3], prompt]
    rows.append([*prompt, *tails[1][:33], 5, 5, 5])
    tree = share(rows, least=8)
    total = len(tree.ids)
    filled = filled_length(total)
    mask = block_mask(last_seen(tree.segments), filled)
    query, key = torch.arange(filled)[:, None], torch.arange(filled)[None, :]
    exact = mask.mask_mod(torch.tensor(0), torch.tensor(0), query, key)
    assert torch.equal(exact[:total, :total], sees(tree.segments, total))
    assert torch.equal(exact[total:], torch.eye(filled, dtype=torch.bool)[total:])
    # the blocks that are gone over hold everything that is seen, and full ones nothing else
    blocks = filled // 128
    tiles = exact.view(blocks, 128, blocks, 128).transpose(1, 2).flatten(2)
    dense = mask.to_dense()[0, 0].bool()
    assert torch.equal(dense, tiles.any(dim=2))
    full = torch.zeros(blocks, blocks, dtype=torch.bool)
    for row in range(blocks):
        count = int(mask.full_kv_num_blocks[0, 0, row])
        full[row, mask.full_kv_indices[0, 0, row, :count].long()] = True
    assert torch.equal(full, tiles.all(dim=2))


@pytest.mark.parametrize("tokens", [1, 127, 128, 129, 1000, 1025, 5000, 33_000])
def test_rows_are_filled_to_few_lengths(tokens):
    filled = filled_length(tokens)
    assert filled % 128 == 0
    assert tokens <= filled <= max(tokens * 1.13, tokens + 127)
    assert len({filled_length(n) for n in range(4096, 8193)}) <= 10
