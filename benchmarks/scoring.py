"""Reward scoring: `score_parquet` beside a plain transformers loop.

    python -m benchmarks.scoring --json scoring.json

A float32 Llama of 5.8M parameters (configs/models/llama-6m.json) with a score head and random
weights, a tokenizer of 4,096 tokens trained on the texts, and real dialogues (shared data
hh_harmless). Each arm in a process of its own, with the same number of threads, in turn:

- ours: `reward.pool.score_parquet`, from Parquet to Parquet, the journal and fsync included;
- unshared: the same without sharing prefixes, which says what of the gain is sharing;
- transformers: `AutoModelForSequenceClassification` on rows sorted by their number of tokens and
  padded, the batch size the fastest of 4, 8, 16, 32 and 64 on a sample (not timed).

Three pools: `pairs`, the two answers of each dialogue; `eight`, dialogues with eight answers each
(their own two and six of others); `eight_long`, the same for the longest dialogues. The scores of
both arms must agree. Leaves out starting and loading.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from align.engine.create import train_tokenizer
from benchmarks.paired import Json, compared, machine, peak_megabytes, run_arm, versions
from reward import pool, shared
from reward.model import RewardModel, initialise_head
from reward.tree import share

MODULE = "benchmarks.scoring"
ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "configs" / "models" / "llama-6m.json"
DATA = ROOT.parent / "shared" / "data" / "hh_harmless.jsonl.gz"
MARK = "\n\nAssistant:"
VOCABULARY, GROUP = 4096, 8
PEER_BATCHES = (4, 8, 16, 32, 64)
SAMPLE = 256  # answers on which the peer's batch size is chosen
LONGEST = 2700, 800  # characters of a prompt and of an answer: all fit 1,024 tokens
AGREE = 1e-4  # scores of both arms
POOLS = ("pairs", "eight", "eight_long")

Row = dict[str, str | list[str]]


def main(arguments: list[str]) -> int:
    """Run everything and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--answers", type=int, default=1200, help="of each pool")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pools", nargs="+", choices=POOLS, default=POOLS)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args(arguments)
    figures: Json = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = prepare(folder, given.data, given.model, given.answers)
        for pool_name in given.pools:
            turns = []
            for turn in range(given.rounds):
                order = list(ARMS)[turn % len(ARMS) :] + list(ARMS)[: turn % len(ARMS)]
                options = [f"--folder={folder}", f"--pool={pool_name}"]
                options += [f"--threads={given.threads}"]
                found = {arm_name: run_arm(MODULE, [arm_name, *options]) for arm_name in order}
                agree(folder, pool_name)
                for arm_name in order:
                    print(pool_name, arm_name, found[arm_name], flush=True)
                turns.append(found)
            figures[pool_name] = compared([(t["ours"], t["transformers"]) for t in turns])
            figures[pool_name] |= {"tokens": sizes[pool_name]}
            figures[f"{pool_name}_unshared"] = compared(
                [(t["unshared"], t["transformers"]) for t in turns]
            )
    figures |= {
        "peer": "transformers",
        "versions": versions(["transformers", "torch"]),
        "device": machine(),
        "threads": given.threads,
        "model": given.model.name,
    }
    given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    for key, one in figures.items():
        if isinstance(one, dict) and "ratio" in one:
            print(f"{key}: {one['ratio']:.2f}, memory {one['peak_memory_ratio']:.2f}")
    return 0


