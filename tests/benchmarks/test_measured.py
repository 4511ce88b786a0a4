"""What the benchmarks read off a GPU: its seams, on a CPU that passes for one."""

from __future__ import annotations

import argparse
import json

import pytest
import torch

from align.engine import prefix
from align.engine.prefix import Counts
from benchmarks import measured, training
from benchmarks.__main__ import row
from benchmarks.paired import machine


@pytest.fixture
def gpu(monkeypatch):
    """torch.cuda's answers; what was called stands in the list, in order."""
    called: list[str] = []

    def answers(name, value=None):
        def call(*args):
            called.append(name)
            return value

        monkeypatch.setattr(torch.cuda, name, call)

    monkeypatch.setattr(measured, "on_gpu", lambda: True)
    answers("synchronize")
    answers("reset_peak_memory_stats")
    answers("max_memory_allocated", 3 * 2**20)
    answers("get_device_name", "NVIDIA H100")
    return called


def test_a_cpu_is_itself(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(measured, "peak_megabytes", lambda: 7.0)
    measured.forget_peak()
    assert (measured.device_name(), measured.peak()) == (machine(), 7.0)
    assert measured.best_attention(half=True) == {}


def test_flash_attention_serves_trl_where_it_can(monkeypatch, gpu):
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: True)
    assert measured.best_attention(half=True) == {"attn_implementation": "flash_attention_2"}
    assert measured.best_attention(half=False) == {}
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: False)
    assert measured.best_attention(half=True) == {}


def test_unique_tokens_count_after_the_first_step_and_only_where_all_were_shared():
    shared, mixed = Counts(3, 3, 100, 90, 40), Counts(3, 2, 100, 90, 60)
    assert (measured.unique_so_far(shared), measured.unique_so_far(mixed)) == (40, None)
    found = measured.unique_speed([10, 40, 70], 2.0, 5.0, 300.0)
    assert found == {"unique_tokens_per_second": 30.0, "mfu_unique": 0.5}
    assert measured.unique_speed([10, 70], 2.0, 5.0, None) == {"unique_tokens_per_second": 30.0}
    assert measured.unique_speed([10, None], 2.0, 5.0, 300.0) == {}
    assert measured.unique_speed([], 2.0, 5.0, 300.0) == {}
    arms = [found, {"unique_tokens_per_second": 10.0, "mfu_unique": 0.1}]
    assert measured.unique_medians(arms) == {
        "unique_tokens_per_second": 20.0,
        "mfu_unique": pytest.approx(0.3),
    }
    assert measured.unique_medians([found, {}]) == {}


def test_an_arm_on_a_gpu_says_its_memory_and_unique_tokens(tmp_path, monkeypatch, gpu, small):
    monkeypatch.setattr(prefix, "counted_costs", lambda _: None)  # share every batch
    training.prepare(tmp_path / "made", small, training.made_pairs(20, 5, 8), words=True)
    job = {"steps": 3, "threads": 1, "args": {"per_device_train_batch_size": 2}}
    ours, peer = (training.measure("DPO", side, tmp_path / "made", job) for side in ("ours", "trl"))
    assert ours["peak_mb"] == peer["peak_mb"] == 3.0
    # forgotten before the first step, read after the last one
    one = ["synchronize", "reset_peak_memory_stats", *["synchronize"] * 3, "max_memory_allocated"]
    assert gpu == one * 2
    # two steps of two pairs: a prompt of 20, two answers of 5 and their ends
    assert ours["unique_tokens_per_second"] == pytest.approx(2 * 2 * 32 / ours["seconds"])
    assert ours["mfu_unique"] / ours["mfu"] == pytest.approx(32 / 52)
    assert "mfu_unique" not in peer
    assert ours["attention"] == peer["attention"] == "sdpa"
    figures = training.figures_of([(ours, peer)])
    given = argparse.Namespace(json=tmp_path / "out.json", threads=1)
    training.finish(given, {"small_hh": figures})
    kept = json.loads(given.json.read_text())
    assert kept["device"] == "NVIDIA H100"
    line = row("dpo small_hh", kept["small_hh"], kept)
    assert f"{figures['unique_tokens_per_second']:.0f} unique tokens/s, MFU 0." in line
    assert line.endswith("| NVIDIA H100 |")
