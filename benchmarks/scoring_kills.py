"""200,000 answers scored by processes that are killed: every row once, and flat memory.

    python -m benchmarks.scoring_kills --json kills.json

`score_parquet` scores 25,000 prompts with eight answers each by a tiny model, once without a break
and once by processes of which each but the last dies by `kill -9` at a random moment. Both files
must be the same, row by row. Memory is the peak of the resident size after the first tenth of the
rows and at the end of the unbroken run, and of every killed process. Compares no times.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from align.engine.create import train_tokenizer
from benchmarks.paired import Json, machine, peak_megabytes, versions
from reward.model import RewardModel, initialise_head
from reward.pool import Progress, score_parquet

MODULE = "benchmarks.scoring_kills"
GROUP, BLOCK = 8, 1000
WORDS = ("where", "is", "my", "parcel", "order", "bill", "office", "please", "send", "it", "back")


def main(arguments: list[str]) -> int:
    """Score twice, compare, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--answers", type=int, default=200_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--chunk-rows", type=int, default=512)
    parser.add_argument("--pause", type=float, default=0.5, help="seconds at most before a kill")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, given.answers // GROUP)
        command = [sys.executable, "-m", MODULE, "child", str(folder), str(given.chunk_rows)]
        started = time.perf_counter()
        done = subprocess.run([*command, "whole"], check=True, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        whole: Json = json.loads(done.stdout.splitlines()[-1])
        kills = killed(command, folder, given.kills, given.seed, given.pause)
        different = compare(folder / "whole.parquet", folder / "killed.parquet")
    figures = {
        "answers": given.answers // GROUP * GROUP,
        "rows": given.answers // GROUP,
        "different_rows": different,
        "kills": len(kills),
        "killed_at_row": [row for row, _ in kills],
        "peak_mb_of_killed": [peak for _, peak in kills],
        "peak_mb_after_a_tenth": whole["tenth"],
        "peak_mb_at_the_end": whole["end"],
        "seconds_unbroken": seconds,
        "device": machine(),
        "versions": versions(["torch", "transformers", "pyarrow"]),
    }
    given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures))
    return 0 if different == 0 else 1


def prepare(folder: Path, rows: int) -> None:
    """A tiny model with its tokenizer, and the pool, written in blocks."""
    tokenizer = train_tokenizer(iter([" ".join(WORDS)] * 50), 400)
    tokenizer.save_pretrained(folder / "model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
    )
    model = LlamaForSequenceClassification(config)
    initialise_head(model, seed=0)
    model.save_pretrained(folder / "model")
    draw = random.Random(0)

    def words(low: int, high: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(low, high)))

    writer: pq.ParquetWriter | None = None
    for first in range(0, rows, BLOCK):
        block = [
            {
                "id": row,
                "prompt": f"{words(10, 40)}? ",
                "completions": [words(2, 20) for _ in range(GROUP)],
            }
            for row in range(first, min(first + BLOCK, rows))
        ]
        table = pa.Table.from_pylist(block)
        writer = writer or pq.ParquetWriter(folder / "in.parquet", table.schema)
        writer.write_table(table)
    if writer is None:
        raise ValueError("fewer answers than a prompt has.")
    writer.close()


def killed(
    command: list[str], folder: Path, kills: int, seed: int, pause: float = 0.5
) -> list[tuple[int, float]]:
    """Score with so many deaths; rows that were on the disk and peak megabytes at each."""
    draw = random.Random(seed)
    found: list[tuple[int, float]] = []
    parts = folder / "killed.parquet.parts"
    while True:
        process = subprocess.Popen([*command, "killed"], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        if len(found) == kills:
            if process.wait():
                raise RuntimeError("the last process failed.")
            return found
        for _ in range(draw.randint(1, 3)):  # a line for each chunk: it works by now
            if not process.stdout.readline():
                raise RuntimeError("a process ended before it was killed: fewer kills, or rows.")
        time.sleep(draw.uniform(0.0, pause))
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
        process.kill()
        if process.wait() != -signal.SIGKILL:
            raise RuntimeError("a process ended before it was killed: fewer kills, or rows.")
        peaks = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        peak = int(peaks[0].split()[1]) / 1024 if peaks else float("nan")
        rows = sum(pq.read_metadata(p).num_rows for p in parts.glob("part-*.parquet"))
        found.append((rows, peak))
        print(f"killed at {rows} rows, {peak:.0f} MB", flush=True)


def compare(first: Path, second: Path) -> int:
    """Rows that differ, row by row, in blocks; a missing or doubled row shifts all after it."""
    different = 0
    with pq.ParquetFile(first) as a, pq.ParquetFile(second) as b:
        if a.metadata.num_rows != b.metadata.num_rows:
            return abs(a.metadata.num_rows - b.metadata.num_rows)
        blocks = zip(a.iter_batches(BLOCK), b.iter_batches(BLOCK), strict=True)
        expected = 0
        for one, other in blocks:
            for left, right in zip(one.to_pylist(), other.to_pylist(), strict=True):
                different += left != right or left["id"] != expected
                expected += 1
    return different


def child(folder: Path, chunk_rows: int, name: str) -> int:
    """Score; a line for every chunk, and the peaks of memory at the end."""
    torch.set_num_threads(1)
    model = RewardModel.load(folder / "model", normalise=False)
    tenth = 0.0

    def progress(at: Progress) -> None:
        nonlocal tenth
        tenth = tenth or (peak_megabytes() if at.rows * 10 >= at.total else 0.0)
        print(at.rows, flush=True)

    score_parquet(
        model,
        folder / "in.parquet",
        folder / f"{name}.parquet",
        chunk_rows=chunk_rows,
        resume=True,
        progress=progress,
    )
    print(json.dumps({"tenth": tenth, "end": peak_megabytes()}))
    return 0


if __name__ == "__main__":
    given = sys.argv[1:]
    if given[:1] == ["child"]:
        raise SystemExit(child(Path(given[1]), int(given[2]), given[3]))
    raise SystemExit(main(given))
