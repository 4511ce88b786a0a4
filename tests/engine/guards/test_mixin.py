"""The mixin's arithmetic: a penalty counts once a step, in the loss or in place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from align.engine.guards.base import GuardMixin
from align.engine.guards.ewc import EWC
from align.engine.guards.l2sp import L2SP
from align.errors import ModelError


def line(weight: float = 2.0) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, weight)
    return model


class Host:
    """The part of a Trainer that the mixin reads; its task's gradient is 5."""

    def __init__(self, scaled: bool | None, steps: int, deepspeed: bool = False):
        self.model = line()
        self.loss_is_scaled_for_ga = scaled
        self.current_gradient_accumulation_steps = steps
        self.is_deepspeed_enabled = deepspeed
        state = type("State", (), {"sync_gradients": True})()
        self.accelerator = type("Accelerator", (), {"gradient_state": state})()

    def add_callback(self, callback) -> None:
        self.callback = callback

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = model.weight.sum() * 5.0
        return (loss, "outputs") if return_outputs else loss

    def training_step(self, model, inputs):
        loss = self.compute_loss(model, inputs)
        if not self.loss_is_scaled_for_ga:
            loss = loss / self.current_gradient_accumulation_steps
        loss.backward()
        return loss.detach()


class Guarded(GuardMixin, Host):
    pass


SCALES = [(True, 1.0), (False, 4.0), (None, 4.0)]


def moved(host: Guarded) -> None:
    with torch.no_grad():
        host.model.weight += 1.0


@pytest.mark.parametrize(("scaled", "factor"), SCALES)
def test_a_penalty_in_the_loss_counts_once_a_step_whoever_divides(scaled, factor):
    host = Guarded(scaled, 4, deepspeed=True, guards=[EWC(2.0, {"weight": torch.ones(1, 1)})])
    moved(host)
    host.accelerator.gradient_state.sync_gradients = False
    assert host.compute_loss(host.model, {}).item() == 15.0  # not on the micro-batches before
    host.accelerator.gradient_state.sync_gradients = True
    assert host.compute_loss(host.model, {}).item() == pytest.approx(15.0 + factor * 1.0)
    loss, outputs = host.compute_loss(host.model, {}, return_outputs=True)
    assert (loss.item(), outputs) == (pytest.approx(15.0 + factor), "outputs")
    host.model.eval()
    assert host.compute_loss(host.model, {}).item() == 15.0  # evaluation shows the task's loss


@pytest.mark.parametrize(("scaled", "factor"), SCALES)
def test_a_gradient_in_place_counts_once_a_step_whoever_divides(scaled, factor):
    host = Guarded(scaled, 4, guards=[EWC(2.0, {"weight": torch.full((1, 1), 3.0)})])
    moved(host)
    for micro in range(4):
        host.accelerator.gradient_state.sync_gradients = micro == 3
        host.training_step(host.model, {})
    task = 5.0 * 4 / factor
    assert host.model.weight.grad.item() == pytest.approx(task + 2.0 * 3.0 * 1.0)
    assert host.guard_metrics == {"guard/ewc": pytest.approx(3.0)}


def test_two_guards_of_a_kind_add_up():
    fisher = {"weight": torch.ones(1, 1)}
    host = Guarded(True, 1, guards=[EWC(2.0, fisher), EWC(4.0, fisher), L2SP(1.0)])
    moved(host)
    host.training_step(host.model, {})
    assert host.model.weight.grad.item() == pytest.approx(5.0 + 2.0 + 4.0 + 1.0)
    assert host.guard_metrics == {"guard/ewc": pytest.approx(3.0), "guard/l2sp": pytest.approx(0.5)}


def test_what_has_no_gradient_gets_none():
    """A critic's warm-up takes the policy's gradients away: the guard must not step alone."""
    host = Guarded(True, 1, guards=[L2SP(1.0)])
    moved(host)
    for guard in host.guards:
        guard.before_step(host.model)
    assert host.model.weight.grad is None


class Engine:
    """The part of DeepSpeed's engine that the mixin reads."""

    def __init__(self, loss_scale: float):
        self.optimizer = type("Optimizer", (), {"loss_scale": loss_scale})()
        self.stepped = False

    def step(self) -> None:
        self.stepped = True


def test_under_deepspeed_guards_see_gradients_before_the_step_and_their_scale():
    class Watch(L2SP):
        def before_step(self, model, scale=1.0):
            seen.append((model, model.stepped, scale))

    seen: list[tuple[Engine, bool, float]] = []
    host = Guarded(True, 1, deepspeed=True, guards=[Watch(1.0)])
    host.deepspeed = engine = Engine(128.0)
    for _ in range(2):
        host.training_step(host.model, {})
    engine.step()
    assert seen == [(engine, False, 128.0)]
    assert engine.stepped


@pytest.mark.parametrize("how", ["in_place", "proximal"])
def test_what_deepspeed_would_lose_is_refused(how):
    model = line()
    guard = L2SP(1.0, **{how: True})
    guard.begin(model)
    model.weight._hp_mapping = None  # as ZeRO-1/2 marks it
    model.weight.grad = torch.ones(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> None:
        guard.before_step(model)
        guard.after_step(model, optimizer)

    with pytest.raises(ModelError, match=f"DeepSpeed trains. Fix: leave {how} out"):
        step()
