"""The three sets of real preferences that benchmarks train on: rows, splits by prompt, a start.

hh_harmless (pairs), gsm8k_solutions (a correct solution against a wrong one; and all four as a
ranking with ties) and pandalm_votes (three votes a pair), from the folder of shared data.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.config.sections import DataSection
from align.data import load_splits
from align.data.rows import plain_text, prompt_key
from align.data.split import position_of
from align.data.tokens import encode_pairs
from align.engine.create import create_model
from benchmarks.small_runs import warm_up, write_rows
from benchmarks.soft_labels import MODEL, VOCABULARY, load_votes
from feedback.aggregate import by_pair
from reward.preferences import preferences

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
SETS = ("hh_harmless", "gsm8k_solutions", "pandalm_votes")
SOLVERS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
HELD_OUT = 0.25  # of the prompts
LONGEST = 384  # tokens of a prompt and an answer
Row = dict[str, Any]


def hh_rows(folder: Path) -> list[Row]:
    """Prompt, chosen, rejected of hh_harmless."""
    path = str(folder / "hh_harmless.jsonl.gz")
    section = DataSection.model_validate(
        {"train": path, "validation_fraction": 0, "bad_rows": "quarantine"}
    )
    return load_splits(section, "preference").train.to_list()


def gsm8k_rankings(folder: Path) -> list[Row]:
    """Four solutions of a question, the right ones on place 1; questions with both kinds."""
    rows = []
    with gzip.open(folder / "gsm8k_solutions.jsonl.gz", "rt") as file:
        for line in file:
            row = json.loads(line)
            answers: dict[str, int] = {}
            for solver in SOLVERS:
                answers.setdefault(row[solver]["solution"], 1 if row[solver]["is_correct"] else 2)
            if len(set(answers.values())) == 2:
                question = row["question"].strip() + "\n"
                ranks = list(answers.values())
                rows.append({"prompt": question, "responses": list(answers), "ranks": ranks})
    return rows


def pairs_of(rankings: Sequence[Row]) -> list[Row]:
    """Every right solution against every wrong one."""
    return [
        {"prompt": row["prompt"], "chosen": good, "rejected": bad}
        for row in rankings
        for good, place in zip(row["responses"], row["ranks"], strict=True)
        for bad, other in zip(row["responses"], row["ranks"], strict=True)
        if place < other
    ]


def pandalm_rows(folder: Path) -> tuple[list[Row], list[Row]]:
    """Majorities without ties, and soft labels with them."""
    votes = load_votes(folder / "pandalm_votes.jsonl.gz")
    assert by_pair(votes)
    return preferences(votes).rows, preferences(votes, soft="column", labels="votes").rows


def arms_of(name: str, folder: Path) -> dict[str, tuple[list[Row], list[str]]]:
    """What each arm trains on, and its overrides; the first arm's held-out rows judge all."""
    four = ["objective.heads=4"]
    if name == "hh_harmless":
        rows = hh_rows(folder)
        return {"trl": (rows, []), "align": (rows, []), "align, 4 heads": (rows, four)}
    if name == "gsm8k_solutions":
        rankings = gsm8k_rankings(folder)
        pairs = pairs_of(rankings)
        ranked = ["objective.kind=rankings", "objective.loss=pairs-of-answers"]
        return {
            "trl": (pairs, []),
            "align": (pairs, []),
            "align, rankings": (rankings, ranked),
            "align, 4 heads": (pairs, four),
        }
    hard, soft = pandalm_rows(folder)
    return {
        "trl": (hard, []),
        "align": (hard, []),
        "align, soft labels": (soft, []),
        "align, 4 heads": (hard, four),
    }


def held_out(row: Row, seed: int) -> bool:
    """Whether a row's prompt is held out under a seed."""
    return position_of(prompt_key(row["prompt"]), seed, b"bench") < HELD_OUT


def fitting(rows: Sequence[Row], tokenizer: Any) -> list[Row]:
    """Rows of which no answer and its prompt have more than `LONGEST` tokens.

    TRL cuts longer ones and Align leaves them out: without them both train on the same.
    """
    kept = []
    for row in rows:
        answers = row["responses"] if "responses" in row else [row["chosen"], row["rejected"]]
        pairs = encode_pairs([row["prompt"]] * len(answers), answers, tokenizer)
        if all(len(prompt) + len(answer) <= LONGEST for prompt, answer in pairs):
            kept.append(row)
    return kept


def start_model(folder: Path, rows: Sequence[Row], seed: int, steps: int) -> Path:
    """A base model with a tokenizer of the training texts, after some steps of SFT on them."""
    answers = [
        {"prompt": row["prompt"], "completion": row[side]}
        for row in rows
        for side in ("chosen", "rejected")
    ]
    texts = {plain_text(row[name]) for row in answers for name in ("prompt", "completion")}
    corpus = write_rows(folder / "texts.jsonl", [{"text": text} for text in sorted(texts)])
    base = create_model(
        MODEL,
        folder / "base",
        tokenizer_data=[corpus],
        vocab_size=VOCABULARY,
        chat_template="chatml",
        seed=seed,
    )
    return warm_up(base, answers, folder, seed, steps)
