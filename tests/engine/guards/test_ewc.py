"""EWC by hand, the Fisher per example, and the mixin's arithmetic under accumulation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from align.engine.guards.base import Guard
from align.engine.guards.ewc import EWC, ewc_penalty
from align.engine.guards.fisher import estimate_fisher, estimate_true_fisher
from align.errors import ModelError


def nll(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Half the summed squared error: a Gaussian negative log-likelihood."""
    return 0.5 * (model(batch["x"]).squeeze(-1) - batch["y"]).square().sum()


def line(weight: float = 2.0) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, weight)
    return model


EXAMPLES = [{"x": torch.tensor([[x]]), "y": torch.tensor([y])} for x, y in ((1.0, 3.0), (2.0, 3.0))]


def test_the_penalty_by_hand():
    anchor = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([0.0])}
    fisher = {"a": torch.tensor([3.0, 0.5]), "b": torch.tensor([2.0])}
    now = {"a": torch.tensor([2.0, 4.0]), "b": torch.tensor([-1.0]), "other": torch.ones(3)}
    expected = 10.0 / 2 * (3.0 * 1 + 0.5 * 4 + 2.0 * 1)
    assert ewc_penalty(now, anchor, fisher, 10.0).item() == pytest.approx(expected)


def test_its_gradient_is_strength_times_fisher_times_distance():
    model = nn.Linear(3, 2)
    fisher = {n: torch.rand_like(p) for n, p in model.named_parameters()}
    guard = EWC(7.0, fisher)
    guard.begin(model)
    assert guard.penalty(model, {}).item() == 0.0
    anchor = {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter)
    guard.penalty(model, {}).backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(
            parameter.grad, 7.0 * fisher[name] * (parameter.detach() - anchor[name])
        )


def test_the_fisher_squares_each_example_and_then_averages():
    # d/dw of 0.5 (w x - y)^2 = (w x - y) x: at w = 2, -1 for the first and 2 for the second
    model = line()
    (found,) = estimate_fisher(model, EXAMPLES, nll).values()
    assert found.item() == pytest.approx((1.0 + 4.0) / 2)
    assert model.weight.grad is None
    assert model.training
    whole = {key: torch.cat([e[key] for e in EXAMPLES]) for key in ("x", "y")}
    (squared_mean,) = estimate_fisher(model, [whole], lambda m, b: nll(m, b) / 2).values()
    assert squared_mean.item() == pytest.approx(((-1.0 + 2.0) / 2) ** 2)  # something else


def test_the_fisher_refuses_nothing_and_infinity():
    with pytest.raises(ModelError, match="at least one example"):
        estimate_fisher(line(), [], nll)
    bad = [{"x": torch.tensor([[float("inf")]]), "y": torch.tensor([1.0])}]
    with pytest.raises(ModelError, match="not finite"):
        estimate_fisher(line(), bad, nll)


def test_a_fisher_of_another_model_is_refused():
    guard = EWC(1.0, {"weight": torch.ones(2, 2)})
    with pytest.raises(ModelError, match="weight is not the same"):
        guard.begin(nn.Linear(3, 2))
    with pytest.raises(ModelError, match="do not belong"):
        EWC(1.0, {"layers.0.weight": torch.ones(1)}).begin(nn.Linear(3, 2))


def test_frozen_weights_are_not_guarded():
    model = nn.Linear(3, 2)
    fisher = {n: torch.ones_like(p) for n, p in model.named_parameters()}
    model.bias.requires_grad_(False)
    guard = EWC(1.0, fisher)
    guard.begin(model)
    assert list(guard.fisher) == ["weight"]


def test_a_second_task_is_added_exactly():
    """strength / 2 * (F1 (w - a1)^2 + F2 (w - a2)^2) at any w, in one Fisher and one anchor."""
    model = line()
    guard = EWC(3.0, estimate_fisher(model, EXAMPLES[:1], nll))  # F1 = 1 at a1 = 2
    guard.begin(model)
    with torch.no_grad():
        model.weight += 1.0
    guard.finish(model, EXAMPLES[1:], nll)  # F2 = ((3 * 2 - 3) * 2)^2 = 36 at a2 = 3
    assert guard.fisher["weight"].item() == pytest.approx(37.0)
    for at in (-1.0, 2.0, 3.0, 5.0):
        nn.init.constant_(model.weight, at)
        model.weight.grad = None
        found = guard.penalty(model, {})
        found.backward()
        assert found.item() == pytest.approx(1.5 * ((at - 2) ** 2 + 36 * (at - 3) ** 2), rel=1e-5)
        expected = 3.0 * ((at - 2) + 36 * (at - 3))
        assert model.weight.grad.item() == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_online_ewc_decays_what_is_older_and_moves_the_anchor():
    model = line()
    guard = EWC(1.0, estimate_fisher(model, EXAMPLES[:1], nll), decay=0.5)
    guard.begin(model)
    with torch.no_grad():
        model.weight += 1.0
    guard.finish(model, EXAMPLES[1:], nll)
    assert guard.fisher["weight"].item() == pytest.approx(0.5 * 1.0 + 36.0)
    assert guard.penalty(model, {}).item() == 0.0


def test_the_true_fisher_draws_labels_from_the_model():
    """Logits (w x, 0): the Fisher is x^2 p (1 - p), whatever the data's labels say."""
    model = line(0.5)

    def logits(module: nn.Module, batch: dict[str, torch.Tensor]):
        score = module(batch["x"])
        return torch.cat([score, torch.zeros_like(score)], dim=1), batch["y"].long()

    examples = [{"x": torch.tensor([[2.0]]), "y": torch.tensor([1.0])}]
    p = torch.sigmoid(torch.tensor(1.0)).item()
    (found,) = estimate_true_fisher(model, examples, logits, draws=4000).values()
    assert found.item() == pytest.approx(4 * p * (1 - p), rel=0.05)

    def likelihood(module: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(*logits(module, batch), reduction="sum")

    (empirical,) = estimate_fisher(model, examples, likelihood).values()
    assert empirical.item() == pytest.approx(4 * p**2)  # the label was the unlikely one


def test_a_state_survives():
    model = line()
    guard = EWC(3.0, estimate_fisher(model, EXAMPLES, nll))
    guard.begin(model)
    with torch.no_grad():
        model.weight += 0.5
    other = EWC(1.0, {"weight": torch.ones(1, 1)})
    other.begin(model)
    assert other.penalty(model, {}).item() != guard.penalty(model, {}).item()
    other.load_state_dict(guard.state_dict())
    assert other.penalty(model, {}).item() == guard.penalty(model, {}).item()


def test_ewc_is_a_guard():
    assert isinstance(EWC(1.0, {}), Guard)
