"""Rollouts: our sampler beside transformers' `generate` and vLLM, log-probabilities included.

    python -m benchmarks.rollout --json rollout.json

A float32 Llama of 5.8M parameters (configs/models/llama-6m.json) with random weights, and prompts
of 12 to 384 tokens, 120 in the mean, spread as dialogues are. Drawn at temperature 1 are 128 tokens
for each prompt, or 40 in the mean and 128 at most: the weights make the end-of-sequence token as
likely as that takes, for all arms the same. A third kind, `equal`, is 128 tokens for prompts of 120
tokens each: where nothing is padded. At batch 64 and 128, each arm in a process of its own, with
the same number of threads, in turn:

- ours: `TransformersSampler.draw`;
- dynamic, static: `generate` with either cache, log-probabilities from its `output_logits`;
- vllm: vLLM in process, where `make vllm` has installed it.

Arms draw different tokens, so seconds are scaled to the same number of them. Leaves out starting
and loading: each arm draws a few completions first. It takes about an hour on two idle cores, and
half of it with `--prompts 128`; a file that holds some of the figures, made alike, is completed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from align.engine.create import build_model
from align.rollout.base import pad_left
from align.rollout.transformers import TransformersSampler
from align.rollout.vllm_environment import PACKAGE, installed
from benchmarks.paired import Json, compared, machine, peak_megabytes, run_arm, versions
from benchmarks.peers import peer_versions

MODULE = "benchmarks.rollout"
MODEL = Path(__file__).resolve().parents[1] / "configs" / "models" / "llama-6m.json"
PAD, END, VOCABULARY = 0, 1, 4096
LONGEST, MEAN = 128, 40.0  # tokens of a completion
KINDS = ("fixed", "variable", "equal")
EQUAL = 120  # tokens of each prompt of the kind `equal`
NEVER = 1e-12  # how likely the end is where lengths are fixed
ERRORS = 4  # standard errors that a mean length may be off; it spreads about as much as its size

Prompts = list[list[int]]


def main(arguments: list[str]) -> int:
    """Run everything and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args(arguments)
    vllm = installed()
    arms = ["ours", "dynamic", "static"] + (["vllm"] if vllm else [])
    settings = {"prompts": given.prompts, "rounds": given.rounds, "threads": given.threads}
    figures: Json = {"settings": settings, "device": machine()}
    if given.json.is_file():
        earlier = json.loads(given.json.read_text(encoding="utf-8"))
        if all(earlier.get(key) == value for key, value in figures.items()):
            figures = earlier
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, given.prompts)
        for kind in KINDS:
            for batch in given.batches:
                if f"{kind}_{batch}_dynamic" in figures:
                    continue
                options = {"folder": folder / kind, "batch": batch, "threads": given.threads}
                turns = []
                for turn in range(given.rounds):
                    found = {}
                    for arm_name in arms[turn % len(arms) :] + arms[: turn % len(arms)]:
                        more = [f"--{key}={value}" for key, value in options.items()]
                        found[arm_name] = run_arm(
                            MODULE,
                            [arm_name, *more, f"--seed={turn}"],
                            python=vllm if arm_name == "vllm" else None,
                        )
                        print(kind, batch, arm_name, found[arm_name], flush=True)
                    turns.append(found)
                figures |= comparisons(f"{kind}_{batch}", turns) | {
                    "peer": "transformers",
                    "versions": versions(["transformers", "torch"])
                    | ({PACKAGE: peer_versions(vllm, [PACKAGE])[PACKAGE]} if vllm else {}),
                }
                given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    for key, one in figures.items():
        if isinstance(one, dict) and "ratio" in one:
            print(f"{key}: {one['ratio']:.2f}, memory {one['peak_memory_ratio']:.2f}")
    return 0


def comparisons(name: str, turns: Sequence[dict[str, Json]]) -> Json:
    """Ours against every peer, and vLLM against `generate` with its default cache."""
    found: Json = {}
    for peer in ("dynamic", "static", "vllm"):
        if all(peer in turn for turn in turns):
            found[f"{name}_{peer}"] = compared([(turn["ours"], turn[peer]) for turn in turns])
            if peer == "vllm":
                found[f"{name}_vllm"]["peer"] = PACKAGE
                found[f"vllm_{name}_dynamic"] = compared([(t["vllm"], t["dynamic"]) for t in turns])
    return found


def prepare(folder: Path, count: int) -> None:
    """A model for each kind of length, their tokenizer and the prompts."""
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token="t2"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=f"t{PAD}", eos_token=f"t{END}"
    )
    settings = json.loads(MODEL.read_text(encoding="utf-8"))
    spread, equal = make_prompts(count), make_prompts(count, EQUAL)
    likely = end_share(MEAN, LONGEST)
    for kind, share, prompts in zip(
        KINDS, (NEVER, likely, NEVER), (spread, spread, equal), strict=True
    ):
        model = build_model(settings, tokenizer, seed=0).eval()
        make_end_likely(model, share)
        model.save_pretrained(folder / kind)
        tokenizer.save_pretrained(folder / kind)
        (folder / kind / "prompts.json").write_text(json.dumps(prompts), encoding="utf-8")


def make_prompts(count: int, equal: int | None = None) -> Prompts:
    """Random tokens; lengths spread like those of dialogues (log-normal), 12 to 384, or equal."""
    generator = torch.Generator().manual_seed(1)
    spread = (torch.randn(count, generator=generator) * 0.7 + math.log(100)).exp()
    lengths = spread.clamp(12, 384).long().tolist() if equal is None else [equal] * count
    return [
        torch.randint(END + 1, VOCABULARY, (length,), generator=generator).tolist()
        for length in lengths
    ]


