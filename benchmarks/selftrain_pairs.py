"""The preference part of `benchmarks.selftrain`: a reward model that labels its own pairs."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align.config import RewardStage, SFTStage, load_config
from align.config.stages import SelftrainStage
from align.engine.create import create_model
from align.run import read_jsonl
from align.selftrain.fit import margins_of, train
from align.selftrain.pseudo import credit
from align.stages import selftrain as selftrain_stage
from benchmarks.small_runs import PLAIN, finish, write_rows

Json = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "configs" / "models" / "llama-1m.json"
GOOD = ("please", "thanks", "sure", "happy", "clear", "first", "then", "because")
BAD = ("never", "no", "whatever", "stupid", "wrong", "maybe", "later", "nothing")
NEITHER = ("the", "order", "box", "post", "shop", "week", "page", "number")
WORTH = dict.fromkeys(GOOD, 0.8) | dict.fromkeys(BAD, -0.8) | dict.fromkeys(NEITHER, 0.0)
HUMAN, POOL, TEST, MORE = 400, 1500, 1500, 500
SIDES = ("chosen", "rejected")


def run_useless(seed: int, folder: Path, given: argparse.Namespace) -> Json:
    """The same with a pool that has nothing to teach: pairs of words that are worth nothing."""
    return run_preferences(seed, folder, given, useless=True)


def run_preferences(
    seed: int, folder: Path, given: argparse.Namespace, *, useless: bool = False
) -> Json:
    """The loop of one seed, and a model with more labels of people."""
    draw = random.Random(f"pairs-{seed}")
    human = [labelled(draw, n) for n in range(HUMAN)]
    make = worthless if useless else labelled
    pool = [make(draw, HUMAN + n) for n in range(POOL)]
    more = [labelled(draw, HUMAN + POOL + n) for n in range(MORE)]
    test = [labelled(draw, HUMAN + POOL + MORE + n, noise=False) for n in range(TEST)]
    write_rows(folder / "human.jsonl", human)
    write_rows(folder / "more.jsonl", more)
    bare = [(row["chosen"], row["rejected"]) for row in pool]
    write_rows(
        folder / "pool.jsonl",
        [
            {"prompt": row["prompt"], "response_a": min(both), "response_b": max(both)}
            for row, both in zip(pool, bare, strict=True)
        ],
    )
    start = folder / "sft" / "model"
    if not start.is_dir():
        texts = [{"text": " ".join(row.values())} for row in [*human, *pool]]
        corpus = write_rows(folder / "texts.jsonl", texts)
        base = folder / "base"
        if not base.is_dir():
            create_model(MODEL, base, tokenizer_data=[corpus], vocab_size=512, seed=seed)
        answers = [{"prompt": r["prompt"], "completion": r[k]} for r in human for k in SIDES]
        warm_up(base, write_rows(folder / "answers.jsonl", answers), folder / "sft", seed)
    loop = load_config(
        SelftrainStage,
        None,
        [
            f"run.dir={folder / 'loop'}",
            f"run.seed={seed}",
            f"model.path={start}",
            "loop.method=preferences",
            "loop.keep=all",
            f"loop.rounds={given.rounds}",
            f"data.train={folder / 'human.jsonl'}",
            "data.validation_fraction=0.5",
            f"pseudo.path={folder / 'pool.jsonl'}",
            "pseudo.balance=[position, length]",
            "pseudo.max_weight=1.0",
            *common(),
        ],
    )
    place = folder / "loop"
    finish(loop, selftrain_stage)
    story = json.loads((place / "selftrain.json").read_text(encoding="utf-8"))
    worth = {(row["prompt"], row["chosen"]): gold(row) > 0 for row in pool}
    rounds = []
    for one in story["rounds"]:
        members = sorted((place / "rounds" / f"{one['round']:03d}" / "fit").glob("member-*/model"))
        if not members:
            continue
        labels = read_jsonl(place / "rounds" / f"{one['round']:03d}" / "pseudo.jsonl")
        hits = [worth.get((r["prompt"], r["chosen"]), False) for r in labels]
        rounds.append(
            {
                "round": one["round"],
                "test": on_test(members, test),
                "gain": one.get("gain"),
                "promoted": one["promoted"],
                "labels": len(labels),
                "precision": float(np.mean(hits)) if hits else None,
            }
        )
    both = write_rows(folder / "both.jsonl", [*trained_on(place), *more])
    config = load_config(
        RewardStage,
        None,
        [
            f"run.dir={folder / 'more'}",
            f"run.seed={seed}",
            f"model.path={start}",
            f"data.train={both}",
            "data.validation_fraction=0",
            *common(),
        ],
    )
    people = on_test([train(config, folder / "more")], test)
    first, last = rounds[0]["test"], rounds[-1]["test"]
    promoted = sum(one["promoted"] for one in rounds[1:])
    figures = {
        "start": first,
        "last_round": last,
        "without_gate": last - first,
        "more_people": people - first,
        "precision": float(np.mean([r["precision"] for r in rounds[1:] if r["precision"]] or [0])),
        "promoted": float(promoted),
    }
    return {
        "figures": figures,
        "rounds": rounds,
        "stopped": story["why"],
        "words": f"start {first:.3f}, last {last:.3f}, {promoted} promoted, with {MORE} more labels"
        f" of people {people:.3f}; {'; '.join(story['why'])}",
    }


def warm_up(start: Path, data: Path, folder: Path, seed: int) -> Path:
    """Some steps of `align sft` on people's answers, good and bad: features worth reading."""
    own = [f"run.dir={folder}", f"run.seed={seed}", f"model.path={start}", f"data.train={data}"]
    steps = ["trainer.max_steps=60", "trainer.learning_rate=3e-3", "trainer.max_length=96"]
    return train(load_config(SFTStage, None, [*own, *PLAIN, *steps]), folder)


