"""A model whose training diverged: finite weights, and logits that nothing can be drawn from."""

from __future__ import annotations

import pytest

from align.data.tokens import encode_prompt
from align.errors import ModelError
from align.generate import Decoding, generate
from align.rollout.stream import ReplyStream


@pytest.fixture
def diverged(tiny_llama):
    model = tiny_llama().eval()
    model.get_output_embeddings().weight.data.fill_(3e38)
    return model


@pytest.mark.parametrize("setting", [{}, {"temperature": 0.0}, {"top_k": 3}, {"beams": 2}])
def test_generating_names_the_logits(setting, diverged, tiny_tokenizer):
    with pytest.raises(ModelError, match="logits are NaN or infinite"):
        list(generate(diverged, tiny_tokenizer, ["a", "b"], Decoding(max_new_tokens=3, **setting)))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_streamed_reply_names_them_too(temperature, diverged, tiny_tokenizer):
    ids = encode_prompt("a", tiny_tokenizer)
    with pytest.raises(ModelError, match="logits are NaN or infinite"):
        list(ReplyStream(diverged, tiny_tokenizer, ids, temperature=temperature))
