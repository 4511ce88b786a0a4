"""What tests of several benchmarks train."""

from __future__ import annotations

import json

import pytest

from benchmarks import training


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The name of a model that trains in a moment."""
    settings = {
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    (tmp_path / "small.json").write_text(json.dumps(settings))
    monkeypatch.setattr(training, "MODELS", tmp_path)
    return "small"
