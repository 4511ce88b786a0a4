"""Frozen numbers, layers one after another, averages, and a strength that follows a budget."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from align.engine.guards.average import EMA, WiseFT
from align.engine.guards.base import Guard
from align.engine.guards.budget import Budget
from align.engine.guards.isolate import Isolate, most_important
from align.engine.guards.l2sp import L2SP
from align.engine.guards.unfreeze import Unfreeze, layer_groups


def descend(model: nn.Module, guards: list, target: float, steps: int, plain: float = 0.0) -> None:
    """AdamW with weight decay on (w - target)^2: momentum and decay move whatever they can.

    `plain` is the rate of plain gradient descent instead.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    if plain:
        optimizer = torch.optim.SGD(model.parameters(), lr=plain)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = sum((p - target).square().sum() for p in model.parameters())
        (loss + sum(g.penalty(model, {}) for g in guards)).backward()
        for guard in guards:
            guard.before_step(model)
        optimizer.step()
        for guard in guards:
            guard.after_step(model, optimizer)


def test_the_most_important_numbers_do_not_move_at_all():
    importance = {"weight": torch.tensor([[5.0, 0.0, 1.0]]), "bias": torch.tensor([3.0])}
    masks = most_important(importance, 0.5)
    assert masks["weight"].tolist() == [[True, False, False]]
    assert masks["bias"].tolist() == [True]
    model = nn.Linear(3, 1)
    before = copy.deepcopy(model.state_dict())
    guard = Isolate(importance, 0.5)
    assert isinstance(guard, Guard)
    guard.begin(model)
    assert guard.penalty(model, {}).item() == 0.5
    descend(model, [guard], 3.0, 10)
    after = model.state_dict()
    assert after["weight"][0, 0] == before["weight"][0, 0]
    assert torch.equal(after["bias"], before["bias"])
    assert (after["weight"][0, 1:] != before["weight"][0, 1:]).all()


def test_layers_are_grouped_from_the_top(tiny_llama):
    names = [n for n, _ in tiny_llama(num_hidden_layers=3).named_parameters()]
    groups = layer_groups(names, 2)
    assert sorted(n for g in groups for n in g) == sorted(names)
    assert {"lm_head.weight", "model.norm.weight"} <= set(groups[0])
    assert all("layers.2" in n or "layers." not in n for n in groups[0])
    assert "model.embed_tokens.weight" in groups[1]
    assert layer_groups(["a", "b"], 3) == [["b", "a"]]


def test_waiting_layers_stay_whatever_the_optimizer_does(tiny_llama):
    model = tiny_llama(seed=1)
    guard = Unfreeze(every=2, groups=2)
    guard.begin(model)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}

    def moved() -> set[str]:
        return {n for n, p in model.named_parameters() if not torch.equal(p, start[n])}

    descend(model, [guard], 0.0, 2)
    assert moved() == set(guard.groups[0])
    again = Unfreeze(every=2, groups=2)
    again.begin(model)
    again.load_state_dict(guard.state_dict())
    descend(model, [again], 0.0, 1)
    assert moved() == set(start)


def test_the_running_mean_is_saved_and_resumed():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    guard = EMA(0.9)
    guard.begin(model)
    expected = 0.0
    for step in range(1, 6):
        nn.init.constant_(model.weight, float(step))
        guard.after_step(model)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    other = EMA(0.9)
    other.begin(model)
    other.load_state_dict(guard.state_dict())
    other.final(model)
    assert model.weight.item() == pytest.approx(expected)


def test_wise_ft_is_between_start_and_end_with_lora_too(tiny_llama):
    model = nn.Linear(2, 1)
    start = copy.deepcopy(model.state_dict())
    guard = WiseFT(0.25)
    guard.begin(model)
    descend(model, [guard], 3.0, 5)
    end = copy.deepcopy(model.state_dict())
    guard.final(model)
    for name, value in model.state_dict().items():
        assert torch.allclose(value, 0.75 * start[name] + 0.25 * end[name])
    adapted = get_peft_model(
        tiny_llama(seed=1), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=True)
    )
    half = WiseFT(0.5)
    half.begin(adapted)
    layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
    change = layer.get_delta_weight("default").clone()
    half.final(adapted)
    assert torch.allclose(layer.get_delta_weight("default"), 0.5 * change)


def budgeted(strength: float, allowed: float, enforce: bool = False) -> tuple[Budget, nn.Module]:
    """The old task wants 1, where it starts; the new one 3."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    guard = Budget(
        L2SP(strength),
        [{"x": torch.ones(1, 1)}],
        lambda m, b: 1.0 + (m.weight - 1.0).square().sum(),
        allowed=allowed,
        every=5,
        rate=0.3,
        enforce=enforce,
        collate_fn=lambda examples, device: examples[0],
        size_fn=lambda batch: torch.tensor(1),
    )
    guard.begin(model)
    descend(model, [guard], 3.0, 600, plain=0.02)
    return guard, model


@pytest.mark.parametrize("start", [0.01, 50.0])
def test_the_strength_finds_the_budget_from_both_sides(start):
    guard, model = budgeted(start, allowed=0.25)
    free = L2SP(0.0001)
    other = nn.Linear(1, 1, bias=False)
    nn.init.constant_(other.weight, 1.0)
    free.begin(other)
    descend(other, [free], 3.0, 600, plain=0.02)
    assert (other.weight.item() - 1.0) ** 2 > 3.0  # unguarded it loses twelve times as much
    guard.final(model)
    assert guard.before == 1.0
    assert 1.15 < guard.now <= 1.25  # and room that is there is used
    assert guard.metrics["guard/strength"] != start


def test_enforcing_meets_the_budget_whatever_the_guard_did():
    guard, model = budgeted(1e-9, allowed=0.01, enforce=True)
    assert guard.measure(model) > 1.01
    guard.final(model)
    assert 1.0 < guard.now <= 1.01
    assert model.weight.item() > 1.05
