"""Tokens a second and the share of the peak: counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from align.engine import throughput
from align.engine.prefix import Counts
from align.engine.throughput import SpeedMixin, cpu_peak, flops_per_token, real_tokens, shares

CONFIG = {
    "vocab_size": 50,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@pytest.mark.parametrize("kind", [LlamaForCausalLM, LlamaForSequenceClassification])
def test_arithmetic_of_a_token_is_counted_by_hand(kind):
    layer = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 12  # q, k and v, o, mlp
    head = 2 * 8 if kind is LlamaForSequenceClassification else 0
    expected = 6 * (2 * layer + head) + 6 * 2 * 8 * 30
    assert flops_per_token(kind(LlamaConfig(**CONFIG, num_labels=2)), 30) == expected


def test_padding_is_not_counted():
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    ids = torch.zeros(2, 3).long()
    assert real_tokens({"input_ids": ids, "attention_mask": mask, "completion_mask": mask}) == (
        2,
        5,
    )
    assert real_tokens({"prompt_mask": mask, "completion_mask": mask[:, :2]}) == (2, 9)
    assert real_tokens({"input_ids": ids}) == (2, 6)
    assert real_tokens({"x": 1}) == (0, 0)


def test_shares_of_several_backbones():
    assert shares([]) == {}
    first, second = Counts(), Counts()
    first.note(100, 60, 30, shared=True)
    second.note(100, 60, 100, shared=False)
    assert shares([first, second]) == {"speed/real_share": 0.6, "speed/computed_share": 0.65}


class Host:
    logged: dict[str, float]

    def compute_loss(self, model, inputs):
        return torch.zeros(())

    def training_step(self, model, inputs):
        return self.compute_loss(model, inputs)

    def log(self, logs):
        self.logged = logs


class Fast(SpeedMixin, Host):
    def __init__(self):
        self.model = LlamaForCausalLM(LlamaConfig(**CONFIG))
        self.accelerator = type("Alone", (), {"num_processes": 1})
        self.args = None


def test_speed_is_tokens_by_time_since_the_last_log(monkeypatch):
    clock = iter([10.0, 12.0, 16.0])
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(throughput, "cpu_peak", lambda threads: 1e6)
    trainer, batch = Fast(), {"attention_mask": torch.ones(2, 15)}
    for _ in range(2):
        trainer.training_step(trainer.model, batch)
    trainer.log({"loss": 1.0})
    assert trainer.logged["speed/tokens_per_second"] == 30.0
    each = flops_per_token(trainer.model, 15)
    assert trainer.logged["speed/mfu"] == pytest.approx(30.0 * each / 1e6)
    trainer.log({"eval_loss": 1.0})
    assert set(trainer.logged) == {"eval_loss"}
    trainer.model.eval()
    trainer.compute_loss(trainer.model, batch)
    trainer.model.train()
    trainer.training_step(trainer.model, batch)
    trainer.log({"loss": 1.0})
    assert trainer.logged["speed/tokens_per_second"] == 30 / 4


def test_a_cpu_has_a_peak():
    assert cpu_peak(torch.get_num_threads()) > 1e8
    assert throughput.peak_flops(nn.Linear(2, 2), None) == cpu_peak(torch.get_num_threads())
