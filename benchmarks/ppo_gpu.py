"""PPO on one GPU: tokens a second, where the time goes, and memory.

    python -m benchmarks.ppo_gpu --json ppo_gpu.json

`align ppo` itself, as the command line runs it: a policy and a reward model made from a config with
random weights (Qwen2, 0.5B), prompts of HH, bf16, answers of 128 tokens, samples by vLLM in process
where it is installed and by transformers where not (`--engine`). The first update warms up and is
left out. Reported are, by update: seconds of generation, scoring and training, tokens drawn a
second, tokens trained a second, and the share of the machine's peak while it trains (MFU, a lower
bound); and the peak of the GPU's memory. Without a GPU it stops, unless `--cpu` with a small
`--model` says that only the script is to be tried.

Leaves out a peer: TRL's last PPO has no vLLM. `benchmarks.ppo` compares with it.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from trl.trainer.utils import get_peak_flops

from align.config import PPOStage, load_config
from align.engine.throughput import flops_per_token
from align.run import open_run, write_json
from align.stages import ppo as ppo_stage
from benchmarks.paired import Json, machine, peak_megabytes, versions
from benchmarks.ppo import DATA, Start, read_prompts
from benchmarks.small_runs import write_rows

PHASES = ("generation", "scoring", "training")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=DATA, help="HH's dialogues")
    parser.add_argument("--model", default="qwen2-0.5b", help="of configs/models")
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--engine", choices=("auto", "vllm", "transformers"), default="auto")
    parser.add_argument("--updates", type=int, default=6, help="the first of which warms up")
    parser.add_argument("--batch", type=int, default=256, help="answers of an update")
    parser.add_argument("--minibatch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128, help="of an answer, at most")
    parser.add_argument("--longest", type=int, default=512, help="tokens of a prompt")
    parser.add_argument("--cpu", action="store_true", help="try the script without a GPU")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available() and not given.cpu:
        parser.error("there is no GPU here; --cpu --model llama-1m tries the script without one")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(given, Path(folder))
    print(json.dumps(found["figures"], indent=2))
    write_json(given.json, found)
    return 0


def measure(given: argparse.Namespace, folder: Path) -> Json:
    """One run and its figures."""
    engine = given.engine
    if engine == "auto":
        engine = "vllm" if importlib.util.find_spec("vllm") else "transformers"
    start = Start(folder / "start", given.model, read_prompts(given.data), given.vocabulary)
    start.tokenizer.save_pretrained(start.reward)
    fitting = [ids for ids in start.prompts if len(ids) <= given.longest]
    texts = [{"prompt": str(start.tokenizer.decode(ids))} for ids in fitting]
    prompts = write_rows(folder / "prompts.jsonl", texts)
    overrides = [
        f"run.dir={folder / 'run'}",
        f"model.path={start.policy}",
        f"data.train={prompts}",
        "data.validation_fraction=0",
        f"reward=[{{path: {start.reward}, normalise: false}}]",
        f"rollout.engine={engine}",
        f"rollout.max_new_tokens={given.tokens}",
        f"rollout.batch_size={given.batch}",
        f"trainer.total_episodes={given.batch * given.updates}",
        f"trainer.rollout_batch_size={given.batch}",
        f"trainer.per_device_train_batch_size={given.minibatch}",
        "trainer.ppo_epochs=1",
        "trainer.learning_rate=1e-6",
        f"trainer.use_cpu={str(given.cpu).lower()}",
        f"trainer.bf16={str(not given.cpu).lower()}",
        "trainer.save_strategy=no",
        "tracking.report_to=[none]",
    ]
    config = load_config(PPOStage, None, overrides)
    with open_run(config, command=["benchmarks.ppo_gpu"]) as run:
        ppo_stage.run(config, run)
        lines = (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [json.loads(line) for line in lines]
    return {
        "figures": figures([row for row in logged if "loss" in row], given, start.policy),
        "engine": engine,
        "settings": {k: str(v) for k, v in vars(given).items() if k not in ("json", "data")},
        "device": machine(),
        "versions": versions(["torch", "transformers", "trl", *(["vllm"] * (engine == "vllm"))]),
    }


def figures(logged: Sequence[Json], given: argparse.Namespace, policy: Path) -> Json:
    """Medians over the updates after the first, from the lines that the run logged."""
    steps = len(logged) // given.updates  # of an update
    parts = [logged[i : i + steps] for i in range(0, steps * given.updates, steps)]
    each = []
    for before, part in itertools.pairwise(parts):
        seconds = {
            name: sum(row.get(f"speed/{name}_seconds", 0.0) for row in part) for name in PHASES
        }
        drawn = part[0]["rollout/length_mean"] * given.batch
        trained = part[-1]["num_tokens"] - before[-1]["num_tokens"]
        each.append(
            {f"{name}_seconds": value for name, value in seconds.items()}
            | {
                "update_seconds": sum(seconds.values()),
                "drawn_tokens_per_second": drawn / seconds["generation"],
                "trained_tokens_per_second": trained / seconds["training"],
            }
        )
    found = {name: statistics.median(one[name] for one in each) for name in each[0]}
    if not given.cpu:
        with torch.device("meta"):
            shape = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(policy))
        peak = get_peak_flops(torch.cuda.get_device_name(), "bfloat16")
        length = (logged[-1]["num_tokens"] / given.updates) / given.batch
        if peak:  # known of this device
            each_token = flops_per_token(shape, length)
            found["training_mfu"] = each_token * found["trained_tokens_per_second"] / peak
        return found | {"peak_gpu_gib": torch.cuda.max_memory_allocated() / 2**30}
    return found | {"peak_mb": peak_megabytes()}


if __name__ == "__main__":
    raise SystemExit(main())
