"""Dropout as a posterior: masks shared between answers, in any batch; models that cannot."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification, LlamaForSequenceClassification

from reward.dropout import DropoutPosterior, channel_mask, config_rates, dropout_scores
from reward.errors import ModelError, RewardError
from reward.score import score_ids

ROWS = [[5, 6, 7, 8, 9, 10], [5, 6, 7, 11], [20, 21, 22, 23, 24, 25, 26, 27]]


def gpt2(**rates: float) -> GPT2ForSequenceClassification:
    torch.manual_seed(0)
    settings = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, **rates}
    config = GPT2Config(
        vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32, num_labels=1, pad_token_id=0,
        initializer_range=0.3, **settings,
    )  # fmt: skip
    return GPT2ForSequenceClassification(config).eval()


def without_dropout(trained) -> LlamaForSequenceClassification:
    other = copy.deepcopy(trained)
    for module in other.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    other.config.attention_dropout = 0.0
    return other


def lora(trained):
    settings = LoraConfig(
        task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"], lora_dropout=0.3,
        init_lora_weights=False,
    )  # fmt: skip
    torch.manual_seed(0)
    return get_peft_model(without_dropout(trained), settings).eval()


MODELS = {
    "attention of Llama": lambda trained: copy.deepcopy(trained),
    "LoRA": lora,
    "residuals of GPT-2": lambda _: gpt2(resid_pdrop=0.2),
    "attention of GPT-2": lambda _: gpt2(attn_pdrop=0.2),
    "embeddings of GPT-2": lambda _: gpt2(embd_pdrop=0.2),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_sample_is_one_function_of_the_text(name, trained):
    """The same alone, in a batch, in any order, beside longer rows, and after random numbers."""
    model = MODELS[name](trained)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    together = dropout_scores(model, ROWS, 0, samples=4, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    torch.manual_seed(2)
    alone = torch.cat([dropout_scores(model, [row], 0, samples=4, seed=7) for row in ROWS])
    assert torch.allclose(together, alone, atol=1e-5)
    turned = dropout_scores(model, ROWS[::-1], 0, samples=4, seed=7, batch_size=2)
    assert torch.allclose(turned.flip(0), together, atol=1e-5)
    assert (together.std(dim=1) > 1e-4).all()  # samples differ
    assert not torch.allclose(together, dropout_scores(model, ROWS, 0, samples=4, seed=8))
    fewer = dropout_scores(model, ROWS, 0, samples=2, seed=7)
    assert torch.equal(fewer, together[:, :2])


@pytest.mark.parametrize("name", MODELS)
def test_the_model_is_as_it_was(name, trained):
    model = MODELS[name](trained)
    before = score_ids(model, ROWS, 0)
    dropout_scores(model, ROWS, 0, samples=2)
    assert torch.equal(score_ids(model, ROWS, 0), before)
    model.train()
    dropout_scores(model, ROWS, 0, samples=2)
    assert model.training


@pytest.mark.parametrize("name", MODELS)
def test_answers_that_are_the_same_have_certain_margins(name, trained):
    """With a mask for each answer of its own they would not."""
    model = MODELS[name](trained)
    scores = dropout_scores(model, [ROWS[0], ROWS[2], ROWS[0]], 0, samples=4)
    assert torch.allclose(scores[0], scores[2], atol=1e-6)
    model.train()
    with torch.no_grad():  # the negative control: transformers' own dropout
        ids = torch.tensor([ROWS[0], ROWS[0]])
        torch.manual_seed(0)
        first, second = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, 0]
    assert (first - second).abs() > 1e-5


def test_a_mean_over_many_masks_is_near_the_whole_model():
    model = gpt2(resid_pdrop=0.02)
    scores = dropout_scores(model, ROWS, 0, samples=200)
    whole = score_ids(model, ROWS, 0)
    error = (scores.mean(dim=1) - whole).abs() / (scores.std(dim=1) / 200**0.5)
    assert (error < 6).all()


def test_models_without_dropout_are_refused(trained):
    with pytest.raises(ModelError, match="has no dropout"):
        dropout_scores(without_dropout(trained), ROWS, 0)
    with pytest.raises(ModelError, match="has no dropout"):
        dropout_scores(gpt2(), ROWS, 0)
    assert config_rates(trained.config) == {"attention_dropout": 0.1}
    assert config_rates(gpt2().config) == {}


def test_dropout_that_cannot_be_shared_is_refused(trained):
    class Own(nn.Module):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(states, 0.1, training=self.training)

    model = copy.deepcopy(trained)
    model.model.norm = nn.Sequential(model.model.norm, Own())
    with pytest.raises(ModelError, match="drops by a function of its own"):
        dropout_scores(model, ROWS, 0, samples=2)
    assert not model.training
    assert model.model.config._attn_implementation == "sdpa"


def test_masks_keep_the_mean_and_begin_alike():
    mask = channel_mask(100_000, 0.3, seed=1, sample=2, name="layer")
    assert mask.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert mask.mean().item() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(channel_mask(10, 0.3, seed=1, sample=2, name="layer"), mask[:10])
    others = [(2, 2, "layer"), (1, 3, "layer"), (1, 2, "other")]
    for seed, sample, name in others:
        assert not torch.equal(channel_mask(50, 0.3, seed, sample, name), mask[:50])


def test_pooled_features_by_hand():
    weight, bias = torch.tensor([[1.0, -2.0], [3.0, 0.0]]), torch.tensor([1.0, 0.0])
    posterior = DropoutPosterior(weight, bias, rate=0.5, samples=64, seed=3)
    features = torch.tensor([[1.0, 1.0], [0.0, 2.0]])
    # mean head (2, -1), bias 1/2; each feature is dropped or doubled
    scores = posterior.scores(features)
    assert set(scores[0].tolist()) == {0.5, 4.5, -1.5, 2.5}
    assert set(scores[1].tolist()) == {0.5, -3.5}
    assert torch.allclose(posterior.mean(features), scores.mean(dim=1))
    assert posterior.worst(features).tolist() == [-1.5, -3.5]
    gap = scores[0] - scores[1]
    found = posterior.margin_std(features[:1], features[1:])
    assert found.item() == pytest.approx(gap.std(unbiased=False).item())
    assert posterior.margin_std(features, features).tolist() == [0.0, 0.0]
    assert torch.equal(posterior.sample(features, 64)[:, 1].sort()[0], scores[1].sort()[0])
    exact = posterior.std(features)[1].item()
    assert exact == pytest.approx(2.0, rel=0.1)  # (0 or 2) x 2 x -1


@pytest.mark.parametrize(("rate", "samples"), [(0.0, 8), (1.0, 8), (0.1, 1)])
def test_rates_that_are_none_are_refused(rate, samples):
    with pytest.raises(RewardError, match="rate between 0 and 1 and at least 2 samples"):
        DropoutPosterior(torch.ones(1, 2), torch.zeros(1), rate, samples)
