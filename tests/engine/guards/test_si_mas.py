"""Synaptic intelligence and memory aware synapses by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from align.engine.guards.base import Guard
from align.engine.guards.mas import MAS, estimate_omega
from align.engine.guards.si import SI, consolidated


def line(weight: float = 2.0) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, weight)
    return model


def step(model: nn.Linear, guard: SI, target: float, lr: float = 0.1, clip: float = 0.0) -> None:
    """One step of gradient descent on 0.5 (w - target)^2."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    optimizer.zero_grad()
    loss = 0.5 * (model.weight - target).square().sum()
    (loss + guard.penalty(model, {})).backward()
    guard.before_step(model)
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    guard.after_step(model, optimizer)


@pytest.mark.parametrize("in_place", [False, True])
def test_si_by_hand_over_two_tasks(in_place):
    model = line(2.0)
    guard = SI(4.0, damping=0.1, in_place=in_place)
    assert isinstance(guard, Guard)
    guard.begin(model)
    step(model, guard, 0.0)  # g = 2, w: 2 -> 1.8, omega = 0.4
    step(model, guard, 0.0)  # g = 1.8, w: 1.8 -> 1.62, omega += 0.324
    assert guard.path["weight"].item() == pytest.approx(0.4 + 0.324)
    guard.finish(model, [], lambda m, b: m.weight.sum())
    first = 0.724 / (0.38**2 + 0.1)
    assert guard.importance["weight"].item() == pytest.approx(first, rel=1e-5)
    assert guard.anchor["weight"].item() == pytest.approx(1.62)
    assert guard.path["weight"].item() == 0.0
    # the second task: its own gradient only, though the step follows both
    step(model, guard, 5.0)
    g = 1.62 - 5.0
    w = 1.62 - 0.1 * g
    assert guard.path["weight"].item() == pytest.approx(-g * (w - 1.62), rel=1e-5)
    step(model, guard, 5.0)
    pull = 4.0 * first * (w - 1.62)
    after = w - 0.1 * ((w - 5.0) + pull)
    assert model.weight.item() == pytest.approx(after, rel=1e-5)
    expected = -g * (w - 1.62) - (w - 5.0) * (after - w)
    assert guard.path["weight"].item() == pytest.approx(expected, rel=1e-4)
    held = guard.penalty(model, {}).item()
    assert held == pytest.approx(2.0 * first * (after - 1.62) ** 2, rel=1e-4)


def test_si_takes_the_gradient_before_it_is_clipped():
    model = line(2.0)
    guard = SI(1.0, in_place=True)
    guard.begin(model)
    step(model, guard, 0.0, clip=0.5)  # g = 2, clipped to 0.5: w moves by -0.05
    assert model.weight.item() == pytest.approx(1.95)
    assert guard.path["weight"].item() == pytest.approx(2.0 * 0.05)


def test_si_resumes_between_steps_and_forgets_what_raised_the_loss():
    found = consolidated(torch.tensor([1.0, -1.0]), torch.tensor([0.0, 1.0]), 0.5)
    assert found.tolist() == [2.0, 0.0]
    whole, split = line(), line()
    one, two = SI(1.0), SI(1.0)
    one.begin(whole)
    two.begin(split)
    for _ in range(3):
        step(whole, one, 0.0)
    step(split, two, 0.0)
    again = SI(9.0)
    again.begin(split)
    again.load_state_dict(two.state_dict())
    for _ in range(2):
        step(split, again, 0.0)
    assert again.path["weight"].item() == pytest.approx(one.path["weight"].item())
    assert again.start["weight"].item() == 2.0


def test_mas_by_hand():
    """Outputs (w x, 0), centred (w x / 2, -w x / 2): squared length w^2 x^2 / 2, slope |w| x^2."""
    model = line(-3.0)

    def logits(module: nn.Module, batch: dict[str, torch.Tensor]):
        score = module(batch["x"])
        return torch.cat([score, torch.zeros_like(score)], dim=1), torch.zeros(1, dtype=torch.long)

    rows = [{"x": torch.tensor([[1.0]])}, {"x": torch.tensor([[-2.0]])}]
    (found,) = estimate_omega(model, rows, logits).values()
    assert found.item() == pytest.approx((3.0 * 1 + 3.0 * 4) / 2)
    guard = MAS(2.0, {"weight": found}, logits_fn=logits)
    guard.begin(model)
    with torch.no_grad():
        model.weight += 0.5
    loss = guard.penalty(model, {})
    loss.backward()
    assert loss.item() == pytest.approx(7.5 * 0.25)
    assert model.weight.grad.item() == pytest.approx(2.0 * 7.5 * 0.5)
    guard.finish(model, rows, lambda m, b: m.weight.sum())
    assert guard.importance["weight"].item() == pytest.approx(7.5 + 2.5 * 2.5)


def test_si_counts_no_step_whose_gradient_is_not_finite():
    for broken in (torch.inf, torch.nan):
        model, guard = nn.Linear(2, 1, bias=False), SI(1.0, in_place=True)
        guard.begin(model)
        model.weight.grad = torch.tensor([[1.0, broken]])
        guard.before_step(model)
        with torch.no_grad():
            model.weight += 1.0
        guard.after_step(model)
        assert guard.path["weight"].tolist() == [[0.0, 0.0]]
