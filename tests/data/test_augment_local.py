"""Rows without a service: templates, filters, a masked model, a model of a directory, mixup."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from align.config.augment import QualitySection
from align.data.augment import augment, filter_rows, heuristic_problem, mixup, repetition
from align.data.augment.masked import contextual, load_masked
from align.data.rows import Row
from align.errors import ConfigError, ModelError

ROWS = [{"prompt": f"How far is the town, {n} miles or more?"} for n in range(6)]

TEMPLATES = {
    "slots": {"city": ["Oslo", "Lima", "Pune"], "day": ["today", "tomorrow"]},
    "rows": [
        {"prompt": "Will it rain in {city} {day}?", "completion": "I cannot see {city} from here."},
        {"prompt": "Where is {city}, and {{why}}?", "completion": "On the map, I should think."},
    ],
}


class TestTemplates:
    def test_slots_are_filled_once_each_and_rows_stay_together(self, write):
        path = write("t.yaml", json.dumps(TEMPLATES))
        quality = {"near_threshold": 1.0}
        entry = {"kind": "templates", "path": str(path), "count": 50, "quality": quality}
        rows = [{"prompt": "Why is the sky blue?", "completion": "It scatters the light."}]
        data, (report,) = augment(rows, [entry], "sft")
        prompts = data["prompt"][1:]
        assert len(prompts) == len(set(prompts)) == 6 + 0  # {why} looks like an empty slot
        assert report.reasons == {"an empty slot": 3}
        for row in data.to_list()[1:]:
            chosen = json.loads(row["lineage"]["steps"][0]["options"])["slots"]
            assert row["prompt"] == f"Will it rain in {chosen['city']} {chosen['day']}?"
            assert row["completion"] == f"I cannot see {chosen['city']} from here."
        assert len({row["lineage"]["key"] for row in data.to_list()[1:]}) == 1
        few, _ = augment(rows, [entry | {"count": 3}], "sft")
        again, _ = augment(rows, [entry | {"count": 3}], "sft")
        other, _ = augment(rows, [entry | {"count": 3, "seed": 1}], "sft")
        assert few.to_list() == again.to_list() != other.to_list()

    def test_chat_data_get_conversations(self, write):
        path = write("t.yaml", json.dumps(TEMPLATES))
        rows = [{"prompt": [{"role": "user", "content": "Why is the sky blue?"}]}]
        entry = {"kind": "templates", "path": str(path), "count": 2}
        data, _ = augment(rows, [entry], "prompts")
        assert data["prompt"][1][0]["role"] == "user"

    def test_everything_wrong_with_a_file_at_once(self, write):
        bad = {"slots": {"a": [], "b": ["x"]}, "rows": [{"prompt": "{a} {c}"}]}
        path = write("t.yaml", json.dumps(bad))
        with pytest.raises(ConfigError) as error:
            augment(ROWS, [{"kind": "templates", "path": str(path), "count": 1}], "prompts")
        for part in ("'a' has no list", "row 1 has an unknown slot 'c'", "slot 'b' is in no row"):
            assert part in str(error.value)


class TestFilters:
    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("A fine and simple sentence.", None),
            ("Kurz.", "too short"),
            ("word and another " * 600, "too long"),
            ("Dear {name}, how are you?", "an empty slot"),
            ("Run `f({name})` now, please", None),
            ("Look:\n```\nx = 1\n", "an open code fence"),
            ("?!?! -- %% ## ** && ok", "hardly any letters"),
            ("so it goes on " * 20, "repetition"),
            ("今日は天気がいいですね", None),
        ],
    )
    def test_heuristics(self, text, problem):
        assert heuristic_problem(text, QualitySection()) == problem

    def test_repetition_by_hand(self):
        assert repetition("a b c d e f") == 0
        assert repetition("a b c a b c") == 0.5
        assert repetition("a a a a") == 0.75

    def test_near_duplicates_of_rows_and_of_each_other(self):
        def row(text: str) -> Row:
            return Row("", 0, {"prompt": text})

        base = "one two three four five six seven eight nine ten"
        made = [row(f"{base} eleven"), row("quite another thing to ask"), row(f"{base}!")]
        made.append(row("quite another thing to ask"))
        kept, reasons = filter_rows(made, [row(base)], QualitySection(near_threshold=0.7))
        assert [r.values["prompt"] for r in kept] == ["quite another thing to ask"]
        assert reasons == {"near-duplicate": 3}


WORDS = ["the", "dog", "cat", "big", "small", "runs", "sleeps", "home", "here", "now", "and", "red"]


@pytest.fixture(scope="module")
def masked() -> tuple[Any, Any]:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS, "##s", "7"])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = ("pad", "unk", "cls", "sep", "mask")
    tokens = {f"{name}_token": word for name, word in zip(names, special, strict=True)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
        initializer_range=1.0,
    )
    return BertForMaskedLM(config), tokenizer


class TestContextual:
    TEXT = "The big dog runs home 7 times `cat` now"

    def test_words_come_from_the_model_and_its_context(self, masked):
        rewrite = contextual(*masked, rate=0.4, top_k=3)
        made = {rewrite(self.TEXT, random.Random(seed)) for seed in range(8)}
        assert len(made) > 3
        for text in made:
            assert text == rewrite(text, random.Random(0)) or True
            assert "7" in text.split()
            assert "`cat`" in text
            assert len(text.split()) == len(self.TEXT.split())
            assert {w.lower() for w in text.split()} <= {*WORDS, "7", "times", "`cat`"}
            changed = [a != b for a, b in zip(text.split(), self.TEXT.split(), strict=True)]
            assert sum(changed) == 3  # 0.4 of the 7 words that are free
            assert text[0].isupper()
        assert rewrite(self.TEXT, random.Random(1)) == rewrite(self.TEXT, random.Random(1))

    def test_the_likeliest_word_is_the_models(self, masked):
        model, tokenizer = masked
        text = "the big dog"
        made = contextual(model, tokenizer, rate=0.1, top_k=1)(text, random.Random(0)).split()
        (at,) = [i for i, word in enumerate(made) if word != text.split()[i]]
        words = text.split()
        words[at] = "[MASK]"
        inputs = tokenizer(" ".join(words), return_tensors="pt")
        inputs.pop("token_type_ids", None)
        with torch.no_grad():
            logits = model(**inputs).logits[0, at + 1]
        order = tokenizer.convert_ids_to_tokens(logits.argsort(descending=True))
        likely = [w for w in order if w in WORDS and w != text.split()[at]]
        assert made[at] == likely[0]

    def test_longer_texts_than_the_model_are_read_in_a_window(self, masked):
        text = " ".join(WORDS * 20)
        made = contextual(*masked, rate=0.05, top_k=2)(text, random.Random(0))
        changed = sum(a != b for a, b in zip(made.split(), text.split(), strict=True))
        assert changed == 12

    def test_from_a_directory_through_a_configuration(self, masked, tmp_path):
        for part in masked:
            part.save_pretrained(tmp_path / "bert")
        entry = {"kind": "contextual", "model": str(tmp_path / "bert"), "rate": 0.2}
        rows = [{"prompt": " ".join(random.Random(n).sample(WORDS, 8))} for n in range(5)]
        one, (report,) = augment(rows, [entry], "prompts")
        two, _ = augment(rows[::-1], [entry], "prompts")
        assert report.made == 5
        assert sorted(one["prompt"]) == sorted(two["prompt"])
        with pytest.raises(ModelError, match="cannot be loaded as a masked language model"):
            load_masked(str(tmp_path))


def test_a_model_of_a_directory_writes(make_tokenizer, tmp_path):
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    rows = [{"prompt": f"What color is the sky {w}?"} for w in ("here", "now", "today")]
    entry = {
        "kind": "paraphrase",
        "model": str(tmp_path / "m"),
        "max_tokens": 12,
        "length_ratio": 50.0,
        "temperature": 1.0,
    }
    one, (report,) = augment(rows, [entry], "prompts")
    two, _ = augment(rows[::-1], [entry], "prompts")
    assert report.made + report.refused == 3
    assert report.made >= 1
    assert sorted(one["prompt"]) == sorted(two["prompt"])


class TestMixup:
    def test_by_hand_on_arrays_and_tensors(self):
        states = np.arange(12, dtype=np.float32).reshape(4, 3)
        targets = np.eye(4, dtype=np.float32)
        mixed = mixup(states, targets, alpha=1.0, seed=3)
        for row in range(4):
            weight, partner = mixed.weight[row], mixed.partner[row]
            expected = weight * states[row] + (1 - weight) * states[partner]
            assert np.allclose(mixed.states[row], expected, atol=1e-6)
            assert np.isclose(mixed.targets[row].sum(), 1.0)
        tensors = mixup(torch.tensor(states), torch.tensor(targets), alpha=1.0, seed=3)
        assert np.allclose(tensors.states.numpy(), mixed.states, atol=1e-6)
        assert np.allclose(tensors.targets.numpy(), mixed.targets, atol=1e-6)
        assert sorted(mixed.partner) == [0, 1, 2, 3]

    def test_gradients_flow_and_dtypes_stay(self):
        states = torch.randn(4, 5, 3, dtype=torch.bfloat16, requires_grad=True)
        mask = torch.tensor([[1, 1, 1, 0, 0], [1] * 5, [1, 0, 0, 0, 0], [1, 1, 0, 0, 0]])
        mixed = mixup(states, mask=mask, seed=1)
        assert mixed.states.dtype == torch.bfloat16
        mixed.states.sum().backward()
        assert torch.allclose(states.grad.sum().float(), torch.tensor(60.0), rtol=0.05)
        assert torch.equal(mixed.mask, mask | mask[mixed.partner])

    def test_weights_are_of_the_beta_distribution(self):
        weight = mixup(np.zeros((20000, 1)), alpha=0.4).weight
        assert abs(weight.mean() - 0.5) < 0.015
        assert abs(weight.var() - 1 / (4 * (2 * 0.4 + 1))) < 0.01
        assert len(set(mixup(np.zeros((5, 1)), per_row=False).weight)) == 1

    def test_a_linear_margin_keeps_its_sign(self):
        """Chosen and rejected mixed with one seed: mixtures of right margins are right."""
        draw = np.random.default_rng(0)
        w, rejected = draw.normal(size=8), draw.normal(size=(50, 8))
        chosen = rejected + np.abs(draw.normal(size=(50, 8))) * np.sign(w)
        one, two = (mixup(side, alpha=1.0, seed=5).states for side in (chosen, rejected))
        assert ((one - two) @ w > 0).all()

    def test_refusals(self):
        with pytest.raises(ValueError, match="alpha is 0"):
            mixup(np.zeros((2, 1)), alpha=0)
        with pytest.raises(ValueError, match="one-hot for classes"):
            mixup(np.zeros((2, 1)), np.array([0, 1]))
        with pytest.raises(ValueError, match="targets has 3 rows, but states has 2"):
            mixup(np.zeros((2, 1)), np.zeros((3, 1)))
