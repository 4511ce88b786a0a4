"""What the training benchmarks share: data, models, one arm of a pair, and its figures.

Both sides are TRL's trainer class with the same arguments, data and order of rows, in float32
without checkpointing (TRL's own defaults are 18 times slower on a CPU). The peer is unmodified;
ours shares prefixes and reads labelled tokens only, as the stages of Align do. Time is that of
whole optimizer steps, data loading included, after the first ones, which warm up.
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
from typing import Any, Literal

from benchmarks import measured
from benchmarks.paired import Json, compared, run_arm, versions

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "hh_harmless.jsonl.gz"
MODELS = ROOT / "configs" / "models"
MARK = "\n\nAssistant:"
VOCABULARY = 4096
WARM = 1  # steps that are not timed
LOSSES = {"float32": 2e-4, "bf16": 5e-2}  # by how much losses may differ, relative or absolute
Rows = list[dict[str, str]]


def parser_of(about: str) -> argparse.ArgumentParser:
    """The options that all of them have."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=DATA, help="HH's dialogues")
    parser.add_argument("--models", nargs="+", default=["llama-6m", "qwen3-30m"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="timed, and as many fewer to warm up")
    parser.add_argument("--same-steps", type=int, default=50, help="of the losses compared")
    parser.add_argument("--bf16", action="store_true", help="on a GPU, with models to suit it")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    return parser


def hh_pairs(data: Path) -> Rows:
    """Pairs of answers to the same dialogue, in a random order that is always the same."""
    with gzip.open(data, "rt", encoding="utf-8") as stream:
        found = [json.loads(line) for line in stream]
    pairs = []
    for row in found:
        prompt, mark, chosen = row["chosen"].rpartition(MARK)
        other, _, rejected = row["rejected"].rpartition(MARK)
        if prompt and prompt == other and chosen.strip() and rejected.strip():
            pairs.append({"prompt": prompt + mark, "chosen": chosen, "rejected": rejected})
    random.Random(0).shuffle(pairs)
    return pairs


def made_pairs(prompt: int, answer: int, count: int, *, each: int = 1) -> Rows:
    """Pairs of random words: each prompt and each answer has so many tokens.

    Args:
        prompt: tokens.
        answer: tokens.
        count: of pairs.
        each: pairs of one prompt, one after the other.
    """
    draw = random.Random(1)

    def words(number: int) -> str:
        return " ".join(f"w{draw.randrange(VOCABULARY - 8)}" for _ in range(number))

    rows: Rows = []
    for number in range(count):
        asked = words(prompt) if number % each == 0 else rows[-1]["prompt"]
        rows.append({"prompt": asked} | {k: " " + words(answer) for k in ("chosen", "rejected")})
    return rows


def prepare(folder: Path, model: str, rows: Rows, *, words: bool = False) -> None:
    """A random model, its tokenizer and the rows, in a folder.

    Args:
        folder: new.
        model: a name in configs/models.
        rows: pairs.
        words: a token for each word, as `made_pairs` has them; else byte pairs learnt on the rows.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from align.engine.create import train_tokenizer

    folder.mkdir(parents=True)
    texts = (row[key] for row in rows for key in ("prompt", "chosen", "rejected"))
    tokenizer = word_tokenizer() if words else train_tokenizer(texts, VOCABULARY)
    config = AutoConfig.for_model(
        **json.loads((MODELS / f"{model}.json").read_text(encoding="utf-8")),
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")


def word_tokenizer() -> Any:
    """Splits at spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<end>", "<unknown>"]
    names = [*special, *(f"w{i}" for i in range(VOCABULARY - len(special)))]
    backend = Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, special[2]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<end>", unk_token="<unknown>"
    )


def measure(kind: str, side: str, folder: Path, job: Json) -> Json:
    """Train one side.

    Args:
        kind: DPO, Reward or SFT.
        side: ours or trl; grouped or random, which are ours in that order of rows; plain, which is
            ours with prefix sharing off.
        folder: of `prepare`.
        job: `steps`, `threads`, `model_class`, `args` of the TRL config, and `reference`.
    """
    import torch
    import transformers
    import trl
    from datasets import Dataset

    from align.engine.models import snapshot
    from align.engine.throughput import flops_per_token, peak_flops

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    rows = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    more: Json = {"num_labels": 1} if kind == "Reward" else {}
    if side == "trl":
        more |= measured.best_attention(half=job.get("args", {}).get("bf16", False))
    auto = getattr(transformers, job.get("model_class", "AutoModelForCausalLM"))
    model = auto.from_pretrained(folder / "model", dtype=torch.float32, **more)
    if kind == "SFT":
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    elif kind == "Reward":
        model.config.pad_token_id = tokenizer.pad_token_id
    settings = {
        "output_dir": str(folder / "out"),
        "max_steps": job["steps"],
        "logging_steps": 1,
        "learning_rate": 1e-5,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": not torch.cuda.is_available(),
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "max_length": 512,
    }
    args = getattr(trl, f"{kind}Config")(**settings | job.get("args", {}))
    given = {"ref_model": snapshot(model)} if job.get("reference") else {}
    trainers: Any = trl
    if side in ("grouped", "random"):
        from align.data.sampling import OrderPlan, prompt_groups
        from align.engine import trainers

        groups = prompt_groups(row["prompt"] for row in rows)
        plan = OrderPlan(len(rows), args.seed, groups=groups)
        given["order"] = plan if side == "grouped" else None
    trainer = getattr(trainers, f"{kind}Trainer")(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        **given,
    )
    sharing = share(trainer, "off" if side == "plain" else "auto") if side != "trl" else []
    noted, choosing = measured.Steps(sharing), measured.Choosing(sharing)
    trainer.add_callback(noted)
    measured.forget_peak()
    began = time.perf_counter()
    trainer.train()
    whole = time.perf_counter() - began
    logged = [row for row in trainer.state.log_history if "loss" in row]
    tokens = [row["num_tokens"] for row in logged]
    found = {
        "seconds": noted.ends[-1] - noted.ends[WARM - 1],
        "peak_mb": measured.peak(),
        "losses": [row["loss"] for row in logged],
        "tokens": tokens[-1] - tokens[WARM - 1],
        "threads": torch.get_num_threads(),
    }
    found["tokens_per_second"] = found["tokens"] / found["seconds"]
    found["precision"] = "bf16" if args.bf16 else "float32"
    rows_of = 1 if kind == "SFT" else 2  # a pair is two rows
    length = found["tokens"] / ((job["steps"] - WARM) * args.per_device_train_batch_size * rows_of)
    peak, each = peak_flops(model, args), flops_per_token(model, length)
    if peak:  # of real tokens, by which shared ones count as often as rows have them
        found["mfu"] = found["tokens_per_second"] * each / peak
    if measured.on_gpu():
        found["attention"] = model.config._attn_implementation
        found |= measured.unique_speed(noted.unique[WARM - 1 :], found["seconds"], each, peak)
    if sharing:
        counts = [one.counts for one in sharing]
        found |= {
            "choosing": choosing.seconds / whole,
            "costs": sharing[0].costs and sharing[0].costs.as_dict(),
            "shared_passes": sum(one.shared for one in counts) / sum(one.passes for one in counts),
            "padded_over_unique": sum(one.padded for one in counts)
            / sum(one.computed for one in counts),
            "real_tokens": sum(one.real for one in counts),
            "computed_tokens": sum(one.computed for one in counts),
        }
    return found


