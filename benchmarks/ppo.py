"""One PPO update beside the last TRL that had PPO (1.12.0, in an environment of its own).

    python -m benchmarks.ppo --json ppo.json

Both sides start from the same files: a float32 Llama of 5.8M parameters, a reward model of its size
(both random), and 64 prompts of HH by their token ids, drawn anew for every round from those of at
most 512 tokens (the limit of TRL's own PPO script). Both draw at most 53 tokens at temperature 1,
stop at EOS, take 4 epochs of 4 minibatches of 16 rows with the same learning rate, clipping, KL,
lambda and missing-EOS penalty, without gradient clipping (TRL's PPO has none), checkpointing or
bf16. Each arm is a process of its own with the same number of threads; the sides take turns.

- `like_for_like`: a separate value model, which starts from the reward model on both sides.
- `shared`: ours with a value head on the policy's backbone. That is another algorithm.
- `equal_lengths`: like for like on prompts of one length: TRL has no padding to compute.

Seconds are those of the whole `train()` call of one update. Generation is the sampler's call.
Scoring is rewards, values, both models' log-probabilities and advantages: TRL takes the old
log-probabilities from the sampler's logits, ours computes them again. Optimisation is the rest.

What differs in TRL: it puts the score on the token after the last one, whitens with the unbiased
variance, trains the value there too, and logs entropies of every minibatch.

Then `curves`: a smaller model (1M parameters, 300 tokens of vocabulary, answers of 8, learning rate
1e-3) for some updates on several seeds: the mean reward (penalty included) of every update with its
95% t-interval over seeds, and whether the sides agree at the end (their intervals over the last
fifth of the updates overlap) and learn (the interval of the rise over the first fifth is above 0).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.align_ppo import PHASES
from benchmarks.paired import Json, compared, machine, run_arm, versions
from benchmarks.peers import ensure_environment, peer_versions, run_script

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "hh_harmless.jsonl.gz"
MODELS = ROOT / "configs" / "models"
PEER = ("trl-ppo-1.12.0", ("trl==1.12.0", "transformers==5.23.0", "torch==2.13.0", "pandas"))
TURN = "\n\nAssistant:"
LONGEST, EVEN = 512, 128  # tokens of a prompt
JOB: Json = {  # what both sides are told; one update
    "threads": 2,
    "seed": 0,
    "updates": 1,
    "batch": 64,
    "minibatch": 16,
    "rollout_rows": 64,
    "epochs": 4,
    "response": 53,
    "temperature": 1.0,
    "learning_rate": 3e-6,
    "missing_eos_penalty": 1.0,
    "kl_coef": 0.05,
    "clip": 0.2,
    "value_clip": 0.2,
    "vf_coef": 0.1,
    "gamma": 1.0,
    "lambda": 0.95,
}
CURVE: Json = {"response": 8, "learning_rate": 1e-3}


def main(arguments: list[str]) -> int:
    """Run everything and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=DATA, help="HH's dialogues")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--even-rounds", type=int, default=3, help="of equal_lengths")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--updates", type=int, default=20, help="of the learning curves")
    parser.add_argument("--seeds", default="0,1,2", help="of the learning curves, at least two")
    given = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    python = ensure_environment(*PEER)
    figures: Json = {"settings": JOB | {"threads": given.threads}}
    with tempfile.TemporaryDirectory() as name:
        sides, texts = Sides(python, Path(name)), read_prompts(given.data)
        if given.rounds:
            start = Start(Path(name) / "start", "llama-6m", texts, vocabulary=4096)
            jobs = [
                start.job(start.draw(turn, LONGEST), given.threads) for turn in range(given.rounds)
            ]
            figures["prompt_tokens"] = [lengths(job) for job in jobs]
            figures |= compare(sides, jobs)
            even = [start.job(start.cut(EVEN), given.threads)] * given.even_rounds
            if even:
                pairs = [(sides.ours(job), sides.peer(job)) for job in even]
                figures["equal_lengths"] = with_phases(pairs)
        if given.updates:
            start = Start(Path(name) / "curve", "llama-1m", texts, vocabulary=300)
            job = start.job(start.draw(0, LONGEST // 8), given.threads) | CURVE
            seeds = [int(seed) for seed in given.seeds.split(",")]
            figures["curves"] = learn(sides, job | {"updates": given.updates}, seeds)
    packages = ("trl", "transformers", "torch", "accelerate")
    figures |= {
        "peer": "trl",
        "versions": {"trl": peer_versions(python, packages)["trl"]},
        "peer_versions": peer_versions(python, packages),
        "our_versions": versions(packages),
        "device": machine(),
    }
    given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


def read_prompts(data: Path) -> list[str]:
    """Dialogues up to their last answer, in the file's order."""
    with gzip.open(data, "rt", encoding="utf-8") as lines:
        dialogues = [json.loads(line)["chosen"] for line in lines]
    return [text[: text.rindex(TURN) + len(TURN)] for text in dialogues if TURN in text]


class Start:
    """A policy, a reward model of its size and prompts that both sides tokenise alike."""

    def __init__(self, folder: Path, model: str, texts: Sequence[str], vocabulary: int):
        import torch
        from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

        from align.engine.create import create_model
        from reward.model import initialise_head

        folder.mkdir()
        corpus = folder / "texts.txt"
        corpus.write_text("\n".join(texts), encoding="utf-8")
        config = MODELS / f"{model}.json"
        self.policy = create_model(
            config, folder / "policy", tokenizer_data=[corpus], vocab_size=vocabulary, seed=0
        )
        torch.manual_seed(1)
        settings = AutoConfig.from_pretrained(self.policy, num_labels=1)
        judge = AutoModelForSequenceClassification.from_config(settings, dtype=torch.float32)
        initialise_head(judge, 1)
        self.reward = folder / "reward"
        judge.save_pretrained(self.reward)
        self.tokenizer = AutoTokenizer.from_pretrained(self.policy)
        self.prompts: list[list[int]] = self.tokenizer(list(texts))["input_ids"]

    def draw(self, seed: int, longest: int) -> list[list[int]]:
        """A batch of prompts of at most `longest` tokens."""
        fitting = [ids for ids in self.prompts if len(ids) <= longest]
        return random.Random(seed).sample(fitting, JOB["batch"])

    def cut(self, length: int) -> list[list[int]]:
        """A batch of prompts' first `length` tokens, where those are tokenised the same again."""
        found = [ids[:length] for ids in self.prompts if len(ids) >= length]
        same = [ids for ids in found if self.tokenizer(self.tokenizer.decode(ids)).input_ids == ids]
        return same[: JOB["batch"]]

    def job(self, prompts: list[list[int]], threads: int) -> Json:
        """What both sides are told."""
        paths = {"policy": str(self.policy), "reward": str(self.reward)}
        return JOB | paths | {"prompts": prompts, "threads": threads}


def lengths(job: Json) -> Json:
    """Mean and greatest number of tokens of a job's prompts."""
    counts = [len(ids) for ids in job["prompts"]]
    return {"mean": statistics.mean(counts), "max": max(counts)}


class Sides:
    """Runs jobs on either side, each in a process of its own."""

    def __init__(self, python: Path, folder: Path):
        self.python, self.folder = python, folder

    def ours(self, job: Json, backbone: str = "separate") -> Json:
        """Our PPO."""
        return self._note(
            backbone, run_arm("benchmarks.align_ppo", [str(self._write(job)), backbone])
        )

    def peer(self, job: Json) -> Json:
        """TRL's."""
        script = ROOT / "benchmarks" / "trl_ppo.py"
        return self._note("trl", run_script(self.python, script, self._write(job), job["threads"]))

    def _write(self, job: Json) -> Path:
        path = self.folder / "job.json"
        path.write_text(json.dumps(job | {"folder": str(self.folder / "out")}), encoding="utf-8")
        return path

    def _note(self, name: str, found: Json) -> Json:
        shown = ", ".join(f"{part} {found[part]:.2f}" for part in ("seconds", *PHASES, "peak_mb"))
        print(f"{name}: {shown}; rewards {[round(r, 2) for r in found['rewards']]}", flush=True)
        return found


def compare(sides: Sides, jobs: Sequence[Json]) -> Json:
    """Ours, the peer and ours with a shared backbone, in turn."""
    turns = [(sides.ours(job), sides.peer(job), sides.ours(job, "shared")) for job in jobs]
    return {
        "like_for_like": with_phases([(ours, peer) for ours, peer, _ in turns]),
        "shared": with_phases([(shared, peer) for _, peer, shared in turns]),
    }


def with_phases(pairs: Sequence[tuple[Json, Json]]) -> Json:
    """`compared`, and the medians of each phase."""
    phases = {}
    for name in PHASES:
        ours, peer = (statistics.median(pair[side][name] for pair in pairs) for side in (0, 1))
        phases[name] = {"ours": ours, "peer": peer, "ratio": peer / ours}
    return compared(pairs) | {"phases": phases}


def learn(sides: Sides, job: Json, seeds: Sequence[int]) -> Json:
    """Learning curves of both sides."""
    rewards: dict[str, list[list[float]]] = {"ours": [], "peer": []}
    for seed in seeds:
        rewards["ours"].append(sides.ours(job | {"seed": seed})["rewards"])
        rewards["peer"].append(sides.peer(job | {"seed": seed})["rewards"])
    return {"settings": {k: v for k, v in job.items() if k != "prompts"}} | agreement(rewards)


def agreement(rewards: dict[str, list[list[float]]]) -> Json:
    """Curves with intervals, and whether both sides learn and end alike.

    Args:
        rewards: of each side, for each seed, the mean reward of every update.
    """
    from align.evaluate.significance import seeds_interval

    found: Json = {}
    for side, runs in rewards.items():
        tail = max(1, len(runs[0]) // 5)
        ends = [statistics.mean(run[-tail:]) for run in runs]
        rises = [end - statistics.mean(run[:tail]) for run, end in zip(runs, ends, strict=True)]
        found[side] = {
            "runs": runs,
            "curve": [seeds_interval(at).as_dict() for at in zip(*runs, strict=True)],
            "end": seeds_interval(ends).as_dict(),
            "rise": seeds_interval(rises).as_dict(),
        }
    ours, peer = found["ours"]["end"], found["peer"]["end"]
    found["ends_overlap"] = ours["low"] <= peer["high"] and peer["low"] <= ours["high"]
    found["both_rise"] = all(found[side]["rise"]["low"] > 0 for side in rewards)
    return found


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