def common() -> list[str]:
    """The settings of every reward model."""
    return [
        "trainer.num_train_epochs=4",
        "trainer.per_device_train_batch_size=16",
        "trainer.learning_rate=1e-3",
        "trainer.max_length=96",
        "trainer.save_strategy=no",
        "trainer.logging_steps=50",
        "normalisation.prompts=8",
        "normalisation.max_new_tokens=4",
        "tracking.report_to=[none]",
    ]


def labelled(draw: random.Random, number: int, noise: bool = True) -> Json:
    """A pair with a label of Bradley and Terry's model, or the true one."""
    first, second = (words(draw) for _ in range(2))
    while utility(first) == utility(second):
        second = words(draw)
    difference = utility(first) - utility(second)
    chance = 1 / (1 + np.exp(-difference)) if noise else float(difference > 0)
    swap = draw.random() > chance
    better, worse = (second, first) if swap else (first, second)
    return {"prompt": f"Question {number}?\n", "chosen": better, "rejected": worse}


def worthless(draw: random.Random, number: int) -> Json:
    """A pair that nobody can tell apart."""
    first, second = (words(draw, NEITHER) for _ in range(2))
    return {"prompt": f"Question {number}?\n", "chosen": first, "rejected": second}


def words(draw: random.Random, known: Sequence[str] = tuple(WORTH)) -> str:
    """An answer of six to ten words."""
    return " ".join(draw.choice(known) for _ in range(draw.randint(6, 10)))


def utility(text: str) -> float:
    """What an answer is worth."""
    return sum(WORTH[word] for word in text.split())


def gold(row: Json) -> float:
    """The true margin of a row."""
    return utility(row["chosen"]) - utility(row["rejected"])


def on_test(models: list[Path], test: list[Json]) -> float:
    """How often an ensemble's mean is right on pairs with true labels."""
    sides = [[row[k] for row in test] for k in ("prompt", *SIDES)]
    return float(credit(margins_of(models, *sides)).mean())


def trained_on(place: Path) -> list[Json]:
    """People's rows that the loop trained on."""
    rows = read_jsonl(place / "rounds" / "000" / "train.jsonl")
    return [{k: row[k] for k in ("prompt", *SIDES)} for row in rows]
