"""SFT in grouped batches on one process or several, and resumed. See test_batches.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from align.data.sampling import OrderPlan
from align.engine.trainers import SFTTrainer
from align.stages.batches import plan_groups

ROWS, BATCH, STOP = 24, 2, 9  # of 12 steps in two epochs


class Noting(SFTTrainer):
    """Notes the rows of every batch that this process trains on."""

    rows: list[list[int]]

    def compute_loss(self, model, inputs, *args, **kwargs):
        # Row n is a text of its own length: n + 3 tokens.
        self.rows.append([int(n) - 3 for n in (inputs["labels"] != -100).sum(dim=1)])
        return super().compute_loss(model, inputs, *args, **kwargs)


class Keeping(TrainerCallback):
    """Keeps what `align.stages.training` puts in a checkpoint."""

    def __init__(self, trainer: Noting):
        self.trainer, self.state = trainer, {}

    def on_save(self, args, state, *more, **kwargs):
        """At the first checkpoint; the second is of the end."""
        if state.global_step == STOP:
            self.state = self.trainer.extra_state()


def plan() -> OrderPlan:
    """Eight prompts of 1 to 5 rows."""
    prompts = [f"{n % 5 if n < 20 else n}?" for n in range(ROWS)]
    return plan_groups(Dataset.from_dict({"prompt": prompts}), BATCH, seed=7)[0]


def train(model: Path, out: Path, accumulation: int) -> None:
    """Train, train again from a checkpoint, and write what every process trained on."""
    torch.set_num_threads(1)
    straight = trainer_of(model, out, accumulation)
    keeping = Keeping(straight)
    straight.add_callback(keeping)
    straight.train()
    resumed = trainer_of(model, out, accumulation)
    resumed.load_extra_state(keeping.state)
    resumed.train(resume_from_checkpoint=str(out / f"checkpoint-{STOP}"))
    facts = {
        "straight": straight.rows,
        "resumed": resumed.rows,
        "processes": resumed.args.world_size,
    }
    rank = resumed.args.process_index
    (out / f"facts-{rank}.json").write_text(json.dumps(facts))
    for name, trainer in {"straight": straight, "resumed": resumed}.items():
        inner: Any = trainer.accelerator.unwrap_model(trainer.model)
        weights = {key: p.detach() for key, p in inner.named_parameters()}
        torch.save(weights, out / f"{name}-{rank}.pt")


def trainer_of(model: Path, out: Path, accumulation: int) -> Noting:
    """A trainer that saves in the middle of its second epoch."""
    ids = [[5 + (n * k) % 90 for k in range(n + 3)] for n in range(ROWS)]
    args = trl.SFTConfig(
        output_dir=str(out), report_to=[], use_cpu=True, bf16=False, disable_tqdm=True,
        save_strategy="steps", save_steps=STOP, optim="sgd", learning_rate=0.5,
        lr_scheduler_type="constant", per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=accumulation, num_train_epochs=2, seed=3,
        max_grad_norm=0.0, gradient_checkpointing=False,
    )  # fmt: skip
    made = Noting(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=args,
        train_dataset=Dataset.from_dict({"input_ids": ids}),
        processing_class=AutoTokenizer.from_pretrained(model),
        order=plan(),
    )
    made.rows = []
    return made


if __name__ == "__main__":
    train(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
