"""Tokenizers that can be trained with, and those that cannot."""

from __future__ import annotations

import copy

import pytest
import torch

from align.engine.tokenizer import load_tokenizer, match_embeddings, read_template
from align.errors import ModelError


def save(tokenizer, folder, **tokens):
    changed = copy.deepcopy(tokenizer)
    for name, value in tokens.items():
        setattr(changed, name, value)
    changed.save_pretrained(folder)
    return folder


def test_a_good_tokenizer_is_left_alone(tiny_tokenizer, tmp_path):
    loaded = load_tokenizer(save(tiny_tokenizer, tmp_path))
    assert loaded.get_vocab() == tiny_tokenizer.get_vocab()
    assert loaded.pad_token_id == tiny_tokenizer.pad_token_id
    assert loaded.chat_template == tiny_tokenizer.chat_template


@pytest.mark.parametrize("pad", [None, "<|im_end|>"])
def test_pad_is_found_and_is_not_eos(pad, tiny_tokenizer, tmp_path):
    loaded = load_tokenizer(save(tiny_tokenizer, tmp_path, pad_token=pad))
    assert loaded.pad_token == "<|pad|>"
    assert loaded.pad_token_id != loaded.eos_token_id
    assert len(loaded) == len(tiny_tokenizer)  # the vocabulary had one


def test_a_new_pad_gets_a_row_of_the_embeddings(tiny_llama, tiny_tokenizer):
    model, tokenizer = tiny_llama(), copy.deepcopy(tiny_tokenizer)
    assert not match_embeddings(model, tokenizer)
    before = model.get_input_embeddings().weight.detach().clone()
    tokenizer.add_special_tokens({"pad_token": "<|new|>"})
    assert match_embeddings(model, tokenizer)
    after = model.get_input_embeddings().weight
    assert len(after) == len(before) + 1 == len(tokenizer)
    assert torch.equal(after[:-1], before)
    assert model.config.pad_token_id == tokenizer.pad_token_id == len(before)


def test_what_cannot_be_used_is_refused(tiny_tokenizer, tmp_path):
    with pytest.raises(ModelError, match="no EOS token"):
        load_tokenizer(save(tiny_tokenizer, tmp_path / "a", eos_token=None))
    with pytest.raises(ModelError, match="cannot load a tokenizer"):
        load_tokenizer(tmp_path / "nothing")


def test_what_may_be_a_path_is_said_to_be_looked_for_here_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = f"there is no folder models/base in {tmp_path}, and no such model could be fetched"
    with pytest.raises(ModelError, match=expected):
        load_tokenizer("models/base")
    (tmp_path / "models" / "base").mkdir(parents=True)
    with pytest.raises(ModelError) as caught:
        load_tokenizer("models/base")
    assert "no folder" not in str(caught.value)


def test_templates(tiny_tokenizer, tmp_path):
    folder = save(tiny_tokenizer, tmp_path)
    assert load_tokenizer(folder, chat_template="plain").chat_template == read_template("plain")
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[0]['content'] }}")
    assert load_tokenizer(folder, chat_template=str(file)).chat_template == file.read_text()
    with pytest.raises(ModelError, match="use one of chatml, plain"):
        read_template("chatlm")
    with pytest.raises(ModelError, match="no such file"):
        read_template(str(tmp_path / "none.jinja"))
