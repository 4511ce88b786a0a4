"""Reward models: scores that depend on the text alone, and statistics that travel with weights."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification

from reward.errors import ModelError
from reward.model import (
    Normalisation,
    RewardModel,
    fit_normalisation,
    initialise_head,
    read_normalisation,
    write_normalisation,
)
from reward.score import encode_answer, pool_scores, score_head, score_ids

PROMPTS = [[{"role": "user", "content": text}] for text in ("Hi", "Where is my order?", "I")]
ANSWERS = [[{"role": "assistant", "content": text}] for text in ("Yes.", "Here it is!", "No no.")]


@pytest.fixture
def classifier(tiny_llama):
    config = copy.deepcopy(tiny_llama(seed=5).config)
    config.num_labels = 1
    torch.manual_seed(5)
    return LlamaForSequenceClassification(config).eval()


@pytest.fixture
def folder(classifier, tiny_tokenizer, tmp_path) -> Path:
    write_normalisation(classifier, Normalisation(mean=0.5, std=2.0, samples=8, policy="p"))
    classifier.save_pretrained(tmp_path / "rm" / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "rm" / "model")
    return tmp_path / "rm" / "model"


def alone(model, rows) -> torch.Tensor:
    """One row at a time, by the model's own forward."""
    with torch.no_grad():
        return torch.cat(
            [score_head(model)(model.model(torch.tensor([r]))[0][:, -1]) for r in rows]
        )[:, 0]


def rows_of(tokenizer) -> list[list[int]]:
    return [encode_answer(p, a, tokenizer) for p, a in zip(PROMPTS, ANSWERS, strict=True)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("extra", [0, 5])
def test_padding_changes_no_score(side, extra, classifier, tiny_tokenizer):
    rows = rows_of(tiny_tokenizer)
    width = max(map(len, rows)) + extra
    ids = torch.full((len(rows), width), tiny_tokenizer.eos_token_id)  # PAD that is EOS, even
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[index, place], mask[index, place] = torch.tensor(row), 1
    with torch.no_grad():
        assert torch.allclose(
            pool_scores(classifier, ids, mask), alone(classifier, rows), atol=1e-5
        )
        # the negative control: transformers looks at token ids and finds another token
        classifier.config.pad_token_id = tiny_tokenizer.eos_token_id
        theirs = classifier(input_ids=ids, attention_mask=mask).logits[:, 0]
    assert (theirs - alone(classifier, rows)).abs().max() > 1e-4


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_the_batch_size_changes_no_score(batch_size, classifier, tiny_tokenizer):
    rows = rows_of(tiny_tokenizer) * 3
    classifier.train()
    scores = score_ids(classifier, rows, 0, batch_size)
    assert classifier.training  # as it was
    assert torch.allclose(scores, alone(classifier, rows), atol=1e-5)
    assert scores.std() > 1e-3  # they are not all alike


def test_a_loaded_model_is_a_reward_function(folder, classifier, tiny_tokenizer):
    model = RewardModel.load(folder)
    assert model.name == model.__name__ == "rm"
    assert model.normalisation == Normalisation(0.5, 2.0, 8, "p")
    raw = alone(classifier, rows_of(tiny_tokenizer))
    assert torch.allclose(torch.tensor(model.score(PROMPTS, ANSWERS)), raw, atol=1e-5)
    found = model(prompts=PROMPTS, completions=ANSWERS, column=[1, 2, 3])
    assert torch.allclose(torch.tensor(found), (raw - 0.5) / 2.0, atol=1e-5)
    plain = RewardModel.load(folder, normalise=False)
    assert torch.allclose(torch.tensor(plain(PROMPTS, ANSWERS)), raw, atol=1e-5)


def test_normalised_scores_have_mean_0_and_std_1(classifier, tiny_tokenizer):
    model = RewardModel(classifier, tiny_tokenizer)
    model.normalisation = fit_normalisation(model.score(PROMPTS, ANSWERS))
    scores = torch.tensor(model(PROMPTS, ANSWERS))
    assert scores.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert scores.std().item() == pytest.approx(1.0, abs=1e-4)


def test_a_model_without_statistics_is_refused(classifier, tiny_tokenizer, tmp_path):
    classifier.save_pretrained(tmp_path / "bare")
    tiny_tokenizer.save_pretrained(tmp_path / "bare")
    with pytest.raises(ModelError, match="no normalisation statistics"):
        RewardModel.load(tmp_path / "bare")
    assert RewardModel.load(tmp_path / "bare", normalise=False).normalisation is None


def test_what_is_no_reward_model_is_refused(tmp_path, classifier, tiny_tokenizer):
    with pytest.raises(ModelError, match="cannot load a reward model"):
        RewardModel.load(tmp_path / "nothing")
    config = copy.deepcopy(classifier.config)
    config.num_labels = 3
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "three")
    tiny_tokenizer.save_pretrained(tmp_path / "three")
    with pytest.raises(ModelError, match="3 labels"):
        RewardModel.load(tmp_path / "three")


def test_a_causal_model_is_no_reward_model(policy_dir):
    """Loading one would make up a random head without a word from transformers."""
    with pytest.raises(ModelError):
        RewardModel.load(policy_dir, normalise=False)


def test_an_adapter_is_merged_with_its_head(folder, classifier, tmp_path, tiny_tokenizer):
    base = AutoModelForSequenceClassification.from_pretrained(folder)
    adapted = get_peft_model(
        base,
        LoraConfig(
            task_type="SEQ_CLS",
            target_modules=["q_proj"],
            modules_to_save=["score"],
            init_lora_weights=False,
        ),
    ).eval()
    with torch.no_grad():
        adapted.base_model.model.score.modules_to_save["default"].weight.mul_(2.0)
    rows = rows_of(tiny_tokenizer)
    wanted = score_ids(adapted, rows, 0)
    adapted.save_pretrained(tmp_path / "adapter")
    tiny_tokenizer.save_pretrained(tmp_path / "adapter")
    model = RewardModel.load(tmp_path / "adapter", normalise=False)
    assert torch.allclose(score_ids(model.model, rows, 0), wanted, atol=1e-5)
    assert not torch.allclose(wanted, score_ids(classifier, rows, 0), atol=1e-3)


def test_the_head_starts_small(classifier):
    initialise_head(classifier, seed=1)
    first = classifier.score.weight.clone()
    assert first.std().item() == pytest.approx(33**-0.5, rel=0.5)
    initialise_head(classifier, seed=1)
    assert torch.equal(first, classifier.score.weight)
    initialise_head(classifier, seed=2)
    assert not torch.equal(first, classifier.score.weight)


def test_statistics_by_hand_and_when_there_are_none(classifier):
    assert fit_normalisation([1.0, 3.0], "p") == Normalisation(2.0, pytest.approx(2**0.5), 2, "p")
    for scores in ([1.0], [2.0, 2.0, 2.0]):
        with pytest.raises(ModelError, match="cannot rank"):
            fit_normalisation(scores)
    assert read_normalisation(classifier) is None


def test_text_and_conversation_do_not_mix(tiny_tokenizer):
    with pytest.raises(ModelError, match="both be text or both be conversations"):
        encode_answer("Hi", ANSWERS[0], tiny_tokenizer)
    plain = encode_answer("Hi ", "there", tiny_tokenizer)
    assert plain[-1] == tiny_tokenizer.eos_token_id
    assert tiny_tokenizer.decode(plain[:-1]) == "Hi there"
