"""Tiny models, tokenizers and data, made here: nothing is downloaded, nothing is large."""

from __future__ import annotations

import copy
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from align.engine.create import train_tokenizer
from align.engine.tokenizer import read_template
from align.types import Rollout

torch.set_num_threads(1)

NOBODY = 65534

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "Please send the parcel to my office before noon.",
    "I cannot log in, my password does not work any more.",
    "Where is my order? It should have come on Monday.",
    "Thank you, that solved the problem.",
]


@pytest.fixture(autouse=True, scope="session")
def own_reference_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """DPO's kept references: none of the user's, and none left there; commands inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGN_REFERENCE_CACHE", str(tmp_path_factory.mktemp("reference")))
        yield


@pytest.fixture
def locked() -> Iterator[Path]:
    """A folder that this process cannot write, as root neither: root is nobody until the end."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        place.chmod(0o555)
        if root:
            os.seteuid(NOBODY)
        try:
            yield place
        finally:
            if root:
                os.seteuid(0)
            place.chmod(0o700)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, about 300 tokens, ChatML, PAD is not EOS."""
    tokenizer = train_tokenizer(iter(SENTENCES * 4), 300)
    tokenizer.chat_template = read_template("chatml")
    return tokenizer


@pytest.fixture(scope="session")
def tiny_llama(tiny_tokenizer) -> Callable[..., LlamaForCausalLM]:
    """`tiny_llama(seed=0, **config)`: two layers of width 32, lively logits."""

    def make(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
        settings: dict[str, Any] = {
            "vocab_size": len(tiny_tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "pad_token_id": tiny_tokenizer.pad_token_id,
            "eos_token_id": tiny_tokenizer.eos_token_id,
            "bos_token_id": None,
            "initializer_range": 0.15,
        }
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**settings | changes)).eval()

    return make


@pytest.fixture(scope="session")
def tiny_classifier(tiny_tokenizer) -> Callable[..., LlamaForSequenceClassification]:
    """`tiny_classifier(seed=0, **config)`: one score, two layers of width 16, lively logits."""

    def make(seed: int = 0, **changes: Any) -> LlamaForSequenceClassification:
        settings: dict[str, Any] = {
            "vocab_size": len(tiny_tokenizer),
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_labels": 1,
            "pad_token_id": tiny_tokenizer.pad_token_id,
            "initializer_range": 0.3,
        }
        torch.manual_seed(seed)
        return LlamaForSequenceClassification(LlamaConfig(**settings | changes))

    return make


@pytest.fixture(scope="session")
def policy_dir(tmp_path_factory, tiny_llama, tiny_tokenizer) -> Path:
    """A saved tiny causal language model with its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "base"
    tiny_llama(seed=0).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def preference_rows() -> list[dict[str, Any]]:
    """24 conversational preferences with prompts of several lengths."""
    rows = []
    for number in range(24):
        question = SENTENCES[number % 5][: 12 + number] + f" {number}?"
        rows.append(
            {
                "prompt": [{"role": "user", "content": question}],
                "chosen": [{"role": "assistant", "content": f"Yes, {number % 7} it is."}],
                "rejected": [{"role": "assistant", "content": "No" + "!" * (1 + number % 3)}],
            }
        )
    return rows


@pytest.fixture(scope="session")
def data_files(tmp_path_factory, preference_rows) -> dict[str, Path]:
    """JSONL files of each kind: sft, preference, prompts."""
    folder = tmp_path_factory.mktemp("data")
    contents = {
        "sft": [{"prompt": r["prompt"], "completion": r["chosen"]} for r in preference_rows],
        "preference": preference_rows,
        "prompts": [{"prompt": r["prompt"]} for r in preference_rows],
    }
    files = {}
    for kind, rows in contents.items():
        files[kind] = folder / f"{kind}.jsonl"
        files[kind].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


@pytest.fixture(scope="session")
def make_rollout(tiny_tokenizer) -> Callable[..., Rollout]:
    """A rollout of random tokens with mixed prompt and completion lengths."""

    def make(prompts=(3, 7, 5, 2), lengths=(4, 6, 1, 3), seed: int = 0, **changes: Any) -> Rollout:
        generator = torch.Generator().manual_seed(seed)
        pad, rows, width, room = (
            tiny_tokenizer.pad_token_id,
            len(prompts),
            max(lengths),
            max(prompts),
        )

        def draw(count: int) -> torch.Tensor:
            return torch.randint(5, len(tiny_tokenizer), (count,), generator=generator)

        prompt_ids = torch.full((rows, room), pad)
        completion_ids = torch.full((rows, width), pad)
        for row, (before, after) in enumerate(zip(prompts, lengths, strict=True)):
            prompt_ids[row, room - before :] = draw(before)
            completion_ids[row, :after] = draw(after)
        mask = (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).float()
        values: dict[str, Any] = {
            "prompts": ["p"] * rows,
            "completions": ["c"] * rows,
            "prompt_ids": prompt_ids,
            "prompt_mask": (prompt_ids != pad).long(),
            "completion_ids": completion_ids,
            "mask": mask,
            "logprobs": torch.zeros(rows, width),
            "finished": torch.ones(rows, dtype=torch.bool),
        }
        return Rollout(**values | changes)

    return make


@pytest.fixture
def moved() -> Callable[..., Any]:
    """A copy of a model whose every weight has moved a little."""

    def move(model: Any, size: float = 0.05, seed: int = 9) -> Any:
        other = copy.deepcopy(model)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in other.parameters():
                weight += size * torch.randn(weight.shape, generator=generator)
        return other

    return move


class LargestLogits(TorchDispatchMode):
    """Inside, notes the most logits that any operation gave at once, backward passes included.

    The head's weight and its gradient have a side of the vocabulary too, and one of the model's
    width: what has both is none of the logits, so that no pass may score as many tokens as that.
    """

    def __init__(self, vocabulary: int, width: int):
        """Set up for a head of this many tokens, on states of this width."""
        super().__init__()
        self.vocabulary, self.width, self.most = vocabulary, width, 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The operation itself; its results are looked at."""
        found = function(*args, **(kwargs or {}))
        for one in tree_leaves(found):
            sides = one.shape if isinstance(one, torch.Tensor) else ()
            if len(sides) > 1 and self.vocabulary in sides and self.width not in sides:
                self.most = max(self.most, one.numel())
        return found


@pytest.fixture
def largest_logits() -> Callable[[int, int], LargestLogits]:
    """`with largest_logits(vocabulary, width) as seen: ...`, then `seen.most`."""
    return LargestLogits
