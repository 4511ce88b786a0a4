"""A tiny Llama and its tokenizer, made here: nothing is downloaded; and rows in files."""

import copy
import json
from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = [f"w{index}" for index in range(60)]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    special = ["<pad>", "<eos>", "<unk>"]
    vocabulary = {word: index for index, word in enumerate(special + WORDS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


@pytest.fixture(scope="session")
def make_model() -> Callable[[int], LlamaForCausalLM]:
    def make(seed: int) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=63,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
            initializer_range=0.2,
        )
        return LlamaForCausalLM(config).eval()

    return make


@pytest.fixture
def nearby() -> Callable[..., LlamaForCausalLM]:
    """A copy of a model with every weight moved a little."""

    def move(model: LlamaForCausalLM, size: float = 0.05) -> LlamaForCausalLM:
        moved = copy.deepcopy(model)
        generator = torch.Generator().manual_seed(9)
        with torch.no_grad():
            for weight in moved.parameters():
                weight += size * torch.randn(weight.shape, generator=generator)
        return moved

    return move


@pytest.fixture
def write(tmp_path):
    """`write(rows)`: the path of a JSONL file that holds them."""

    def write_rows(rows: list, name: str = "rows.jsonl") -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return write_rows
