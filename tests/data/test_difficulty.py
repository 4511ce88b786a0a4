"""Difficulty measures on real rows, models and files."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification

from align.data.curriculum.cache import cache_key, cached
from align.data.curriculum.measures import by_function, length, load_difficulty, own_margin
from align.data.curriculum.model_measures import (
    answer_ids,
    answer_nll,
    pair_loss,
    pair_margins,
    perplexity,
)
from align.data.tokens import encode_pair, encode_text
from align.errors import DataError
from reward.model import RewardModel


@pytest.fixture(scope="module")
def pairs(preference_rows) -> Dataset:
    return Dataset.from_list(preference_rows)


def test_length_is_tokens_of_the_longer_answer_with_its_prompt(pairs, tiny_tokenizer):
    found = length(pairs, "preference", tiny_tokenizer)
    for row in (0, 7):
        whole = [
            sum(map(len, encode_pair(pairs[row]["prompt"], pairs[row][key], tiny_tokenizer)))
            for key in ("chosen", "rejected")
        ]
        assert found[row] == max(whole)
    texts = Dataset.from_dict({"text": ["a b", "a b c d e"]})
    assert length(texts, "sft", tiny_tokenizer).tolist() == [
        len(encode_text(text, tiny_tokenizer)) for text in texts["text"]
    ]


@pytest.mark.parametrize("batch_size", [1, 5])
def test_nll_is_the_models_own_row_by_row(pairs, tiny_llama, tiny_tokenizer, batch_size):
    model = tiny_llama().train()
    answers = answer_ids(pairs, "preference", tiny_tokenizer)
    nats, tokens = answer_nll(model, answers, tiny_tokenizer.pad_token_id, batch_size)
    assert model.training
    model.eval()
    for row in (0, 11, 23):
        head, tail = encode_pair(pairs[row]["prompt"], pairs[row]["chosen"], tiny_tokenizer)
        ids = torch.tensor([head + tail])
        with torch.no_grad():
            logs = model(input_ids=ids).logits.log_softmax(-1)[0, :-1]
        told = logs.gather(1, ids[0, 1:, None])[-len(tail) :].sum()
        assert nats[row] == pytest.approx(-float(told), rel=1e-4)
        assert tokens[row] == len(tail)
    found = perplexity(nats, tokens)
    assert found[0] == pytest.approx(math.exp(nats[0] / tokens[0]))
    assert perplexity(np.asarray([1e9]), np.asarray([1.0])) == pytest.approx(math.exp(700))


def test_each_kind_is_asked_for_what_it_trains(pairs, tiny_tokenizer):
    def ids(kind, **columns):
        return answer_ids(Dataset.from_dict(columns), kind, tiny_tokenizer)

    text = encode_text("one two", tiny_tokenizer)
    assert ids("sft", text=["one two"]) == [(text[:1], text[1:])]
    (head, tail) = encode_pair("one", " two", tiny_tokenizer)
    assert ids("sft", prompt=["one"], completion=[" two"]) == [(head, tail)]
    ranked = ids("ranking", prompt=["one"], responses=[[" bad", " two"]], ranks=[[2, 1]])
    assert ranked == [(head, tail)]
    ((first, rest),) = ids("prompts", prompt=["one two three"])
    assert len(first) == 1 <= len(rest)


def test_margins_of_a_reward_model_and_of_the_rows(pairs, tiny_llama, tiny_tokenizer, tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1)
    judge = RewardModel(classifier.eval(), tiny_tokenizer, batch_size=7)
    margins = pair_margins(judge, pairs)
    row = pairs[3]
    one = judge.score([row["prompt"]] * 2, [row["chosen"], row["rejected"]])
    assert margins[3] == pytest.approx(one[0] - one[1], abs=1e-5)
    assert np.std(margins) > 0
    assert pair_loss(np.asarray([0.0, 2.0])) == pytest.approx(
        [math.log(2), math.log1p(math.exp(-2))]
    )
    assert own_margin(pairs.add_column("margin", list(range(24)))).tolist() == [
        -i for i in range(24)
    ]
    with pytest.raises(DataError, match="no column margin"):
        own_margin(pairs)


def test_an_own_function_gives_one_finite_number_a_row(pairs, tmp_path, monkeypatch):
    (tmp_path / "own_hardness.py").write_text(
        "def turns(rows):\n    return [len(p[0]['content']) for p in rows['prompt']]\n"
        "def short(rows):\n    return [1.0]\n"
        "def odd(rows):\n    return [1.0] * (len(rows) - 1) + [float('nan')]\n"
        "def fails(rows):\n    return rows['nothing']\n"
    )
    monkeypatch.chdir(tmp_path)
    found = by_function(pairs, "own_hardness:turns")
    assert found[5] == len(pairs[5]["prompt"][0]["content"])
    for name, words in {
        "short": r"shape \(1,\), but there are 24",
        "odd": "training row 24 has nan",
        "fails": "failed with",
    }.items():
        with pytest.raises(DataError, match=words):
            by_function(pairs, f"own_hardness:{name}")
    with pytest.raises(DataError, match="no callable 'turn'"):
        load_difficulty("own_hardness:turn")


def test_difficulties_are_measured_once_for_a_model_and_its_rows(tmp_path):
    calls = []

    def measure() -> np.ndarray:
        calls.append(1)
        return np.arange(3.0)

    key = cache_key("loss", "model", [[1], [2], [3]])
    assert len({key, cache_key("loss", "other", [[1], [2], [3]])}) == 2
    assert key != cache_key("loss", "model", [[1], [2], [4]])
    assert key != cache_key("perplexity", "model", [[1], [2], [3]])
    for _ in range(2):
        assert cached(tmp_path / "new", key, 3, measure).tolist() == [0, 1, 2]
    assert len(calls) == 1
    (file,) = (tmp_path / "new").iterdir()
    file.write_bytes(file.read_bytes()[:40])  # cut short
    assert cached(tmp_path / "new", key, 3, measure).tolist() == [0, 1, 2]
    assert len(calls) == 2
