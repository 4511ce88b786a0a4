"""Replay: the loss by hand, the order of the buffer, and resuming."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from align.engine.guards.base import Guard
from align.engine.guards.replay import Replay, collate
from align.errors import ModelError
from align.stages.sft import sequence_nll


def example(*ids: int, prompt: int = 0) -> dict[str, torch.Tensor]:
    tokens = torch.tensor([ids])
    labels = tokens.clone()
    labels[:, :prompt] = -100
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}


ROWS = [example(5, 6, 7, 8), example(9, 10, 11, prompt=1), example(20, 21, 22, 23, 24, prompt=2)]


def test_the_penalty_is_the_mean_loss_of_the_labelled_tokens(tiny_llama):
    model = tiny_llama(seed=1).eval()
    guard = Replay(ROWS, sequence_nll, strength=0.7, batch_size=3)
    assert isinstance(guard, Guard)
    total, count = 0.0, 0
    for row in ROWS:
        logprobs = model(input_ids=row["input_ids"]).logits[0].log_softmax(-1)
        for place, label in enumerate(row["labels"][0].tolist()[1:]):
            if label != -100:
                total, count = total - float(logprobs[place, label]), count + 1
    assert guard.penalty(model, {}).item() == pytest.approx(0.7 * total / count, rel=1e-5)


def test_padding_changes_nothing(tiny_llama):
    model = tiny_llama(seed=1).double().eval()
    together = sequence_nll(model, collate(ROWS, "cpu"))
    assert together.item() == pytest.approx(
        sum(sequence_nll(model, row).item() for row in ROWS), rel=1e-6
    )


def test_each_pass_reads_every_row_once_and_a_resumed_guard_goes_on():
    seen: list[int] = []

    def note(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        seen.extend(batch["input_ids"][:, 0].tolist())
        return sum(p.sum() for p in model.parameters())

    rows = [example(i, 1) for i in range(6)]
    model = nn.Linear(1, 1)
    guard = Replay(rows, note, 1.0, batch_size=2, seed=3)
    for _ in range(4):
        guard.penalty(model, {})
    state = guard.state_dict()
    for _ in range(2):
        guard.penalty(model, {})
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))
    assert seen[:6] != seen[6:]
    resumed = Replay(rows, note, 1.0, batch_size=2, seed=3)
    resumed.load_state_dict(state)
    for _ in range(2):
        resumed.penalty(model, {})
    assert seen[12:] == seen[8:12]


def test_an_empty_buffer_is_refused():
    with pytest.raises(ModelError, match=r"guards\.data gave none"):
        Replay([], sequence_nll, 1.0)
