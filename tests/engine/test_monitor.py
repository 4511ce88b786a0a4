"""Non-finite values, signals and metrics."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import threading

import pytest
import torch
from rich.console import Console
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from align.engine.monitor import (
    FiniteMixin,
    GradientCheck,
    MetricsCallback,
    StopCallback,
    StopSignals,
)
from align.errors import NonFiniteError
from align.run import Run


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_for_a_checkpoint_and_a_stop(number):
    before, signals = signal.getsignal(number), StopSignals()
    state, control = TrainerState(global_step=3, max_steps=9), TrainerControl()
    with signals.listening():
        StopCallback(signals).on_step_end(None, state, control)
        assert not control.should_training_stop
        os.kill(os.getpid(), number)
        StopCallback(signals).on_step_end(None, state, control)
    assert signals.received == number.name
    assert control.should_save
    assert control.should_training_stop
    assert signal.getsignal(number) is before


def test_a_second_interrupt_ends_at_once():
    with StopSignals().listening():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_threads_other_than_the_main_one_listen_to_nothing():
    failures = []

    def work():
        try:
            with StopSignals().listening():
                pass
        except ValueError as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []


def test_metrics_are_written_with_speed_and_memory(tmp_path):
    run, screen = Run(tmp_path, "sft"), io.StringIO()
    callback = MetricsCallback(run, Console(file=screen, width=100))
    args = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    state = TrainerState(global_step=1, max_steps=2)
    callback.on_train_begin(args, state, TrainerControl())
    for step, tokens in ((1, 100), (2, 300)):
        state.global_step = step
        logs = {"loss": 2.0 / step, "num_tokens": tokens, "reward/mean": math.nan}
        callback.on_log(args, state, TrainerControl(), logs=logs)
    callback.on_log(args, state, TrainerControl(), logs={"eval_loss": 1.5})
    callback.on_train_end(args, state, TrainerControl())
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 2]
    assert "tokens_per_second" not in rows[0]  # nothing to measure from yet
    assert rows[1]["tokens_per_second"] > 0
    assert rows[1]["memory_gib"] > 0
    assert rows[1]["reward/mean"] is None  # JSON has no NaN
    assert rows[2]["eval_loss"] == 1.5
    assert "sft 2/2  loss 1" in screen.getvalue()
