"""Majority against soft labels: which reward model predicts the next person better?

    python -m benchmarks.soft_labels --json soft_labels.json

PandaLM's pairs were each judged by three people. For every seed a fifth of the prompts is held out;
a small Llama (tokenizer and, for some steps, weights trained on the other prompts' texts) becomes
three reward models through `align reward`, which differ in `data.labels` alone: the same start,
seed, batch size, learning rate and number of steps; `majority` drops the ties. Measured are the
held-out people's single votes: log-loss (a tie is half a vote for either answer) and accuracy (ties
left out). Every seed draws other prompts and other weights; differences are paired by seed.

Leaves out anything that a pretrained model would add. It takes about 13 minutes on one thread.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.special import entr

from align.data.rows import prompt_key
from align.data.split import position_of
from align.engine.create import create_model
from align.evaluate.significance import seeds_interval
from benchmarks.small_runs import reward_model, warm_up
from feedback.aggregate import by_pair, signed
from feedback.formats import read_feedback
from feedback.schema import Comparison
from feedback.store import FeedbackStore
from reward.losses import preference_loss
from reward.model import RewardModel

ROOT = Path(__file__).resolve().parents[1]
VOTES = ROOT.parent / "shared" / "data" / "pandalm_votes.jsonl.gz"
MODEL = ROOT / "configs" / "models" / "llama-1m.json"
LABELS = ("majority", "votes", "dawid-skene")
HELD_OUT = 0.2  # of the prompts
VOCABULARY = 2048


def load_votes(path: Path) -> list[Comparison]:
    """Every vote on pairs of two non-empty answers."""
    read = read_feedback(path, "pandalm", bad_rows="quarantine")
    found = [item.judgement for item in read.reads if isinstance(item.judgement, Comparison)]
    return [vote for vote in found if vote.response_a.strip() and vote.response_b.strip()]


def split(votes: Sequence[Comparison], seed: int) -> tuple[list[Comparison], list[Comparison]]:
    """Training and held-out votes; a prompt is in one of them."""
    places = [position_of(prompt_key(vote.prompt), seed, b"soft") for vote in votes]
    pairs = list(zip(votes, places, strict=True))
    return [v for v, p in pairs if p >= HELD_OUT], [v for v, p in pairs if p < HELD_OUT]


def answers(votes: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Prompts with the pairs' answers, good and bad."""
    texts = {(str(v.prompt), text) for v in votes for text in (v.response_a, v.response_b)}
    return [{"prompt": prompt, "completion": text} for prompt, text in sorted(texts)]


def train(
    labels: str, store: str, base: Path, folder: Path, seed: int, settings: argparse.Namespace
) -> RewardModel:
    """A reward model by `align reward`."""
    overrides = [
        f"data.labels={labels}",
        f"trainer.max_steps={settings.steps}",
        f"trainer.learning_rate={settings.learning_rate}",
        "trainer.max_length=256",
    ]
    return RewardModel.load(reward_model(base, store, folder, seed, overrides))


def measure(model: RewardModel, votes: Sequence[Comparison]) -> dict[str, float]:
    """Log-loss in nats a vote, and accuracy on the votes that are no ties."""
    groups = list(by_pair(votes).values())
    firsts = [group[0] for group in groups]
    prompts = [first.prompt for first in firsts]
    a = model.score(prompts, [first.response_a for first in firsts])
    b = model.score(prompts, [first.response_b for first in firsts])
    losses, right = [], []
    for group, margin in zip(groups, torch.tensor(a) - torch.tensor(b), strict=True):
        signs = torch.tensor([signed(vote, group[0].response_a) for vote in group])
        losses += preference_loss(margin.expand(len(group)), (1 + signs) / 2).tolist()
        right += [float(margin * sign > 0) for sign in signs if sign]
    return {"log_loss": sum(losses) / len(losses), "accuracy": sum(right) / len(right)}


def floor(votes: Sequence[Comparison]) -> float:
    """The log-loss of someone who knows every pair's share of votes: no model can do better."""
    total = 0.0
    for group in by_pair(votes).values():
        share = sum(1 + signed(vote, group[0].response_a) for vote in group) / (2 * len(group))
        total += len(group) * float(entr(share) + entr(1 - share))
    return total / len(votes)


def run_seed(
    votes: Sequence[Comparison], seed: int, settings: argparse.Namespace
) -> dict[str, Any]:
    """The three reward models of one seed, measured."""
    known, held_out = split(votes, seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = {text for vote in known for text in (vote.response_a, vote.response_b)}
        texts |= {str(vote.prompt) for vote in known}
        corpus = folder / "texts.jsonl"
        corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in sorted(texts)))
        base = create_model(
            MODEL, folder / "base", tokenizer_data=[corpus], vocab_size=VOCABULARY, seed=seed
        )
        start = warm_up(base, answers(known), folder, seed, settings.warm_up)
        url = f"sqlite:///{folder / 'feedback.db'}"
        with FeedbackStore(url) as store:
            for vote in known:
                store.add_comparison(vote)
        found: dict[str, Any] = {"seed": seed, "votes": len(known), "held_out": len(held_out)}
        found["floor"] = floor(held_out)
        for labels in LABELS:
            started = time.perf_counter()
            model = train(labels, url, start, folder / labels, seed, settings)
            found[labels] = measure(model, held_out)
            found[labels]["seconds"] = round(time.perf_counter() - started, 1)
            print(f"seed {seed} {labels}: {found[labels]}", flush=True)
    return found


def summarise(seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means and 95% t-intervals over seeds, of each and of the paired differences to majority."""
    table: dict[str, Any] = {}
    for metric in ("log_loss", "accuracy"):
        values = {name: [seed[name][metric] for seed in seeds] for name in LABELS}
        table[metric] = {name: seeds_interval(v).as_dict() for name, v in values.items()}
        table[f"{metric} minus majority"] = {
            name: seeds_interval(
                [x - y for x, y in zip(values[name], values["majority"], strict=True)]
            ).as_dict()
            for name in LABELS[1:]
        }
    return table


def main() -> None:
    """Run, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--data", type=Path, default=VOTES, help="PandaLM's votes")
    parser.add_argument("--seeds", default="0,1,2,3", help="at least two, with commas")
    parser.add_argument("--warm-up", type=int, default=100, help="steps of SFT before")
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    settings = parser.parse_args()
    if len(set(settings.seeds.split(","))) < 2:
        parser.error("--seeds needs at least two: the intervals are over seeds")
    torch.set_num_threads(1)
    started = time.perf_counter()
    votes = load_votes(settings.data)
    seeds = [run_seed(votes, int(seed), settings) for seed in settings.seeds.split(",")]
    summary = summarise(seeds)
    print(f"{len(votes)} votes; a coin has log-loss 0.6931")
    for title, rows in summary.items():
        for name, row in rows.items():
            print(
                f"{title:28} {name:12} {row['value']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"
            )
    if settings.json:
        report = {
            "seeds": seeds,
            "summary": summary,
            "settings": {
                "warm_up": settings.warm_up,
                "steps": settings.steps,
                "learning_rate": settings.learning_rate,
            },
            "machine": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "seconds": round(time.perf_counter() - started, 1),
        }
        settings.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
