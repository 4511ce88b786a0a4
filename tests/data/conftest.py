"""A real tokenizer, small enough to train in the test, and the shared data."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Ends exactly on the end of turn: the newline belongs to the turn that follows.
CHATML_TIGHT = (
    "{% for message in messages %}{% if not loop.first %}\n{% endif %}<|im_start|>"
    "{{ message['role'] }}\n{{ message['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}\n<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "tight": CHATML_TIGHT}
SPECIALS = ["<|pad|>", "<|bos|>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "How do I reset my password? Open the settings, choose security and press reset.",
    "What color is the sky? It is blue. What is 2 + 2? It is 4, and 3 + 3 is 6.",
    "user assistant system You are helpful. Where is my order? It was sent on Monday.",
] * 20


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    def make(template: str | None = "chatml", bos: bool = False) -> PreTrainedTokenizerFast:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=SPECIALS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(CORPUS, trainer)
        if bos:
            backend.post_processor = processors.TemplateProcessing(
                single="<|bos|> $A", special_tokens=[("<|bos|>", backend.token_to_id("<|bos|>"))]
            )
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            bos_token="<|bos|>" if bos else None,
            eos_token="<|im_end|>",
            pad_token="<|pad|>",
            additional_special_tokens=["<|im_start|>"],
            chat_template=TEMPLATES.get(template, template),
        )

    return make


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer) -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture
def write(tmp_path) -> Callable[..., Path]:
    """Write rows (or raw text) to a file of the test's folder; .gz is zipped."""

    def write_file(name: str, rows: list | str | bytes) -> Path:
        path = tmp_path / name
        if isinstance(rows, list):
            rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        content = rows.encode() if isinstance(rows, str) else rows
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return path

    return write_file


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip("shared/data is not beside the project")
    return SHARED
