"""Fits beside other weights are refused, and folders that cannot be written are told."""

from __future__ import annotations

import shutil

import pytest
import torch
from transformers import LlamaForSequenceClassification

from reward.calibrate import Temperature, load_calibration, save_calibration
from reward.errors import ModelError
from reward.laplace import LastLayerLaplace
from reward.model import Normalisation, write_normalisation
from reward.outliers import OutlierScore
from reward.places import unwritable, weights_digest
from reward.posterior_reward import STATE
from reward.score import head_parameters


@pytest.fixture
def own(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "model", ignore=shutil.ignore_patterns(STATE))


@pytest.fixture
def fitted(own):
    """What loads each of three fits again."""
    model = LlamaForSequenceClassification.from_pretrained(own)
    head = head_parameters(model)
    states = torch.randn(40, 32, generator=torch.Generator().manual_seed(0))
    state = own / STATE
    save_calibration(state, Temperature(2.0))
    LastLayerLaplace.fit(*head, states[:20], states[20:]).save(state)
    OutlierScore.fit(states).save(state)
    return {
        "calibration": lambda: load_calibration(state),
        "laplace": lambda: LastLayerLaplace.load(state, head),
        "outliers": lambda: OutlierScore.load(state),
    }


@pytest.mark.parametrize("name", ["calibration", "laplace", "outliers"])
def test_other_weights_are_refused(name, fitted, own):
    fitted[name]()
    model = LlamaForSequenceClassification.from_pretrained(own)
    write_normalisation(model, Normalisation(3.0, 4.0, 99))  # which changes no raw score
    model.save_pretrained(own)
    fitted[name]()
    with torch.no_grad():  # the trunk alone: the head is as it was
        model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    model.save_pretrained(own)
    with pytest.raises(ModelError, match="was fitted to other weights, tokenizer or chat template"):
        fitted[name]()


def test_the_digest_follows_the_tokenizer_too(own):
    first = weights_digest(own)
    assert weights_digest(own) == first
    (own / "chat_template.jinja").write_text("other")
    assert weights_digest(own) != first
    assert weights_digest(own / "nowhere") is None


def test_a_folder_that_cannot_be_written(locked):
    assert "cannot be written" in str(unwritable(locked / STATE / "calibration.json"))
    with pytest.raises(ModelError, match=r"calibration\.json cannot be written: Permission denied"):
        save_calibration(locked / STATE, Temperature(2.0))
