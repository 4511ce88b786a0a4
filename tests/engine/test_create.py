"""Models made from a config: usable at once, repeatable, and clear about what they refuse."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from align.data.tokens import check_tokenizer, encode_pair
from align.engine.create import corpus, create_model, train_tokenizer
from align.engine.models import load_policy
from align.errors import CheckpointError, ConfigError, DataError, ModelError

ROOT = Path(__file__).parents[2]
TINY = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
CHAT = [{"role": "user", "content": "What is 12 + 30?"}]
ANSWER = [{"role": "assistant", "content": "It is 42."}]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        {"prompt": CHAT, "chosen": ANSWER, "rejected": [{"role": "assistant", "content": "No."}]},
        {"text": "The quick brown fox jumps over the lazy dog. " * 20, "n": 3, "tags": ["zebra"]},
    ]
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_the_model_loads_and_its_tokenizer_can_train_a_model_that_stops(tmp_path, data):
    place = create_model(TINY, tmp_path / "model", tokenizer_data=[data], vocab_size=300)
    policy, _, tokenizer = load_policy(place, with_reference=False)
    check_tokenizer(tokenizer, conversational=True)
    assert len(tokenizer) == policy.config.vocab_size == policy.lm_head.weight.shape[0] <= 300
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert policy.generation_config.eos_token_id == tokenizer.eos_token_id
    assert policy.generation_config.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.model_max_length == 128
    prompt, completion = encode_pair(CHAT, ANSWER, tokenizer)
    assert completion[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(completion, skip_special_tokens=True) == "It is 42."
    assert max(prompt + completion) < policy.config.vocab_size


def test_any_text_survives_the_tokenizer(tmp_path, data):
    tokenizer = train_tokenizer(corpus([data]), 300)
    text = "Zoë paid 12,5 € -- 你好\n\n\tlove=<b>1</b> 🦊"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    digits = [tokenizer.decode([i]).strip() for i in tokenizer("1234")["input_ids"]]
    assert digits == ["1", "2", "3", "4"]


def test_the_corpus_holds_every_string_of_nested_rows(data):
    text = "\n".join(corpus([data]))
    assert all(part in text for part in ("What is 12", "It is 42", "No.", "zebra", "lazy dog"))


def test_the_same_seed_makes_the_same_weights(tmp_path, data):
    places = [
        create_model(TINY, tmp_path / name, tokenizer_data=[data], vocab_size=300, seed=seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    a, b, c = (AutoModelForCausalLM.from_pretrained(place) for place in places)
    weights = [model.model.layers[0].mlp.up_proj.weight for model in (a, b, c)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_making_a_model_leaves_the_global_generator_alone(tmp_path, data):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    create_model(TINY, tmp_path / "model", tokenizer_data=[data], vocab_size=300)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        TINY | {"model_type": "qwen3", "head_dim": 8},
    ],
    ids=["gpt2", "qwen3"],
)
def test_other_architectures_and_an_existing_tokenizer(tmp_path, data, config):
    first = create_model(TINY, tmp_path / "first", tokenizer_data=[data], vocab_size=300)
    place = create_model(config, tmp_path / "second", tokenizer=first)
    policy, _, tokenizer = load_policy(place, with_reference=False)
    assert policy.config.model_type == config["model_type"]
    assert policy.get_input_embeddings().num_embeddings == len(tokenizer)
    ids = torch.tensor([tokenizer("a fox")["input_ids"]])
    assert torch.isfinite(policy(input_ids=ids).logits).all()
    assert (tmp_path / "first/tokenizer.json").read_text() == (place / "tokenizer.json").read_text()


def test_an_existing_tokenizer_keeps_its_template_unless_told_otherwise(tmp_path, data):
    first = create_model(
        TINY, tmp_path / "first", tokenizer_data=[data], vocab_size=300, chat_template="plain"
    )
    kept = create_model(TINY, tmp_path / "kept", tokenizer=first)
    told = create_model(TINY, tmp_path / "told", tokenizer=first, chat_template="chatml")
    assert "Human:" in load_policy(kept, with_reference=False)[2].chat_template
    assert "<|im_start|>" in load_policy(told, with_reference=False)[2].chat_template


@pytest.mark.parametrize("file", sorted((ROOT / "configs/models").glob("*m.json")), ids=str)
def test_the_shipped_configs_make_models_of_the_size_they_are_named_for(tmp_path, data, file):
    place = create_model(file, tmp_path / "model", tokenizer_data=[data], vocab_size=300)
    model = AutoModelForCausalLM.from_pretrained(place)
    without_vocabulary = sum(p.numel() for p in model.parameters())
    config = model.config
    size = without_vocabulary + (4096 - config.vocab_size) * config.hidden_size
    millions = float(file.stem.split("-")[1].removesuffix("m"))
    assert size / 1e6 == pytest.approx(millions, rel=0.15)
    assert config.max_position_embeddings == 1024


@pytest.mark.parametrize("file", sorted((ROOT / "configs/models").glob("*b.json")), ids=str)
def test_the_large_configs_have_the_size_they_are_named_for(file):
    with torch.device("meta"):
        config = AutoConfig.for_model(**json.loads(file.read_text()))
        model = AutoModelForCausalLM.from_config(config)
    billions = float(file.stem.split("-")[1].removesuffix("b"))
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, rel=0.15)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "lama"}, ["lama", "did you mean 'llama'"]),
        ({"hidden_size": 32}, ["model_type", "missing"]),
        (
            TINY | {"num_hiden_layers": 2, "hiden_size": 3},
            ["2 configuration problems", "num_hidden_layers", "'hidden_size'"],
        ),
    ],
)
def test_a_config_with_a_wrong_key_is_refused_with_the_nearest(tmp_path, data, config, words):
    with pytest.raises(ConfigError) as caught:
        create_model(config, tmp_path / "model", tokenizer_data=[data])
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (TINY | {"hidden_size": 30}, "not a multiple of the number of attention heads"),
        ({"model_type": "vit"}, "causal language model"),
    ],
)
def test_a_config_that_transformers_refuses(tmp_path, data, config, word):
    with pytest.raises(ModelError, match=word):
        create_model(config, tmp_path / "model", tokenizer_data=[data], vocab_size=300)


def test_a_config_file_that_is_missing_or_no_json(tmp_path, data):
    broken = tmp_path / "broken.json"
    broken.write_text("{not json")
    with pytest.raises(ConfigError, match="no valid JSON"):
        create_model(broken, tmp_path / "model", tokenizer_data=[data])
    with pytest.raises(ConfigError, match=r"did you mean .*broken\.json"):
        create_model(tmp_path / "brokn.json", tmp_path / "model", tokenizer_data=[data])


def test_data_that_is_missing_bad_or_empty(tmp_path, data):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"text": \n')
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"n": 1}\n')
    for file, word in (
        (tmp_path / "dta.jsonl", "did you mean"),
        (bad, r"bad\.jsonl:2"),
        (empty, "no text"),
    ):
        with pytest.raises(DataError, match=word):
            create_model(TINY, tmp_path / "model", tokenizer_data=[file])


def test_tokenizer_or_data_but_not_both_or_neither(tmp_path, data):
    with pytest.raises(ConfigError, match="either"):
        create_model(TINY, tmp_path / "model")
    with pytest.raises(ConfigError, match="either"):
        create_model(TINY, tmp_path / "model", tokenizer=tmp_path, tokenizer_data=[data])
    with pytest.raises(ConfigError, match="259"):
        create_model(TINY, tmp_path / "model", tokenizer_data=[data], vocab_size=200)


def test_a_folder_in_use_is_not_touched(tmp_path, data):
    place = tmp_path / "model"
    place.mkdir()
    (place / "precious.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"already holds precious\.txt"):
        create_model(TINY, place, tokenizer_data=[data])
    assert (place / "precious.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_written(tmp_path, data, locked):
    with pytest.raises(CheckpointError, match=f"cannot write to {locked}"):
        create_model(TINY, locked / "model", tokenizer_data=[data])


def test_a_path_under_a_file_cannot_be_written(tmp_path, data):
    with pytest.raises(CheckpointError, match="cannot write"):
        create_model(TINY, data / "model", tokenizer_data=[data])


def test_nothing_is_left_behind_when_it_fails(tmp_path, data):
    with pytest.raises(ModelError):
        create_model(
            {"model_type": "vit"}, tmp_path / "out/model", tokenizer_data=[data], vocab_size=300
        )
    left = [item for item in (tmp_path / "out").rglob("*") if item.is_file()]
    assert left == []
