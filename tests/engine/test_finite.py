"""Losses and gradients that are not finite."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import TrainerControl, TrainerState

from align.engine.finite import IN_A_ROW, FiniteMixin, GradientCheck, SkipLimit
from align.errors import NonFiniteError


class Host:
    def __init__(self):
        self.model = nn.Linear(2, 1)
        self.state = TrainerState(global_step=7)

    def compute_loss(self, model, inputs, **kwargs):
        loss = model(inputs.pop("x")).sum()  # TRL's trainers pop inputs too
        return (loss, "outputs") if kwargs.get("return_outputs") else loss


class Checked(FiniteMixin, Host):
    pass


BAD = torch.tensor([[math.nan, 1.0]])


def test_a_finite_loss_passes():
    host = Checked()
    x = torch.ones(1, 2)
    assert torch.equal(host.compute_loss(host.model, {"x": x}), host.model(x).sum())


def test_stop_names_the_step_and_saves_the_batch(tmp_path):
    host = Checked()
    host.finite_folder = tmp_path / "new"
    with pytest.raises(NonFiniteError, match="the loss is nan at step 7"):
        host.compute_loss(host.model, {"x": BAD})
    saved = torch.load(tmp_path / "new" / "non-finite-step-7.pt", weights_only=True)
    assert torch.equal(saved["x"].isnan(), BAD.isnan())


def test_skip_counts_and_leaves_gradients_at_zero(tmp_path):
    host = Checked()
    host.finite_folder, host.non_finite = tmp_path, "skip"
    loss, outputs = host.compute_loss(host.model, {"x": BAD}, return_outputs=True)
    loss.backward()
    assert (loss.item(), outputs, host.skipped_batches) == (0.0, "outputs", 1)
    assert all((p.grad == 0).all() for p in host.model.parameters())


def test_evaluation_is_not_stopped():
    host = Checked()
    host.model.eval()
    assert host.compute_loss(host.model, {"x": BAD}).isnan()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_gradients_are_checked_before_the_step(value):
    model = nn.Linear(2, 2)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    args, state, control = None, TrainerState(global_step=3), TrainerControl()
    GradientCheck().on_pre_optimizer_step(args, state, control, model=model)
    model.bias.grad[1] = value
    with pytest.raises(NonFiniteError, match="gradient is NaN or infinite at step 3"):
        GradientCheck().on_pre_optimizer_step(args, state, control, model=model)
    check = GradientCheck("skip")
    check.on_pre_optimizer_step(args, state, control, model=model)
    assert check.cleared == 1
    assert all((p.grad == 0).all() for p in model.parameters())


class Logged:
    def __init__(self):
        self.state = TrainerState()
        self.logs = []

    def compute_loss(self, model, inputs):
        return model(inputs["x"]).sum()

    def log(self, logs, start_time=None):
        self.logs.append(logs)


class Trained(FiniteMixin, Logged):
    non_finite = "skip"


def test_the_logged_loss_is_of_the_batches_that_trained():
    host, model = Trained(), nn.Linear(2, 1)
    for bad, loss in (([], 3.0), ([1], 1.5), ([0, 1, 2], 0.0)):
        for index in range(3):
            host.compute_loss(model, {"x": BAD if index in bad else torch.ones(1, 2)})
        host.log({"eval_loss": 9.0})
        host.log({"loss": loss})
    assert [line for line in host.logs if "eval_loss" not in line] == [
        {"loss": 3.0},
        {"loss": 2.25, "skipped_batches": 1},
        {"skipped_batches": 3},
    ]


def steps(limit, host, pattern, fp16=False):
    """End a step a letter: `b`ad batches, half of them (`h`), cleared (`c`) or good (`g`)."""
    state = TrainerState(max_steps=limit)
    args = SimpleNamespace(fp16=fp16)
    check = SkipLimit(host, GradientCheck("skip"))
    for letter in pattern:
        host.batches += 2
        host.skipped_batches += {"b": 2, "h": 1}.get(letter, 0)
        check.gradients.cleared += letter == "c"
        state.global_step += 1
        check.on_step_end(args, state, TrainerControl())


@pytest.mark.parametrize(
    ("limit", "pattern", "fp16"),
    [
        (100, "b" * (IN_A_ROW - 1) + "g" + "b" * (IN_A_ROW - 1), False),
        (100, "h" * 20, False),
        (100, "c" * 20, True),
        (4, "bggb", False),
    ],
)
def test_single_skipped_steps_end_nothing(limit, pattern, fp16):
    steps(limit, Trained(), pattern, fp16)


@pytest.mark.parametrize(
    ("limit", "pattern"), [(100, "gg" + "b" * IN_A_ROW), (100, "gg" + "bc" * 3), (4, "ggbb")]
)
def test_skipped_steps_in_a_row_end_the_run(limit, pattern):
    with pytest.raises(NonFiniteError, match=r"of the last \d steps.* before step 2 will do"):
        steps(limit, Trained(), pattern)
