"""When checkpoints are written: after each update, less often where they are dear."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.engine.checkpoint import list_checkpoints
from align.ppo import pace
from align.ppo.pace import SavePace

STEPS = 4  # of an update


class Time:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def saved_at(tmp_path):
    """`saved_at(update, checkpoint, updates, **args)`: the updates, of so many seconds, saved."""

    def run(update: float, checkpoint: float, updates: int, others: float = 0.0, **changes):
        time = Time()
        made = SavePace(STEPS, lambda value: value + others, time)
        given = {"output_dir": str(tmp_path), "use_cpu": True, "save_steps": 0} | changes
        args, found = TrainingArguments(**given), []
        for step in range(1, updates * STEPS + 1):
            time.now += update / STEPS
            state, control = TrainerState(global_step=step), TrainerControl()
            state.save_steps = args.save_steps
            made.on_step_end(args, state, control)
            if control.should_save:
                time.now += checkpoint
                made.on_save(args, state, control)
                found.append(step / STEPS)
        return found

    return run


def test_every_update_is_saved_where_that_costs_a_twentieth_or_less(saved_at):
    assert saved_at(update=21.0, checkpoint=1.0, updates=5) == [1, 2, 3, 4, 5]
    assert saved_at(update=0.0, checkpoint=0.0, updates=3) == [1, 2, 3]


@pytest.mark.parametrize(("update", "checkpoint"), [(10.0, 5.0), (60.0, 90.0), (7.0, 1.0)])
def test_a_dear_checkpoint_takes_a_twentieth_of_the_time_and_the_loss_is_bounded(
    saved_at, update, checkpoint
):
    found = saved_at(update, checkpoint, 400)
    assert found[0] == 1
    gaps = [(after - before) * update for before, after in pairwise(found)]
    assert min(gaps) >= 20 * checkpoint
    assert max(gaps) < 20 * checkpoint + update  # and so much is lost at most
    assert len(found) * checkpoint <= 0.06 * 400 * update


def test_who_says_when_to_save_is_obeyed(saved_at):
    assert saved_at(10.0, 0.0, 5, save_steps=2) == []  # transformers' own callback does it
    assert saved_at(10.0, 0.0, 5, save_strategy="no") == []


def test_the_first_process_decides_for_all(saved_at, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "process_index", 1)
    assert saved_at(10.0, 0.0, 3) == []
    assert saved_at(10.0, 0.0, 3, others=1.0) == [1, 2, 3]


@pytest.mark.parametrize(("share", "steps"), [(1e9, [4, 8, 12]), (0.0, [4, 12])])
def test_the_trainer_saves_after_updates_unless_told_otherwise(
    make_trainer, monkeypatch, share, steps
):
    monkeypatch.setattr(pace, "SHARE", share)
    trainer = make_trainer(save_strategy="steps", total_episodes=24)  # 3 updates of 4 steps
    trainer.train()
    found = list_checkpoints(Path(trainer.args.output_dir))
    assert sorted(int(p.name.split("-")[-1]) for p in found) == steps


def test_what_others_do_on_saving_is_timed(make_trainer):
    class Hashes(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            time.now += 3.0

    time = Time()
    trainer = make_trainer(save_strategy="steps")
    trainer.add_callback(Hashes())
    trainer.get_train_dataloader()  # as `train` does, once all callbacks are there
    (made,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, SavePace)]
    made.clock = time
    made.asked = 0.0
    trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)
    assert made.cost == 3.0
    trainer.get_train_dataloader()
    assert sum(isinstance(c, SavePace) for c in trainer.callback_handler.callbacks) == 1
