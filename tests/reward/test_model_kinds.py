"""Classifiers of other kinds: refused where a score at the last token would mean nothing."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    RobertaConfig,
)

from reward.errors import ModelError
from reward.model import RewardModel
from reward.pool import score_answers
from reward.pool_source import Answers
from reward.score import check_reader

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "num_labels": 1,
}
PROMPTS = ["Where is my order? ", "Hi ", "Please: "]
ANSWERS = ["It is here.", "Thank you!", "no"]


@pytest.fixture
def save(tmp_path, tiny_tokenizer):
    """`save(config)`: a classifier with random weights, saved; its folder."""

    def make(config):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config)
        model.save_pretrained(tmp_path / "model")
        tiny_tokenizer.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda n: BertConfig(vocab_size=n, **SIZES), "see those after them"),
        (lambda n: RobertaConfig(vocab_size=n, **SIZES), "is a RobertaClassificationHead"),
        (
            lambda n: DistilBertConfig(
                vocab_size=n, dim=32, hidden_dim=48, n_layers=2, n_heads=4, num_labels=1
            ),
            "see those after them",
        ),
        (
            lambda n: ModernBertConfig(
                vocab_size=n,
                **SIZES,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                cls_token_id=3,
                sep_token_id=4,
            ),
            "see those after them",
        ),
        (
            lambda n: BertConfig(vocab_size=n, **SIZES, is_decoder=True),
            "is not that of its head at the last token",  # causal, and read by a pooler
        ),
    ],
)
def test_encoders_are_refused(make, message, save, tiny_tokenizer):
    folder = save(make(len(tiny_tokenizer)))
    with pytest.raises(ModelError, match=message):
        RewardModel.load(folder, normalise=False)


def test_decoders_are_taken_in_any_precision(save, tiny_tokenizer):
    size = len(tiny_tokenizer)
    configs = [
        LlamaConfig(vocab_size=size, **SIZES, pad_token_id=tiny_tokenizer.pad_token_id),
        GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=64, num_labels=1),
    ]
    for config in configs:
        folder = save(config)
        for dtype in (torch.float32, torch.bfloat16):
            assert RewardModel.load(folder, normalise=False, dtype=dtype).normalisation is None


def test_broken_weights_are_another_matter(save, tiny_tokenizer):
    """Not numbers: scoring says so, and names the answer."""
    model = AutoModelForSequenceClassification.from_config(
        LlamaConfig(vocab_size=len(tiny_tokenizer), **SIZES)
    )
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    check_reader(model, "broken")


@pytest.mark.parametrize("padding", ["pad", "eos"])
def test_scores_are_those_of_transformers(padding, save, tiny_tokenizer):
    """TRL gives models without padding their EOS for it, and they learn to be read before it."""
    ids = {"pad": tiny_tokenizer.pad_token_id, "eos": tiny_tokenizer.eos_token_id}
    folder = save(
        LlamaConfig(
            vocab_size=len(tiny_tokenizer),
            **SIZES,
            pad_token_id=ids[padding],
            eos_token_id=ids["eos"],
            initializer_range=0.3,
        )
    )
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    wanted = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        row = tiny_tokenizer(prompt + answer + tiny_tokenizer.eos_token)["input_ids"]
        assert row[-1] == tiny_tokenizer.eos_token_id
        with torch.no_grad():
            wanted.append(plain(input_ids=torch.tensor([row])).logits[0, 0].item())
    model = RewardModel.load(folder, normalise=False)
    assert model.score(PROMPTS, ANSWERS) == pytest.approx(wanted, abs=1e-5)
    pool = score_answers(model, Answers(list(PROMPTS), list(ANSWERS), [1, 1, 1]), 64)
    assert pool[:, 0].tolist() == pytest.approx(wanted, abs=1e-5)
    assert model.rows([""], [""]) == [[tiny_tokenizer.eos_token_id]]  # something is read


def test_longer_than_the_context(save, tiny_tokenizer):
    model = RewardModel.load(
        save(LlamaConfig(vocab_size=len(tiny_tokenizer), **SIZES)), normalise=False
    )
    long = "quiz " * 70
    for read in (model.score, model.heads_scores, model.features):
        with pytest.raises(ModelError, match=r" reads 64 tokens, and the answer 'quiz quiz"):
            read(["Hi ", "Hi "], ["no", long])
    assert len(model.score(["Hi "], ["no"])) == 1
