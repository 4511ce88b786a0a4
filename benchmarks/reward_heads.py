"""Training a reward model with four heads on one trunk, beside one head and TRL's RewardTrainer.

    python -m benchmarks.reward_heads --json reward_heads.json

A float32 Llama of 5.8M parameters (configs/models/llama-6m.json) with random weights, pairs of
hh_harmless (shared data) of at most 384 tokens, batches of 16, each arm in a process of its own
with the same number of threads, in turn:

- four: `align.engine.objective_trainer` with four heads and the bootstrap;
- one: the same with one head;
- trl: TRL's RewardTrainer, one head.

Timed is `trainer.train()` over the given steps, less that of one step. It takes about ten minutes
on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from align.config.sections import DataSection
from align.data import fit_length, load_splits
from align.data.rows import plain_text
from align.engine.create import create_model
from align.engine.models import load_reward_start
from align.engine.objective import Objective
from align.engine.objective_trainer import ObjectiveTrainer
from align.engine.reward_batches import RewardCollator, reward_examples
from align.engine.scorer import Scorer
from benchmarks.paired import Json, compared, machine, peak_megabytes, run_arm, versions

MODULE = "benchmarks.reward_heads"
ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "configs" / "models" / "llama-6m.json"
DATA = ROOT.parent / "shared" / "data" / "hh_harmless.jsonl.gz"
ARMS = {"four": 4, "one": 1, "trl": 1}
LONGEST, BATCH = 384, 16


def main(arguments: list[str]) -> int:
    """Run everything and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args(arguments)
    turns: list[dict[str, Json]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = prepare(Path(name), given.data, given.steps * BATCH)
        for turn in range(given.rounds):
            names = list(ARMS)[turn % len(ARMS) :] + list(ARMS)[: turn % len(ARMS)]
            options = [f"--folder={folder}", f"--steps={given.steps}", f"--threads={given.threads}"]
            turns.append({arm: run_arm(MODULE, [arm, *options]) for arm in names})
            print(turn, {arm: round(found["seconds"], 2) for arm, found in turns[-1].items()})
    figures: Json = {
        "four_heads_one_head": compared([(t["four"], t["one"]) for t in turns])
        | {"peer": "Align, one head"},
        "four_heads_trl": compared([(t["four"], t["trl"]) for t in turns]),
        "peer": "trl",
        "versions": versions(["trl", "transformers", "torch"]),
        "device": machine(),
        "threads": given.threads,
    }
    given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    for key in ("four_heads_one_head", "four_heads_trl"):
        print(f"{key}: {figures[key]['ratio']:.2f}")
    return 0


def prepare(folder: Path, data: Path, count: int) -> Path:
    """A model, its tokenizer and the pairs, saved for the arms."""
    section = DataSection.model_validate(
        {"train": str(data), "validation_fraction": 0, "bad_rows": "quarantine"}
    )
    rows = load_splits(section, "preference").train
    texts = [plain_text(row[name]) for row in rows for name in ("prompt", "chosen", "rejected")]
    corpus = folder / "texts.jsonl"
    corpus.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    base = create_model(
        MODEL,
        folder / "base",
        tokenizer_data=[corpus],
        vocab_size=4096,
        chat_template="chatml",
        seed=0,
    )
    kept, _ = fit_length(rows, "preference", AutoTokenizer.from_pretrained(base), LONGEST)
    kept.select(range(min(count, len(kept)))).to_json(folder / "pairs.jsonl")
    return folder


def arm(arguments: list[str]) -> int:
    """Time one arm and print its figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=ARMS)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    lines = (given.folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    rows = Dataset.from_list([json.loads(line) for line in lines])
    first = time_of(given.name, given.folder, rows, 1)
    whole = time_of(given.name, given.folder, rows, given.steps)
    print(json.dumps({"seconds": whole - first, "peak_mb": peak_megabytes()}))
    return 0


def time_of(name: str, folder: Path, rows: Dataset, steps: int) -> float:
    """Seconds of `trainer.train()`."""
    trainer = make_trainer(name, folder, rows, steps)
    started = time.perf_counter()
    trainer.train()
    return time.perf_counter() - started


def make_trainer(name: str, folder: Path, rows: Dataset, steps: int) -> Any:
    """The trainer of an arm; all have the same arguments."""
    base = folder / "base"
    tokenizer = AutoTokenizer.from_pretrained(base)
    args = RewardConfig(
        output_dir=str(folder / name),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        max_length=LONGEST,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    if name == "trl":
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        model.config.pad_token_id = tokenizer.pad_token_id
        return RewardTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
    heads = ARMS[name]
    model = load_reward_start(base, tokenizer, seed=0, heads=heads)
    args.remove_unused_columns = False
    resample = 0 if heads > 1 else None
    return ObjectiveTrainer(
        model=Scorer(model),
        args=args,
        data_collator=RewardCollator(tokenizer.pad_token_id),
        train_dataset=reward_examples(rows, "pairs", tokenizer, heads=heads, resample=resample),
        processing_class=tokenizer,
        objective=Objective(),
    )


if __name__ == "__main__":
    run = arm if sys.argv[1:2] == ["arm"] else main
    raise SystemExit(run(sys.argv[2:] if run is arm else sys.argv[1:]))
