"""Exemplars by herding: turns of the classes by hand, features beside the backbone's own."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaForSequenceClassification

from align.engine.guards.buffers import herding
from align.engine.guards.exemplars import backbone_of, exemplars, mean_features
from align.errors import DataError, ModelError
from align.stages.guard_rows import herd
from align.stages.reward import pair_source
from align.stages.sft import sft_source


def test_classes_take_turns_and_small_ones_give_their_share():
    torch.manual_seed(0)
    features = torch.randn(9, 4)
    classes = ["a", "b", "a", "c", "a", "b", "a", "a", "a"]
    of_a = [i for i, name in enumerate(classes) if name == "a"]
    order = {"a": [of_a[i] for i in herding(features[of_a], 9)]}
    order["b"] = [[1, 5][i] for i in herding(features[[1, 5]], 9)]
    wanted = [order["a"][0], order["b"][0], 3, order["a"][1], order["b"][1], *order["a"][2:]]
    assert exemplars(features, classes, 9) == wanted
    assert exemplars(features, classes, 4) == wanted[:4]
    assert exemplars(features[:0], [], 3) == []


def test_features_are_the_mean_of_the_last_hidden_states(tiny_llama, tiny_tokenizer):
    model = tiny_llama(attention_dropout=0.5).train()
    model.lm_head.eval()
    source = sft_source(tiny_tokenizer, 64, "cpu")
    rows = [{"prompt": "Who?", "completion": " I."}, {"text": "It rains in the north."}]
    examples = list(source.encode(rows))
    found = mean_features(model, examples)
    assert (model.training, model.lm_head.training) == (True, False)
    model.eval()
    with torch.no_grad():
        for feature, example in zip(found, examples, strict=True):
            hidden = model.model(input_ids=example["input_ids"]).last_hidden_state
            assert torch.allclose(feature, hidden[0].mean(dim=0), atol=1e-6)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))  # starts as the identity
    assert torch.allclose(mean_features(adapted, examples), found, atol=1e-6)


def test_padding_of_a_pair_counts_for_nothing(tiny_llama, tiny_tokenizer, preference_rows):
    config = tiny_llama().config
    config.num_labels = 1
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config).eval()
    source = pair_source(tiny_tokenizer, None, "cpu")
    (example,) = source.encode(preference_rows[:1])
    lengths = example["attention_mask"].sum(dim=1).tolist()
    assert lengths[0] != lengths[1]
    (found,) = mean_features(model, [example])
    with torch.no_grad():
        hidden = [
            model.model(input_ids=ids[None, :length]).last_hidden_state[0]
            for ids, length in zip(example["input_ids"], lengths, strict=True)
        ]
    assert torch.allclose(found, torch.cat(hidden).mean(dim=0), atol=1e-5)


def test_rows_that_do_not_fit_are_passed_over(tiny_llama, tiny_tokenizer, preference_rows):
    config = tiny_llama().config
    config.num_labels = 1
    model = LlamaForSequenceClassification(config)
    long = dict(preference_rows[0], chosen=[{"role": "assistant", "content": "x" * 300}])
    rows = [long, *preference_rows[1:6]]
    source = pair_source(tiny_tokenizer, 80, "cpu")
    kept = herd(rows, 3, None, model, source)
    assert len(kept) == 3
    assert all(row in rows[1:] for row in kept)
    with pytest.raises(DataError, match="no row fits"):
        herd([long], 3, None, model, source)


def test_classes_share_what_is_kept(tiny_llama, tiny_tokenizer):
    rows = [{"text": f"It rains {n}", "of": "rain"} for n in range(9)]
    rows += [{"text": f"The sun {n}", "of": "sun"} for n in range(3)]
    source = sft_source(tiny_tokenizer, 64, "cpu")
    kept = herd(rows, 4, lambda row: row["of"], tiny_llama(), source)
    assert [row["of"] for row in kept] == ["rain", "sun", "rain", "sun"]


def test_what_has_no_features_is_named():
    with pytest.raises(ModelError, match="Linear has no transformers backbone"):
        backbone_of(nn.Linear(2, 2))


def test_examples_without_tokens_are_named(tiny_llama):
    with pytest.raises(ModelError, match="an example has x"):
        mean_features(tiny_llama(), [{"x": torch.zeros(1, 2)}])
