"""Checks of PPO's configuration that need files, or that no other test reaches."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from transformers import LlamaConfig

from align.config.sections import (
    ModelSection,
    RewardSourceSection,
    RolloutSection,
    ValueSection,
)
from align.errors import ConfigError
from align.rollout.vllm_remote import serve_policy
from align.stages.evaluate import check_sampler
from align.stages.on_policy_checks import check_value, other_tokens
from align.stages.rewards import CLOSING, common_context


@pytest.fixture
def with_more_tokens(tiny_tokenizer, tmp_path):
    """A saved tokenizer of one token more."""
    longer = copy.deepcopy(tiny_tokenizer)
    longer.add_tokens(["<more>"])
    longer.save_pretrained(tmp_path / "longer")
    return tmp_path / "longer"


def test_a_critic_has_to_know_the_policys_tokens(policy_dir, with_more_tokens, tmp_path):
    assert not other_tokens(str(policy_dir), str(policy_dir))
    assert not other_tokens(str(with_more_tokens), str(policy_dir))  # it knows one that never comes
    assert other_tokens(str(policy_dir), str(with_more_tokens))  # an index past its embeddings
    assert not other_tokens(str(tmp_path / "nowhere"), str(policy_dir))


def test_a_reward_model_of_another_vocabulary_starts_no_critic(
    tiny_llama, tiny_tokenizer, with_more_tokens, policy_dir, tmp_path
):
    from transformers import LlamaForSequenceClassification

    judge = tmp_path / "judge"
    LlamaForSequenceClassification(tiny_llama().config).save_pretrained(judge)
    tiny_tokenizer.save_pretrained(judge)
    value = ValueSection(init=str(judge))
    check_value(value, None, ModelSection(path=str(policy_dir)))
    with pytest.raises(ConfigError, match=r"value\.init: .* has another vocabulary"):
        check_value(
            value, None, ModelSection(path=str(policy_dir), tokenizer=str(with_more_tokens))
        )


@pytest.mark.parametrize(
    ("section", "where"),
    [
        ({"engine": "vllm"}, "rollout.engine"),
        ({"vllm": {"timeout": 5}}, "rollout.engine"),
        ({"environment": "module:Class"}, "rollout.environment"),
    ],
)
def test_an_evaluation_refuses_what_it_would_not_use(section, where):
    check_sampler(RolloutSection())
    with pytest.raises(ConfigError, match=where):
        check_sampler(RolloutSection.model_validate(section))


def test_a_server_of_our_own_sees_the_gpus_it_is_given(tiny_llama, tiny_tokenizer, tmp_path):
    for devices, seen in (("1,2", {"CUDA_VISIBLE_DEVICES": "1,2"}), (None, {})):
        server = serve_policy(
            tiny_llama(), tiny_tokenizer, tmp_path, tmp_path / "python", devices=devices
        )
        assert server.variables == seen


def test_prompts_leave_room_in_the_reward_models_context_too(reward_model_of, tmp_path):
    short, long = reward_model_of(40), reward_model_of(400)
    named = [RewardSourceSection(path=str(short)), RewardSourceSection(function="a:b")]
    assert common_context(100, named) == 40 - CLOSING
    assert common_context(100, [RewardSourceSection(path=str(long))]) == 100
    assert common_context(None, [RewardSourceSection(ensemble=[str(long), str(short)])]) == 32
    assert common_context(None, [RewardSourceSection(function="a:b")]) is None


@pytest.fixture
def reward_model_of(tmp_path):
    """The configuration of a reward model of a context."""

    def make(context: int) -> Path:
        LlamaConfig(max_position_embeddings=context, num_labels=1).save_pretrained(
            tmp_path / str(context)
        )
        return tmp_path / str(context)

    return make
