"""Quadratic penalties: against autograd, on LoRA's product, and steps that would diverge."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from align.engine.guards.ewc import EWC, ewc_penalty
from align.engine.guards.fisher import estimate_fisher
from align.engine.guards.l2sp import L1SP, L2SP
from align.engine.guards.quadratic import (
    BLOCK,
    add_gradient,
    add_in_groups,
    combine,
    penalty_value,
)
from align.engine.guards.si import SI
from align.engine.guards.weights import trained_weights
from align.errors import ConfigError, ModelError


def moved_model(size: int = 7) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(size, 5), nn.Tanh(), nn.Linear(5, 2))
    return model, {n: torch.rand_like(p) for n, p in model.named_parameters()}


def shift(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)


@pytest.mark.parametrize("in_place", [True, False])
def test_the_gradient_is_autograds(in_place):
    model, fisher = moved_model()
    guard = EWC(7.0, fisher, in_place=in_place)
    guard.begin(model)
    anchor = {n: v.clone() for n, v in guard.anchor.items()}
    shift(model)
    plain = copy.deepcopy(model)
    expected = ewc_penalty(dict(plain.named_parameters()), anchor, fisher, 7.0)
    (expected + sum(p.sum() for p in plain.parameters())).backward()
    found = guard.penalty(model, {})
    (found + sum(p.sum() for p in model.parameters())).backward()
    guard.before_step(model)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad, atol=1e-6)


def test_blocks_cover_a_large_tensor_and_a_transposed_gradient():
    torch.manual_seed(0)
    shape = (3, BLOCK // 2 + 7)
    weight, anchor, importance = torch.randn(shape), torch.randn(shape), torch.rand(shape)
    expected = 2.5 * importance * (weight - anchor)
    for gradient in (torch.zeros(shape), torch.zeros(shape[::-1]).T):
        add_gradient([gradient], [weight], [anchor], [importance], 2.5)
        assert torch.allclose(gradient, expected, atol=1e-6)
    half = torch.zeros(shape, dtype=torch.bfloat16)
    add_gradient([half], [weight.bfloat16()], [anchor], [None], 2.0)
    assert torch.allclose(half.float(), 2.0 * (weight - anchor), atol=0.1)
    value = penalty_value([weight], [anchor], [importance])
    assert value.item() == pytest.approx(
        (importance * (weight - anchor).square()).sum().item(), rel=1e-5
    )


@pytest.mark.parametrize("most", [1, 8, 1000])
def test_groups_of_tensors_add_what_blocks_do(most):
    torch.manual_seed(0)
    shapes = [(3, 2), (5,), (), (4, 1)]
    weights, anchors = ([torch.randn(s) for s in shapes] for _ in range(2))
    importances = [torch.rand(3, 2), None, torch.rand(()), torch.rand(4, 1)]
    one, two = ([torch.ones(s) for s in shapes] for _ in range(2))
    add_gradient(one, weights, anchors, importances, 3.0)
    add_in_groups(two, weights, anchors, importances, 3.0, most)
    for blocks, groups in zip(one, two, strict=True):
        assert torch.allclose(blocks, groups)
        assert not torch.allclose(blocks, torch.ones(()))


def test_several_anchors_are_one_exactly():
    torch.manual_seed(1)
    importances = [torch.rand(4), torch.rand(4), torch.rand(4)]
    importances[0][1] = importances[1][1] = importances[2][1] = 0.0
    anchors = [torch.randn(4) for _ in range(3)]
    total, mean, constant = combine(importances, anchors)
    for _ in range(3):
        at = torch.randn(4)
        each = sum((h * (at - a).square()).sum() for h, a in zip(importances, anchors, strict=True))
        assert float((total * (at - mean).square()).sum()) + constant == pytest.approx(
            float(each), rel=1e-5
        )
    assert constant > 0


def test_l1_and_l2_sp_by_hand():
    model = nn.Linear(2, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    for kind, value, gradient in (
        (L2SP, 0.5 * 3 * (0.25 + 4.0), [3 * 0.5, 3 * -2.0]),
        (L1SP, 3 * (0.5 + 2.0), [3.0, -3.0]),
    ):
        for in_place in (False, True):
            nn.init.constant_(model.weight, 1.0)
            guard = kind(3.0, in_place=in_place)
            guard.begin(model)
            model.weight.grad = None
            with torch.no_grad():
                model.weight += torch.tensor([[0.5, -2.0]])
            found = guard.penalty(model, {})
            (found + 0.0 * model.weight.sum()).backward()
            guard.before_step(model)
            assert found.item() == pytest.approx(value)
            assert model.weight.grad[0].tolist() == pytest.approx(gradient)


def test_new_weights_are_held_near_0():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    nn.init.constant_(model[0].weight, 5.0)
    nn.init.constant_(model[1].weight, 2.0)
    guard = L2SP(1.0, new=[r"^1\."], head_strength=0.5)
    guard.begin(model)
    assert guard.penalty(model, {}).item() == pytest.approx(0.5 * 0.5 * 2.0**2)


@pytest.mark.parametrize("strength", [3.0, 1e4])
def test_a_proximal_step_is_stable_where_an_explicit_one_diverges(strength):
    """lr * strength * F = 0.1 * 1e4 * 2 is far above 2 (1 + momentum)."""

    def descend(proximal: bool) -> float:
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, 1.0)
        guard = EWC(strength, {"weight": torch.full((1, 1), 2.0)}, proximal=proximal)
        guard.begin(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(60):
            optimizer.zero_grad()
            task = 0.5 * (model.weight - 3.0).square().sum()  # wants 3, the anchor is 1
            (task + guard.penalty(model, {})).backward()
            guard.before_step(model)
            optimizer.step()
            guard.after_step(model, optimizer)
        return float(model.weight.detach())

    kept = descend(proximal=True)
    assert 1.0 <= kept < 3.0
    free = descend(proximal=False)
    if strength == 1e4:
        assert not abs(free) < 1e6
        assert kept == pytest.approx(1.0, abs=0.01)
    else:
        assert free == pytest.approx(1.0 + 2.0 / (1 + strength * 2.0), abs=0.05)


def test_the_proximal_step_by_hand_and_l1s_soft_threshold():
    optimizer_of = lambda m: torch.optim.SGD(m.parameters(), lr=0.5)  # noqa: E731
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0]]))
    guard = EWC(4.0, {"weight": torch.tensor([[3.0, 0.5]])}, proximal=True)
    guard.begin(model)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[8.0, 4.0]]))
    guard.after_step(model, optimizer_of(model))
    c = [0.5 * 4.0 * 3.0, 0.5 * 4.0 * 0.5]
    expected = [(8.0 + c[0] * 1.0) / (1 + c[0]), (4.0 + c[1] * 2.0) / (1 + c[1])]
    assert model.weight[0].tolist() == pytest.approx(expected)
    with pytest.raises(ModelError, match="needs the optimizer"):
        guard.after_step(model)
    soft = L1SP(1.0, proximal=True)
    soft.begin(model)
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(torch.tensor([[0.2, -2.0]]))
    soft.after_step(model, optimizer_of(model))
    assert torch.allclose(model.weight, start + torch.tensor([[0.0, -1.5]]))


def lora(start: nn.Module) -> nn.Module:
    return get_peft_model(start, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))


def test_loras_product_is_held_and_its_gradient_is_autograds(tiny_llama):
    plain = tiny_llama(seed=2)
    names = [n for n, _ in plain.named_parameters() if "q_proj" in n or "v_proj" in n]
    torch.manual_seed(0)
    fisher = {n: torch.rand_like(p) for n, p in plain.named_parameters()}
    anchor = {n: p.detach().clone() for n, p in plain.named_parameters()}
    model = lora(copy.deepcopy(plain))
    gradients = []
    for in_place in (False, True):
        guard = EWC(5.0, fisher, in_place=in_place)
        guard.begin(model)
        assert sorted(guard.importance) == sorted(names)
        torch.manual_seed(5)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(0.1 * torch.randn_like(parameter))
        # the same by merging: W + 2 B A
        weights = trained_weights(model)
        merged = {n: w.now() for n, w in weights.items()}
        expected = ewc_penalty(merged, anchor, fisher, 5.0)
        model.zero_grad()
        found = guard.penalty(model, {})
        (found + 0.0 * sum(p.sum() for p in model.parameters() if p.requires_grad)).backward()
        guard.before_step(model)
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.zero_()  # back to the start, where a LoRA run begins
    model.zero_grad()
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn_like(parameter))
    merged = {n: w.now() for n, w in trained_weights(model).items()}
    ewc_penalty(merged, anchor, fisher, 5.0).backward()
    expected_gradients = [p.grad for p in model.parameters() if p.requires_grad]
    for column in gradients:
        for mine, theirs in zip(column, expected_gradients, strict=True):
            assert torch.allclose(mine, theirs, atol=1e-5)
    assert max(float(g.abs().max()) for g in expected_gradients) > 0.01
    reference = model.merge_and_unload()
    for name in names:
        assert torch.allclose(dict(reference.named_parameters())[name], merged[name], atol=1e-6)


def test_what_lora_cannot_do_is_refused(tiny_llama):
    model = lora(tiny_llama(seed=2))
    with pytest.raises(ConfigError, match="which LoRA never computes"):
        SI(1.0).begin(model)
    with pytest.raises(ModelError, match="before adapters are added"):
        estimate_fisher(model, [{}], lambda m, b: m.weight.sum())
    from peft import IA3Config

    other = get_peft_model(
        tiny_llama(seed=2), IA3Config(target_modules=["k_proj"], feedforward_modules=[])
    )
    with pytest.raises(ConfigError, match="ewc on ia3"):
        EWC(1.0, {"a": torch.ones(1)}).begin(other)