def prepare(folder: Path, data: Path, settings: Path, answers: int) -> dict[str, Json]:
    """The model, its tokenizer and the pools; tokens of each pool, counted three ways."""
    with gzip.open(data, "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    texts = (text for row in rows for text in (row["chosen"], row["rejected"]))
    tokenizer = train_tokenizer(texts, VOCABULARY)
    tokenizer.save_pretrained(folder / "model")
    config = AutoConfig.for_model(
        **json.loads(settings.read_text(encoding="utf-8")),
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1,
    )
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    initialise_head(model, seed=0)
    model.save_pretrained(folder / "model")
    sizes = {}
    for name, found in make_pools(rows, answers).items():
        pq.write_table(pa.Table.from_pylist(found), folder / f"{name}.parquet")
        encoded = [tokenizer(text + tokenizer.eos_token)["input_ids"] for text in flat_texts(found)]
        lengths = [len(row) for row in encoded]
        if max(lengths) > config.max_position_embeddings:
            raise ValueError(f"{name} has an answer of {max(lengths)} tokens.")
        sizes[name] = {
            "answers": len(encoded),
            "real": sum(lengths),
            "unique": len(share(encoded).ids),
            "longest": max(lengths),
        }
    return sizes


def make_pools(rows: Sequence[dict[str, str]], answers: int) -> dict[str, list[Row]]:
    """The three pools from dialogues whose last turn is the answer."""
    pairs = []
    for row in rows:
        prompt, mark, chosen = row["chosen"].rpartition(MARK)
        other, _, rejected = row["rejected"].rpartition(MARK)
        fits = len(prompt) <= LONGEST[0] and max(len(chosen), len(rejected)) <= LONGEST[1]
        if prompt == other and chosen.strip() and rejected.strip() and fits:
            pairs.append({"prompt": prompt + mark, "chosen": chosen, "rejected": rejected})
    random.Random(0).shuffle(pairs)
    drawn = random.Random(1)

    def eight(row: dict[str, str]) -> Row:
        others = [drawn.choice(pairs)["chosen"] for _ in range(GROUP - 2)]
        return {"prompt": row["prompt"], "completions": [row["chosen"], row["rejected"], *others]}

    by_length = sorted(pairs, key=lambda row: -len(row["prompt"]))
    return {
        "pairs": [dict(row) for row in pairs[: answers // 2]],
        "eight": [eight(row) for row in pairs[: answers // GROUP]],
        "eight_long": [eight(row) for row in by_length[: answers // GROUP]],
    }


def flat_texts(rows: Sequence[Row]) -> list[str]:
    """Prompt and answer of every answer, in the order of the file."""
    return [
        str(row["prompt"]) + answer
        for row in rows
        for answer in row.get("completions") or (row["chosen"], row["rejected"])
    ]


def agree(folder: Path, pool_name: str) -> None:
    """Refuse arms that computed different things."""
    found = {name: np.load(folder / f"{pool_name}.{name}.npy") for name in ARMS}
    for name, scores in found.items():
        gap = float(np.abs(scores - found["transformers"]).max())
        if not gap < AGREE:
            raise RuntimeError(f"{pool_name}: scores of {name} and the peer differ by {gap}.")


def arm(arguments: list[str]) -> int:
    """One measurement; prints its seconds, the process's peak memory and what it counted."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=sorted(ARMS))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--pool", choices=POOLS, required=True)
    parser.add_argument("--threads", type=int, required=True)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    seconds, scores, more = ARMS[given.name](given.folder, given.folder / f"{given.pool}.parquet")
    np.save(given.folder / f"{given.pool}.{given.name}.npy", scores)
    found = {
        "seconds": seconds,
        "peak_mb": peak_megabytes(),
        "answers": len(scores),
        "answers_per_second": len(scores) / seconds,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(found | more))
    return 0


Measured = tuple[float, np.ndarray, Json]  # seconds, scores, and what else is of interest


def _ours(folder: Path, source: Path) -> Measured:
    model = RewardModel.load(folder / "model", normalise=False)
    target = source.with_suffix(".scored.parquet")
    warm = source.with_suffix(".warm.parquet")
    pq.write_table(pq.read_table(source).slice(0, 8), warm)
    pool.score_parquet(model, warm, target, overwrite=True)
    started = time.perf_counter()
    pool.score_parquet(model, source, target, overwrite=True)
    seconds = time.perf_counter() - started
    table = pq.read_table(target)
    if "reward" in table.column_names:
        return seconds, np.array([v for row in table["reward"].to_pylist() for v in row]), {}
    pairs = [table[f"reward_{side}"].to_numpy() for side in ("chosen", "rejected")]
    return seconds, np.stack(pairs, axis=1).flatten(), {}


def _unshared(folder: Path, source: Path) -> Measured:
    plain = shared.pooled_states

    def nothing_in_common(*given: object, **settings: object) -> object:
        return plain(*given, **settings, least=1 << 30)

    pool.pooled_states = nothing_in_common
    return _ours(folder, source)


@torch.inference_mode()
def _transformers(folder: Path, source: Path) -> Measured:
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")

    def score(texts: Sequence[str], batch: int) -> np.ndarray:
        encoded = tokenizer([text + tokenizer.eos_token for text in texts])["input_ids"]
        order = sorted(range(len(encoded)), key=lambda index: -len(encoded[index]))
        scores = np.zeros(len(encoded))
        for first in range(0, len(order), batch):
            chosen = order[first : first + batch]
            inputs = tokenizer.pad(
                {"input_ids": [encoded[index] for index in chosen]}, return_tensors="pt"
            )
            scores[chosen] = model(**inputs).logits[:, 0].numpy()
        return scores

    def seconds_of(texts: Sequence[str], batch: int) -> float:
        started = time.perf_counter()
        score(texts, batch)
        return time.perf_counter() - started

    texts = flat_texts(pq.read_table(source).to_pylist())
    sample = random.Random(0).sample(texts, min(SAMPLE, len(texts)))
    score(sample[:8], 8)
    best = min(PEER_BATCHES, key=lambda batch: seconds_of(sample, batch))
    started = time.perf_counter()
    scores = score(flat_texts(pq.read_table(source).to_pylist()), best)
    return time.perf_counter() - started, scores, {"batch": best}


ARMS: dict[str, Callable[[Path, Path], Measured]] = {
    "ours": _ours,
    "unshared": _unshared,
    "transformers": _transformers,
}

if __name__ == "__main__":
    given = sys.argv[1:]
    raise SystemExit(arm(given[1:]) if given[:1] == ["arm"] else main(given))