def end_share(mean: float, longest: int) -> float:
    """How likely the end must be at each token for this mean length, cut off at `longest`."""
    low, high = 1e-9, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        too_long = (1 - (1 - middle) ** longest) / middle > mean
        low, high = (middle, high) if too_long else (low, middle)
    return high


@torch.no_grad()
def make_end_likely(model: PreTrainedModel, share: float) -> None:
    """Change the embeddings, which are the head's, until the end has this probability.

    The first unit is made a constant in every token's embedding, so that it is nearly constant in
    every last state: a head has no bias, and what the end has there stands in for one.
    """
    table, base = next(model.get_input_embeddings().parameters()), model.base_model
    table[:, 0] = 4.0
    tokens = torch.randint(
        END + 1, VOCABULARY, (64, 96), generator=torch.Generator().manual_seed(2)
    )
    states = base(input_ids=tokens).last_hidden_state[:, 32:].flatten(0, 1)
    for _ in range(6):
        found = (states @ table.T).softmax(-1)[:, END].mean()
        gap = math.log(share) - math.log(float(found))
        table[END, 0] += gap / states[:, 0].mean()


def arm(arguments: list[str]) -> int:
    """One measurement; prints its seconds, the process's peak memory and what it counted."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=sorted(ARMS))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    torch.manual_seed(given.seed)
    prompts = json.loads((given.folder / "prompts.json").read_text(encoding="utf-8"))
    draw = ARMS[given.name](given.folder, given.batch, given.threads)
    draw(prompts[:8])
    started, busy = time.perf_counter(), time.process_time()
    tokens, logprobs = draw(prompts)
    elapsed, busy = time.perf_counter() - started, time.process_time() - busy
    fixed = given.folder.name != "variable"
    wanted = len(prompts) * (LONGEST if fixed else MEAN)
    allowed = 0 if fixed else ERRORS / math.sqrt(len(prompts))
    if abs(tokens / wanted - 1) > allowed or logprobs != tokens:
        raise RuntimeError(
            f"{given.name}: counted {tokens} tokens and {logprobs} log-probabilities, expected "
            f"about {wanted:.0f} of each"
        )
    found = {
        "seconds": elapsed * wanted / tokens,
        "peak_mb": peak_megabytes(),
        "tokens": tokens,
        "tokens_per_second": tokens / elapsed,
        "cpu_seconds": busy * wanted / tokens,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(found))
    return 0


Draws = Callable[[Prompts], tuple[int, int]]  # prompts -> tokens and log-probabilities counted


def _ours(folder: Path, batch: int, threads: int) -> Draws:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    sampler = TransformersSampler(model, tokenizer, max_new_tokens=LONGEST, batch_size=batch)

    def draw(prompts: Prompts) -> tuple[int, int]:
        draws = sampler.draw(prompts)
        return sum(len(one.tokens) for one in draws), sum(len(one.logprobs) for one in draws)

    return draw


def _generate(cache: str | None) -> Callable[[Path, int, int], Draws]:
    def start(folder: Path, batch: int, threads: int) -> Draws:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        static = {"cache_implementation": cache, "disable_compile": True} if cache else {}

        @torch.inference_mode()
        def draw(prompts: Prompts) -> tuple[int, int]:
            counted = 0
            for first in range(0, len(prompts), batch):
                ids, mask = pad_left(prompts[first : first + batch], PAD, "cpu")
                output = model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    do_sample=True,
                    top_k=0,
                    max_new_tokens=LONGEST,
                    pad_token_id=PAD,
                    eos_token_id=END,
                    return_dict_in_generate=True,
                    output_logits=True,
                    **static,
                )
                new = output.sequences[:, ids.shape[1] :]
                logprobs = torch.cat(
                    [
                        logits.gather(1, new[:, step, None]) - logits.logsumexp(1, keepdim=True)
                        for step, logits in enumerate(output.logits)
                    ],
                    dim=1,
                )
                ended = (new == END).long()
                counted += int(logprobs[ended.cumsum(1) - ended == 0].isfinite().sum())
            return counted, counted

        return draw

    return start


def _vllm(folder: Path, batch: int, threads: int) -> Draws:
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(threads),
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }
    from vllm import LLM, SamplingParams

    engine = LLM(
        str(folder),
        dtype="float32",
        max_model_len=512,
        max_num_seqs=batch,
        enforce_eager=True,
        skip_tokenizer_init=True,
        generation_config="vllm",
    )
    torch.set_num_threads(threads)
    params = SamplingParams(
        temperature=1.0, max_tokens=LONGEST, logprobs=0, stop_token_ids=[END], detokenize=False
    )

    def draw(prompts: Prompts) -> tuple[int, int]:
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = engine.generate(inputs, params, use_tqdm=False)
        completions = [output.outputs[0] for output in outputs]
        return (
            sum(len(one.token_ids) for one in completions),
            sum(
                step[token].logprob <= 0
                for one in completions
                for token, step in zip(one.token_ids, one.logprobs, strict=True)
            ),
        )

    return draw


ARMS: dict[str, Callable[[Path, int, int], Draws]] = {
    "ours": _ours,
    "dynamic": _generate(None),
    "static": _generate("static"),
    "vllm": _vllm,
}

if __name__ == "__main__":
    given = sys.argv[1:]
    raise SystemExit(arm(given[1:]) if given[:1] == ["arm"] else main(given))
