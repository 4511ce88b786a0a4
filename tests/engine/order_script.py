"""SFT in a curriculum on one process or several. See test_order.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.data.sampling import OrderPlan, Pacing
from align.engine.trainers import SFTTrainer


class Noting(SFTTrainer):
    """Notes the rows of every batch that this process trains on."""

    rows: list[list[int]]

    def compute_loss(self, model, inputs, *args, **kwargs):
        if model.training:
            # Row n is a text of its own length: n + 3 tokens.
            self.rows.append([int(n) - 3 for n in (inputs["labels"] != -100).sum(dim=1)])
        return super().compute_loss(model, inputs, *args, **kwargs)


def train(model: Path, out: Path, batch: int) -> None:
    """Train, and write what every process trained on."""
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = [[5 + (n * k) % 90 for k in range(n + 3)] for n in range(24)]
    args = trl.SFTConfig(
        output_dir=str(out), report_to=[], use_cpu=True, bf16=False, disable_tqdm=True,
        save_strategy="no", optim="sgd", learning_rate=0.5, lr_scheduler_type="constant",
        per_device_train_batch_size=batch, gradient_accumulation_steps=2, num_train_epochs=2,
        logging_steps=1, eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=4, seed=3,
        max_grad_norm=0.0, gradient_checkpointing=False,
    )  # fmt: skip
    plan = OrderPlan(
        24, 7, np.arange(24.0), "easy", Pacing("adaptive", 0.3, increment=0.25, min_delta=100.0)
    )
    trainer = Noting(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=args,
        train_dataset=Dataset.from_dict({"input_ids": ids}),
        eval_dataset=Dataset.from_dict({"input_ids": ids[:8]}),
        processing_class=tokenizer,
        order=plan,
    )
    trainer.rows = []
    trainer.train()
    figures = [
        {k: v for k, v in row.items() if k.startswith("curriculum/")}
        for row in trainer.state.log_history
        if "loss" in row
    ]
    facts = {"rows": trainer.rows, "log": figures, "processes": args.world_size}
    (out / f"facts-{args.process_index}.json").write_text(json.dumps(facts))
    inner = trainer.accelerator.unwrap_model(trainer.model)
    weights = {name: p.detach() for name, p in inner.named_parameters()}
    torch.save(weights, out / f"weights-{args.process_index}.pt")


if __name__ == "__main__":
    train(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
