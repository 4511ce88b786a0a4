"""What is refused of adapters from a model's configuration alone."""

from __future__ import annotations

import json

import peft
import pytest
from transformers import Qwen3MoeConfig

from align.config.sections import PeftSection
from align.errors import ConfigError
from align.stages.model_names import check_frozen, module_names
from align.stages.peft_checks import check_peft, target_problems

REFUSED = [
    (["q_proj", "v_prj"], "has no module 'v_prj'", "did you mean v_proj?"),
    (["attention"], "has no module 'attention'", "there are "),
    ("layers.*k_prj", "the expression 'layers.*k_prj' matches", "names look like model.layers."),
    ("*_proj", "'*_proj' is no regular expression", "mend it"),
]
FINE = [
    ["q_proj", "layers.0.mlp.up_proj"],
    r".*layers\.[01]\.self_attn\.\w_proj",
    "all-linear",
    None,
]


@pytest.mark.parametrize(("wanted", "what", "fix"), REFUSED)
def test_names_that_a_model_has_not(policy_dir, wanted, what, fix):
    section = PeftSection(method="lora", kwargs={"target_modules": wanted})
    with pytest.raises(ConfigError) as error:
        check_peft(section, "sft", str(policy_dir))
    (problem,) = error.value.problems
    assert problem.where == "peft.kwargs.target_modules"
    assert what in problem.what
    assert fix in problem.fix


@pytest.mark.parametrize("wanted", FINE)
def test_what_peft_takes_passes(policy_dir, tiny_llama, wanted):
    kwargs = {"target_modules": wanted} if wanted else {}
    check_peft(PeftSection(method="lora", kwargs=kwargs), "sft", str(policy_dir))
    config = peft.LoraConfig(task_type="CAUSAL_LM", **kwargs)
    assert peft.get_peft_model(tiny_llama(), config).get_nb_trainable_parameters()[0] > 0


def test_a_reward_models_head_is_a_module_and_an_adapter_has_its_bases(
    policy_dir, tiny_llama, tmp_path
):
    assert "score" in module_names(str(policy_dir), "reward")
    assert "lm_head" in module_names(str(policy_dir), "sft")
    adapted = peft.get_peft_model(tiny_llama(), peft.LoraConfig(target_modules=["q_proj"]))
    adapted.peft_config["default"].base_model_name_or_path = str(policy_dir)
    adapted.save_pretrained(tmp_path / "adapter")
    assert "lm_head" in module_names(str(tmp_path / "adapter"), "dpo")


OWN_CODE = {"model_type": "llama", "auto_map": {"AutoConfig": "mine.Mine"}}
UNKNOWN = {
    "no model of transformers": {"config.json": {"model_type": "of_its_own"}},
    "code of its own": {"config.json": OWN_CODE, "mine.py": "raise SystemExit"},
    "sizes that are none": {"config.json": {"model_type": "llama", "hidden_size": "16"}},
    "no such activation": {"config.json": {"model_type": "llama", "hidden_act": "silo"}},
    "a damaged adapter": {"adapter_config.json": "{"},
    "no adapter": {"adapter_config.json": []},
    "on itself": {"adapter_config.json": {"base_model_name_or_path": "HERE"}},
}


@pytest.mark.parametrize("why", UNKNOWN)
def test_what_cannot_be_known_is_not_refused(tmp_path, why):
    for name, content in UNKNOWN[why].items():
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text.replace("HERE", str(tmp_path)))
    assert list(target_problems({"target_modules": ["nowhere"]}, str(tmp_path), "sft")) == []


def test_neither_are_a_hubs_models_experts_and_layers_yet_to_be_made(policy_dir, tmp_path):
    for path in ("owner/model", ""):
        assert list(target_problems({"target_modules": ["nowhere"]}, path, "sft")) == []
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    Qwen3MoeConfig(num_hidden_layers=1, num_experts=2, **sizes).save_pretrained(tmp_path)
    experts = {"target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"]}
    assert list(target_problems(experts, str(tmp_path), "sft")) == []
    later = {"target_modules": ["layers.3.mlp.up_proj"], "layer_replication": [[0, 2], [0, 2]]}
    assert list(target_problems(later, str(policy_dir), "sft")) == []


def test_frozen_names_that_a_model_has_not(policy_dir):
    path = str(policy_dir)
    with pytest.raises(ConfigError) as error:
        check_frozen(["embed", "lyers", r"layers\.9\."], path, "sft")
    lyers, ninth = error.value.problems
    assert lyers.where == ninth.where == "model.freeze"
    assert lyers.what == f"'lyers' matches no parameter of {path}."
    assert ninth.what.startswith("'layers\\\\.9")
    assert "names look like model.layers." in lyers.fix
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        check_frozen(["model", "lm_head"], path, "sft")


def test_frozen_names_that_a_model_has(policy_dir, tmp_path):
    check_frozen(["embed", r"layers\.0\."], str(policy_dir), "sft")
    check_frozen(["score"], str(policy_dir), "reward")
    check_frozen(["anything"], str(tmp_path / "nowhere"), "sft")  # other checks say so
    check_frozen([], str(policy_dir), "sft")