def share(trainer: Any, mode: Literal["auto", "off"]) -> list[Any]:
    """What `align.stages.sharing` does, without a run; empty where it is off."""
    from align.engine.head import causal_lm
    from align.engine.labelled_head import read_labels_only, read_last_only
    from align.engine.prefix import share_prefixes

    found: list[Any] = []
    for model in filter(None, (trainer.model, getattr(trainer, "ref_model", None))):
        inner = causal_lm(model)
        sharing, why = share_prefixes(inner.base_model, mode, found[0].costs if found else None)
        if sharing is not None:
            found.append(sharing)
        elif mode == "auto":
            raise RuntimeError(f"prefix sharing is off: {why}")
        if not (read_labels_only(inner) or read_last_only(inner)):
            raise RuntimeError(f"{type(inner).__name__} has no head that we know.")
    return found


def take_turns(
    module: str,
    kind: str,
    folder: Path,
    job: Json,
    rounds: int,
    peer: Json | None = None,
    *,
    sides: tuple[str, str] = ("ours", "trl"),
) -> list[tuple[Json, Json]]:
    """(ours, peer) of each round, who begins in turn.

    Args:
        module: whose `arm` runs.
        kind: DPO, Reward or SFT.
        folder: of `prepare`.
        job: of ours.
        rounds: how many.
        peer: the peer's job; None: ours.
        sides: ours and the peer, as `measure` calls them.
    """
    jobs = dict(zip(sides, (job, job if peer is None else peer), strict=True))
    turns = []
    for turn in range(rounds):
        found = {}
        for side in sides if turn % 2 == 0 else sides[::-1]:
            found[side] = run_arm(module, [kind, side, str(folder), json.dumps(jobs[side])])
            told = ("seconds", "tokens_per_second", "peak_mb")
            print(kind, folder.name, side, {k: round(found[side][k], 2) for k in told}, flush=True)
        turns.append((found[sides[0]], found[sides[1]]))
    return turns


def check_losses(pairs: Sequence[tuple[Json, Json]]) -> float:
    """The greatest difference of the losses of both sides, step by step.

    Raises:
        RuntimeError: they are not the same.
    """
    most = 0.0
    for ours, peer in pairs:
        for step, (a, b) in enumerate(zip(ours["losses"], peer["losses"], strict=True), 1):
            gap = abs(a - b) / max(1.0, abs(b))
            if not gap < LOSSES[ours.get("precision", "float32")]:
                raise RuntimeError(f"step {step}: our loss is {a} and the peer's {b}.")
            most = max(most, gap)
    return most


def arm(arguments: list[str]) -> int:
    """One measurement; prints its figures."""
    kind, side, folder, job = arguments
    print(json.dumps(measure(kind, side, Path(folder), json.loads(job))))
    return 0


def figures_of(pairs: Sequence[tuple[Json, Json]]) -> Json:
    """`compared`, how far the losses were apart, and the ratio that tokens would allow."""
    limit = pairs[0][0].get("padded_over_unique")
    found = compared(pairs) | {"loss_gap": check_losses(pairs), "padded_over_unique": limit}
    return found | measured.unique_medians([ours for ours, _ in pairs])


def finish(given: argparse.Namespace, figures: Json, peer: str = "trl") -> int:
    """Write the figures and show the ratios."""
    figures |= {
        "peer": peer,
        "versions": versions(["trl", "transformers", "torch"]),
        "device": measured.device_name(),
        "threads": given.threads,
    }
    given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    for key, one in figures.items():
        if isinstance(one, dict) and "ratio" in one:
            print(f"{key}: {one['ratio']:.2f}, memory {one['peak_memory_ratio']:.2f}")
    return 0


def run(main: Callable[[list[str]], int]) -> int:
    """A benchmark's command line: `arm ...` is one measurement."""
    given = sys.argv[1:]
    return arm(given[1:]) if given[:1] == ["arm"] else main(given)


def temporary() -> tempfile.TemporaryDirectory[str]:
    """A folder for models and data."""
    return tempfile.TemporaryDirectory()
