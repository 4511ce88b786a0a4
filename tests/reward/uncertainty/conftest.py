"""A task whose noise is known, and a reward model of four heads that was trained on it."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import LlamaConfig, LlamaForSequenceClassification

from reward.model import (
    CONFIG_KEY,
    Normalisation,
    initialise_head,
    write_normalisation,
)
from reward.score import encode_answer, pool_heads

HEADS = 4
# What a word is worth. The second half appears in no training answer: there a model can only guess.
COMMON = {"sun": 1.0, "sea": 0.6, "sky": 0.3, "mud": -0.3, "fog": -0.6, "ash": -1.0}
RARE = {"oak": 1.0, "elm": 0.6, "fir": 0.3, "jet": -0.3, "vat": -0.6, "wig": -1.0}


@dataclass(frozen=True)
class Pair:
    """A labelled pair, and whether the label is the truth."""

    prompt: str
    chosen: str
    rejected: str
    truth: bool  # the chosen answer is really worth more


@pytest.fixture(scope="session")
def words() -> tuple[dict[str, float], dict[str, float]]:
    """What common words are worth, and rare ones."""
    return COMMON, RARE


@pytest.fixture(scope="session")
def make_pairs():
    """`make_pairs(count, seed, words)`: labels by Bradley and Terry on what the words are worth."""

    def make(count: int, seed: int, words: dict[str, float] = COMMON) -> list[Pair]:
        draw = random.Random(seed)
        pairs = []
        for number in range(count):
            answers = [draw.choices(list(words), k=3) for _ in range(2)]
            gap = sum(words[w] for w in answers[0]) - sum(words[w] for w in answers[1])
            won = draw.random() < 1 / (1 + 2.718281828 ** (-2 * gap))
            if not won:
                answers.reverse()
            better, worse = (" ".join(answer) for answer in answers)
            pairs.append(Pair(f"Say {number % 40}: ", better, worse, (gap > 0) == won))
        return pairs

    return make


@pytest.fixture(scope="session")
def trained(tiny_tokenizer, make_pairs) -> LlamaForSequenceClassification:
    """Four heads on one trunk, each of which learns from its own half of the pairs."""
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=len(tiny_tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_labels=HEADS,
            attention_dropout=0.1,
            pad_token_id=tiny_tokenizer.pad_token_id,
            initializer_range=0.15,
        )
    )
    initialise_head(model, 0)
    setattr(model.config, CONFIG_KEY, {"heads": HEADS})
    write_normalisation(model, Normalisation(0.5, 2.0, 9))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    pairs = make_pairs(480, seed=1)
    own = torch.rand(len(pairs), HEADS, generator=torch.Generator().manual_seed(1)) < 0.5
    for step in range(60):
        places = [(step * 32 + i) % len(pairs) for i in range(32)]
        scores = pool_heads(model, *batch(tiny_tokenizer, [pairs[i] for i in places]))
        chosen, rejected = scores.chunk(2)
        losses = -logsigmoid(chosen - rejected) * own[places]
        optimizer.zero_grad()
        losses.sum(dim=1).mean().backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="session")
def folder(trained, tiny_tokenizer, tmp_path_factory) -> Path:
    """The trained model, saved."""
    place = tmp_path_factory.mktemp("heads") / "model"
    trained.save_pretrained(place)
    tiny_tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="session")
def pairs_file(make_pairs, tmp_path_factory) -> Path:
    """Held-out pairs as a data file."""
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [
        {"prompt": f"{pair.prompt}{number} ", "chosen": pair.chosen, "rejected": pair.rejected}
        for number, pair in enumerate(make_pairs(300, seed=2))
        if pair.chosen != pair.rejected
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def batch(tokenizer, pairs: list[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask: the chosen answers first, then the rejected."""
    answers = [(p.prompt, p.chosen) for p in pairs] + [(p.prompt, p.rejected) for p in pairs]
    rows = [encode_answer(prompt, answer, tokenizer) for prompt, answer in answers]
    padded = tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
    return padded["input_ids"], padded["attention_mask"]
