"""Grouped batches inside trainers: on two processes, and against what a trainer may do to rows."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import trl
from datasets import Dataset

from align.data.sampling import GroupSampler, OrderPlan
from align.engine.trainers import SFTTrainer
from align.errors import ConfigError

SCRIPT = Path(__file__).with_name("batches_script.py")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_draw_train_and_resume_as_one(policy_dir, tmp_path, on_two_processes):
    facts, weights = {}, {}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    script = runpy.run_path(str(SCRIPT))
    script["train"](policy_dir, tmp_path / "one", 2)
    on_two_processes([str(SCRIPT), str(policy_dir), str(tmp_path / "two"), "1"], tmp_path)
    for name, rank in (("one", 0), ("two", 0), ("two", 1)):
        facts[name, rank] = json.loads((tmp_path / name / f"facts-{rank}.json").read_text())
        for kind in ("straight", "resumed"):
            weights[name, rank, kind] = torch.load(tmp_path / name / f"{kind}-{rank}.pt")
    assert facts["two", 0]["processes"] == 2
    sampler = GroupSampler(script["plan"]().groups, 2, seed=7)
    drawn = [sampler.order(epoch)[i : i + 2].tolist() for epoch in (0, 1) for i in range(0, 24, 2)]
    assert facts["one", 0]["straight"] == drawn
    assert facts["one", 0]["resumed"] == drawn[18:]  # 9 steps of 2 batches
    # Two batches in turn on one process are one on each of two: the same rows in each step.
    for kind, whole in (("straight", drawn), ("resumed", drawn[18:])):
        both = zip(facts["two", 0][kind], facts["two", 1][kind], strict=True)
        assert [batch for pair in both for batch in pair] == whole
    for key, weight in weights["one", 0, "straight"].items():
        assert torch.equal(weights["one", 0, "resumed"][key], weight), key
        found = weights["two", 0, "straight"][key]
        assert torch.equal(weights["two", 1, "straight"][key], found), key
        assert torch.equal(weights["two", 0, "resumed"][key], found), key
        assert torch.allclose(found, weight, atol=1e-5), key


@pytest.fixture
def trainer(tiny_llama, tiny_tokenizer, tmp_path):
    """`trainer(**arguments)`: of SFT, on 14 rows of 4 groups whose token ids are their number."""

    def make(**arguments) -> SFTTrainer:
        args = trl.SFTConfig(
            output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False, seed=0,
            per_device_train_batch_size=3, gradient_checkpointing=False, **arguments,
        )  # fmt: skip
        return SFTTrainer(
            model=tiny_llama(),
            args=args,
            train_dataset=Dataset.from_dict({"input_ids": [[i, i] for i in range(14)]}),
            processing_class=tiny_tokenizer,
            order=OrderPlan(14, 5, groups=np.arange(14) % 4),
        )

    return make


def epoch(loader) -> list[list[int]]:
    return [[int(ids[0]) for ids in batch["input_ids"]] for batch in loader]


def cut(rows) -> list[list[int]]:
    return [rows[i : i + 3].tolist() for i in range(0, 14, 3)]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_draws_the_batches_of_the_sampler_in_every_epoch(trainer, workers):
    loader = trainer(dataloader_num_workers=workers).get_train_dataloader()
    plain = GroupSampler(np.arange(14) % 4, 3, seed=5)
    first, second = epoch(loader), epoch(loader)
    assert [first, second] == [cut(plain.order(0)), cut(plain.order(1))]
    assert len(loader) == 5
    assert sum(len({row % 4 for row in batch}) for batch in first) <= 8
    loader.set_epoch(0)
    assert epoch(loader) == first


def test_rows_that_the_trainer_joins_are_refused(trainer):
    with pytest.raises(ConfigError, match=r"data\.batches: 14 rows were measured, but the trainer"):
        trainer(packing=True, max_length=16, padding_free=False)
