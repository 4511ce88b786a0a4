"""Grouped batches in real runs: plain training's losses, fewer tokens, the same after a stop."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from align.config.load import load_config
from align.config.stages import STAGES
from align.data.sampling import GroupSampler, prompt_groups
from align.engine.prefix import PrefixSharing
from align.engine.throughput import SpeedMixin
from align.errors import CheckpointError, Interrupted
from align.run import open_run, read_jsonl

COMMON = [
    "trainer.learning_rate=1e-3",
    "trainer.per_device_train_batch_size=4",
    "trainer.num_train_epochs=1",
    "trainer.logging_steps=1",
    "trainer.max_length=96",
    "data.validation_fraction=0",
    "tracking.report_to=[none]",
]
EXTRA = {"reward": ["normalisation.prompts=4", "normalisation.max_new_tokens=4"]}
ROWS = 21  # of 6 prompts: the last batch is short


def pairs() -> list[dict[str, Any]]:
    """Prompts have 1 to 6 pairs, which stand apart in the file."""
    counts = [6, 5, 4, 3, 2, 1]
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Where is order {p}, which I made on Monday?"}],
            "chosen": [{"role": "assistant", "content": f"On its way, {n}."}],
            "rejected": [{"role": "assistant", "content": "I" + " do" * (n + 1) + " not know."}],
        }
        for n in range(6)
        for p, count in enumerate(counts)
        if n < count
    ]
    assert len(rows) == ROWS
    return rows


@pytest.fixture
def trained(monkeypatch) -> list[list[int]]:
    """The rows of each batch that trainers trained on, by their numbers in the file."""
    numbers = {_named(json.dumps(row)): number for number, row in enumerate(pairs())}
    seen: list[list[int]] = []
    original = SpeedMixin.compute_loss

    def noting(self, model, inputs, *args, **kwargs):
        if model.training:
            texts = self.processing_class.batch_decode(inputs["input_ids"])
            seen.append([numbers[_named(text)] for text in texts if "On its way" in text])
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(SpeedMixin, "compute_loss", noting)
    return seen


def _named(text: str) -> tuple[str, ...]:
    """The numbers of the prompt and of the chosen answer."""
    found = re.search(r"order (\d),.*way, (\d)", text, re.DOTALL)
    assert found is not None
    return found.groups()


@pytest.fixture
def computed(monkeypatch) -> list[tuple[int, int]]:
    """(real, computed) tokens of each training pass of a policy or reward model."""
    seen: list[tuple[int, int]] = []
    original = PrefixSharing.lay_out

    def noting(self, input_ids, attention_mask, *args, **kwargs):
        before = (self.counts.real, self.counts.computed)
        layout = original(self, input_ids, attention_mask, *args, **kwargs)
        if torch.is_grad_enabled():
            seen.append((self.counts.real - before[0], self.counts.computed - before[1]))
        return layout

    monkeypatch.setattr(PrefixSharing, "lay_out", noting)
    return seen


@pytest.fixture
def launch(tmp_path, policy_dir):
    """`launch(stage, name, *overrides)`: the run's directory."""
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in pairs()))

    def run(stage: str, name: str, *overrides: str, resume: bool = False) -> Path:
        given = [f"run.dir={tmp_path / name}", f"model.path={policy_dir}", f"data.train={file}"]
        given += [*COMMON, *EXTRA.get(stage, []), *overrides]
        config = load_config(STAGES[stage], None, given)
        with open_run(config, resume=resume) as opened:
            importlib.import_module(f"align.stages.{stage}").run(config, opened, resume=resume)
        return tmp_path / name

    return run


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_jsonl(run / "metrics.jsonl") if "loss" in row]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


@pytest.mark.parametrize("stage", ["dpo", "reward"])
def test_the_losses_are_plain_trainings_and_the_tokens_fewer(launch, trained, computed, stage):
    on = "model.prefix_sharing=on"
    shared = launch(stage, "shared", "data.batches=grouped", on)
    batches, tokens = list(trained), list(computed)
    trained.clear(), computed.clear()
    plain = launch(stage, "plain", "data.batches=grouped", "model.prefix_sharing=off")
    assert trained == batches
    groups = prompt_groups(row["prompt"] for row in pairs())
    order = GroupSampler(groups, 4, seed=42).order(epoch=0).tolist()
    assert batches == [order[i : i + 4] for i in range(0, ROWS, 4)]  # as plain Python draws it
    assert losses(shared) == pytest.approx(losses(plain), rel=1e-4, abs=1e-5)
    for name, value in weights(plain).items():
        assert torch.allclose(weights(shared)[name], value, atol=2e-5), name
    trained.clear(), computed.clear()
    launch(stage, "random", on)
    assert trained != batches
    assert sum(real for real, _ in computed) == sum(real for real, _ in tokens)
    assert sum(found for _, found in tokens) < 0.8 * sum(found for _, found in computed)


@pytest.mark.parametrize(("stage", "stop"), [("dpo", 3), ("reward", 5)])
def test_a_stopped_and_resumed_run_is_the_same_run(launch, signal_at, trained, stage, stop):
    more = (
        "data.batches=grouped",
        "trainer.gradient_accumulation_steps=2",  # 3 steps an epoch
        "trainer.num_train_epochs=3",
    )
    straight = launch(stage, "straight", *more)
    whole = list(trained)
    epochs = [whole[start : start + 6] for start in (0, 6, 12)]
    assert all(sorted(n for batch in epoch for n in batch) == [*range(ROWS)] for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    trained.clear()
    with signal_at(stop), pytest.raises(Interrupted):
        launch(stage, "stopped", *more)
    stopped = launch(stage, "stopped", *more, resume=True)
    assert trained == whole
    first, second = weights(straight), weights(stopped)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert losses(straight) == losses(stopped)


def test_a_checkpoint_of_other_prompts_is_refused(launch, signal_at, tmp_path):
    with signal_at(2), pytest.raises(Interrupted):
        launch("dpo", "stopped", "data.batches=grouped")
    file = tmp_path / "pairs.jsonl"
    file.write_text(file.read_text().replace("order 5,", "order 0,"))
    with pytest.raises(CheckpointError, match=r"data\.batches: the saved order .* is not this one"):
        launch("dpo", "stopped", "data.batches=grouped", resume=True)
