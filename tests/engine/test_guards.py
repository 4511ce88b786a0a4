"""EWC by hand, the Fisher per example, and the mixin's arithmetic under accumulation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from align.engine.guards.base import Guard, GuardMixin
from align.engine.guards.ewc import EWC, estimate_fisher, ewc_penalty, load_fisher, save_fisher
from align.errors import CheckpointError, ModelError


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
    with pytest.raises(ModelError, match="does not belong"):
        EWC(1.0, {"layers.0.weight": torch.ones(1)}).begin(nn.Linear(3, 2))


def test_frozen_weights_are_not_guarded():
    model = nn.Linear(3, 2)
    fisher = {n: torch.ones_like(p) for n, p in model.named_parameters()}
    model.bias.requires_grad_(False)
    guard = EWC(1.0, fisher)
    guard.begin(model)
    assert list(guard.fisher) == ["weight"]


def test_finish_adds_a_task_and_moves_the_anchor():
    model = line()
    guard = EWC(1.0, estimate_fisher(model, EXAMPLES[:1], nll))
    guard.begin(model)
    with torch.no_grad():
        model.weight += 1.0
    guard.finish(model, EXAMPLES[1:], nll)
    assert guard.penalty(model, {}).item() == 0.0
    assert guard.fisher["weight"].item() == pytest.approx(1.0 + ((3 * 2 - 3) * 2) ** 2)


def test_state_survives_and_so_does_a_file(tmp_path):
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
    save_fisher(tmp_path / "deep" / "fisher.safetensors", guard.fisher)
    assert torch.equal(
        load_fisher(tmp_path / "deep" / "fisher.safetensors")["weight"], guard.fisher["weight"]
    )
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors"):
        load_fisher(tmp_path / "nothing.safetensors")


def test_ewc_is_a_guard():
    assert isinstance(EWC(1.0, {}), Guard)


class Host:
    """The part of a Trainer that the mixin reads."""

    def __init__(self, scaled: bool | None, steps: int):
        self.model = line()
        self.loss_is_scaled_for_ga = scaled
        self.current_gradient_accumulation_steps = steps
        state = type("State", (), {"sync_gradients": True})()
        self.accelerator = type("Accelerator", (), {"gradient_state": state})()

    def add_callback(self, callback) -> None:
        self.callback = callback

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = model.weight.sum() * 0.0
        return (loss, "outputs") if return_outputs else loss


class Guarded(GuardMixin, Host):
    pass


@pytest.mark.parametrize(("scaled", "factor"), [(True, 1.0), (False, 4.0), (None, 4.0)])
def test_the_penalty_counts_once_a_step_whoever_divides(scaled, factor):
    host = Guarded(scaled, 4, guards=[EWC(2.0, {"weight": torch.ones(1, 1)})])
    with torch.no_grad():
        host.model.weight += 1.0
    host.accelerator.gradient_state.sync_gradients = False
    assert host.compute_loss(host.model, {}).item() == 0.0  # not on the micro-batches before
    host.accelerator.gradient_state.sync_gradients = True
    assert host.compute_loss(host.model, {}).item() == pytest.approx(factor * 1.0)
    loss, outputs = host.compute_loss(host.model, {}, return_outputs=True)
    assert (loss.item(), outputs) == (pytest.approx(factor), "outputs")
    host.model.eval()
    assert host.compute_loss(host.model, {}).item() == 0.0  # evaluation shows the task's loss


def test_two_guards_of_a_kind_add_up():
    fisher = {"weight": torch.ones(1, 1)}
    host = Guarded(True, 1, guards=[EWC(2.0, fisher), EWC(4.0, fisher)])
    with torch.no_grad():
        host.model.weight += 1.0
    assert host.compute_loss(host.model, {}).item() == pytest.approx(3.0)
    assert host.guard_metrics == {"guard/ewc": pytest.approx(3.0)}
