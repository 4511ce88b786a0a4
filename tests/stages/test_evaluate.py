"""The models that `align evaluate` compares with are looked for before any of them answers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import LlamaForSequenceClassification

from align.config.sections import EvaluateSection, JudgeSection
from align.errors import ConfigError
from align.stages.evaluate import check_models, reference_of

JUDGE = JudgeSection(function="a:b")


@pytest.fixture
def policies(tiny_llama, tiny_tokenizer, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_llama().save_pretrained("one")
    tiny_tokenizer.save_pretrained("one")
    shutil.copytree("one", "two")
    return tmp_path


def section(**given) -> EvaluateSection:
    return EvaluateSection.model_validate({"models": {"sft": "one", "ppo": "two"}} | given)


@pytest.mark.parametrize(
    ("given", "expected"), [(None, "one"), ("sft", "one"), ("ppo", "two"), ("two", "two")]
)
def test_the_reference_is_a_name_or_a_path(policies, given, expected):
    settings = section(reference=given)
    check_models(settings, JUDGE)
    assert reference_of(settings) == expected


def test_a_name_goes_before_a_folder_of_that_name(policies):
    shutil.copytree("one", "ppo")
    assert reference_of(section(reference="ppo")) == "two"


@pytest.mark.parametrize("wrong", ["stf", "org/stf", "./stf", "classifier"])
def test_a_wrong_reference_is_refused_with_the_names_there_are(policies, tiny_llama, wrong):
    classifier = LlamaForSequenceClassification(tiny_llama().config)
    classifier.save_pretrained("classifier")
    shutil.copy("one/tokenizer.json", "classifier")
    with pytest.raises(ConfigError) as caught:
        check_models(section(reference=wrong), JUDGE)
    (problem,) = caught.value.problems
    assert problem.where == "evaluate.reference"
    assert "name one of evaluate.models (sft, ppo)" in problem.fix


def test_a_model_that_would_be_read_late_is_looked_for_too(policies):
    with pytest.raises(ConfigError) as caught:
        check_models(section(models={"sft": "one", "ppo": "stf"}), JUDGE)
    (problem,) = caught.value.problems
    assert problem.where == "evaluate.models.ppo"
    assert f"there is no folder stf in {policies}" in problem.what
