"""`score_parquet` killed at every moment at which the disk changes: no row is lost or doubled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
# One process imports everything once, and forks: each child kills itself at its own moment.
SCRIPT = """
import json, os, shutil, signal, sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from align.engine.create import train_tokenizer
from reward.model import RewardModel
from reward.pool import score_parquet

torch.set_num_threads(1)
folder = Path(sys.argv[1])
rows = [{"prompt": f"Question {i // 2}? ", "completion": f"No {i}!", "id": i} for i in range(7)]
pq.write_table(pa.Table.from_pylist(rows), folder / "in.parquet")
tokenizer = train_tokenizer(iter(row["prompt"] + row["completion"] for row in rows), 300)
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
    num_attention_heads=2, num_labels=1, pad_token_id=tokenizer.pad_token_id,
    initializer_range=0.3,
)
model = RewardModel(LlamaForSequenceClassification(config).eval(), tokenizer)
target = folder / "out.parquet"


def child(moment):
    # moment counts the calls that change the disk: it dies before one of them
    calls = 0

    def dying(function):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return call

    pid = os.fork()
    if pid == 0:
        try:
            os.fsync, Path.replace = dying(os.fsync), dying(Path.replace)
            Path.unlink, Path.write_text = dying(Path.unlink), dying(Path.write_text)
            Path.mkdir, pq.write_table = dying(Path.mkdir), dying(pq.write_table)
            pq.ParquetWriter.write_table = dying(pq.ParquetWriter.write_table)
            shutil.rmtree = dying(shutil.rmtree)
            score_parquet(model, folder / "in.parquet", target, chunk_rows=3, resume=True)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def clean():
    for path in folder.glob("out*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def read():
    assert sorted(path.name for path in folder.iterdir()) == ["in.parquet", "out.parquet"]
    return pq.read_table(target).to_pylist()


assert not child(0)
wanted = read()
once = 0
while True:  # killed once, at every moment there is
    clean()
    if not child(once + 1):
        break
    once += 1
    assert not target.exists() or pq.read_table(target).to_pylist() == wanted
    assert not child(0)
    assert read() == wanted, once
again, moment = 0, 4
clean()
while child(moment):  # killed again and again, always a little later than the last time
    again += 1
    moment += 1
assert read() == wanted
print(json.dumps({"once": once, "again": again, "wanted": wanted}))
"""


def test_killed_at_every_moment(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["once"] > 20  # three parts of several steps each, a journal, the whole
    assert found["again"] > 3
    assert [row["id"] for row in found["wanted"]] == list(range(7))
    assert len({row["reward"] for row in found["wanted"]}) > 5
