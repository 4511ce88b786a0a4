"""An order of rows inside trainers: on two processes, and against what a trainer may do to rows."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import trl
from datasets import Dataset

from align.data.curriculum import competence
from align.data.sampling import DrawOrder, OrderPlan, OrderSampler, Pacing
from align.engine.trainers import SFTTrainer
from align.errors import ConfigError
from align.ppo.loader import PromptStream

SCRIPT = Path(__file__).with_name("order_script.py")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_draw_and_train_as_one(policy_dir, tmp_path, on_two_processes):
    facts, weights = {}, {}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    script = runpy.run_path(str(SCRIPT))
    script["train"](policy_dir, tmp_path / "one", 4)
    on_two_processes([str(SCRIPT), str(policy_dir), str(tmp_path / "two"), "2"], tmp_path)
    for name, rank in (("one", 0), ("two", 0), ("two", 1)):
        facts[name, rank] = json.loads((tmp_path / name / f"facts-{rank}.json").read_text())
        weights[name, rank] = torch.load(tmp_path / name / f"weights-{rank}.pt")
    assert facts["two", 0]["processes"] == 2
    assert facts["one", 0]["log"] == facts["two", 0]["log"] == facts["two", 1]["log"]
    grown = [row["curriculum/competence"] for row in facts["one", 0]["log"]]
    assert grown == sorted(grown)
    assert (grown[0], grown[-1]) == (0.3, 1.0)  # adaptive, by the loss that ranks share
    # A batch of 4 on one process is a batch of 2 on each of two: the same rows at the same time.
    both = zip(facts["two", 0]["rows"], facts["two", 1]["rows"], strict=True)
    assert [first + second for first, second in both] == facts["one", 0]["rows"]
    for key, weight in weights["one", 0].items():
        assert torch.equal(weights["two", 0][key], weights["two", 1][key]), key
        assert torch.allclose(weights["two", 0][key], weight, atol=1e-5), key


@pytest.fixture
def trainer(tiny_llama, tiny_tokenizer, tmp_path):
    """`trainer(order, **arguments)`: of SFT, on 24 rows whose token ids are their number."""

    def make(order: OrderPlan | None, rows: int = 24, **arguments) -> SFTTrainer:
        args = trl.SFTConfig(
            output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False, seed=0,
            per_device_train_batch_size=3, gradient_checkpointing=False, **arguments,
        )  # fmt: skip
        return SFTTrainer(
            model=tiny_llama(),
            args=args,
            train_dataset=Dataset.from_dict({"input_ids": [[i, i] for i in range(rows)]}),
            processing_class=tiny_tokenizer,
            order=order,
        )

    return make


def epoch(loader) -> list[int]:
    return [int(ids[0]) for batch in loader for ids in batch["input_ids"]]


def test_the_loader_draws_the_order_that_the_same_seed_draws_in_plain_python(trainer):
    hard = np.arange(24.0)[::-1].copy()
    plan = OrderPlan(24, 5, hard, "easy", pacing=None)
    loader = trainer(plan).get_train_dataloader()
    plain = OrderSampler(DrawOrder(24, 3, seed=5, difficulty=hard, per_epoch=24))
    first, second = epoch(loader), epoch(loader)
    assert [first, second] == [list(plain), list(plain)]
    assert sorted(first) == sorted(second) == list(range(24))
    loader.set_epoch(0)
    assert epoch(loader) == first


def test_dropped_last_batches_take_no_row_out_of_a_pass(trainer):
    plan = OrderPlan(23, 5, np.arange(23.0))
    loader = trainer(plan, rows=23, dataloader_drop_last=True).get_train_dataloader()
    drawn = epoch(loader) + epoch(loader)
    assert len(drawn) == 42
    assert set(drawn[:23]) == set(range(23))


def test_pacing_runs_over_half_of_the_training_unless_said(trainer):
    made = trainer(
        OrderPlan(24, 0, np.arange(24.0), pacing=Pacing("linear", 0.25)), num_train_epochs=2
    )
    made.get_train_dataloader()
    pacing = competence("linear", 0.25, 8)  # 2 epochs of 8 steps
    assert [made.draws.pool_at(s) for s in range(16)] == [
        max(3, round(np.ceil(24 * pacing(s) - 1e-9))) for s in range(16)
    ]


def test_rows_that_the_trainer_joins_are_refused(trainer):
    plan = OrderPlan(24, 5, np.arange(24.0))
    with pytest.raises(ConfigError, match="24 rows were measured, but the trainer made"):
        trainer(plan, packing=True, max_length=16, padding_free=False)


def test_prompts_of_two_ranks_are_those_of_one_and_a_cursor_goes_on():
    rows = Dataset.from_dict({"prompt": [str(n) for n in range(24)]})
    plan = OrderPlan(24, 3, np.arange(24.0), pacing=Pacing("linear", 0.25, steps=4))

    def stream(count: int, rank: int = 0, world: int = 1) -> PromptStream:
        made = PromptStream(rows, count, 0, rank, world)
        made.draws = plan.open(count * world, 6)
        return made

    one, parts = stream(6), [stream(3, rank, 2) for rank in (0, 1)]
    drawn = [one.next()[0] for _ in range(6)]
    assert [[*parts[0].next()[0], *parts[1].next()[0]] for _ in range(6)] == drawn
    assert {int(prompt) for prompt in drawn[0]} == set(range(6))  # the easiest quarter
    assert {prompt for batch in drawn for prompt in batch} == set(rows["prompt"])
    again = stream(6)
    again.cursor = 18
    assert [again.next()[0] for _ in range(3)] == drawn[3:]
