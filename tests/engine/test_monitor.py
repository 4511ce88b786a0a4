"""Signals and metrics."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import threading

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from align.engine.monitor import (
    MetricsCallback,
    StopCallback,
    StopSignals,
)
from align.run import Run


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
