"""Loading, adapters on adapters, freezing, and what is refused."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from align.engine.head import policy_logprobs
from align.engine.models import (
    freeze,
    load_causal_lm,
    load_policy,
    load_reward_start,
    peft_config,
    resolve_dtype,
)
from align.errors import ModelError
from reward.score import score_head


def adapted(model, tokenizer, folder, seed: int):
    """The model with a random adapter, saved."""
    torch.manual_seed(seed)
    wrapped = get_peft_model(
        model,
        LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], init_lora_weights=False),
    ).eval()
    wrapped.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return wrapped


def test_the_reference_is_a_frozen_snapshot(policy_dir, make_rollout):
    policy, reference, tokenizer = load_policy(policy_dir)
    rollout = make_rollout()
    assert torch.equal(policy_logprobs(policy, rollout), policy_logprobs(reference, rollout))
    assert not any(p.requires_grad for p in reference.parameters())
    assert all(p.requires_grad for p in policy.parameters())
    with torch.no_grad():
        policy.lm_head.weight += 0.1 * torch.randn_like(policy.lm_head.weight)
    assert not torch.equal(policy_logprobs(policy, rollout), policy_logprobs(reference, rollout))
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert load_policy(policy_dir, with_reference=False)[1] is None


def test_a_policy_from_an_adapter_starts_as_the_adapted_model(
    policy_dir, tiny_tokenizer, tmp_path, make_rollout
):
    """The reference is the fine-tuned model, never its base."""
    wrapped = adapted(load_causal_lm(policy_dir), tiny_tokenizer, tmp_path / "sft", 1)
    rollout = make_rollout()
    wanted = policy_logprobs(wrapped, rollout)
    _, reference, _ = load_policy(tmp_path / "sft")
    assert torch.allclose(policy_logprobs(reference, rollout), wanted, atol=1e-5)
    base = policy_logprobs(load_causal_lm(policy_dir), rollout)
    assert (base - wanted).abs().max() > 1e-3


def test_an_adapter_on_an_adapter_loads_with_both(
    policy_dir, tiny_tokenizer, tmp_path, make_rollout
):
    """SFT with LoRA, then PPO with LoRA: the second's base is the first, merged."""
    adapted(load_causal_lm(policy_dir), tiny_tokenizer, tmp_path / "sft", 1)
    second = adapted(load_causal_lm(tmp_path / "sft"), tiny_tokenizer, tmp_path / "ppo", 2)
    rollout = make_rollout()
    wanted = policy_logprobs(second, rollout)
    found = policy_logprobs(load_causal_lm(tmp_path / "ppo"), rollout)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_a_reward_model_starts_on_an_adapters_merged_backbone(policy_dir, tiny_tokenizer, tmp_path):
    adapted(load_causal_lm(policy_dir), tiny_tokenizer, tmp_path / "sft", 1)
    model = load_reward_start(tmp_path / "sft", tiny_tokenizer, seed=1)
    merged, base = load_causal_lm(tmp_path / "sft"), load_causal_lm(policy_dir)
    weight = model.model.layers[0].self_attn.q_proj.weight
    assert torch.equal(weight, merged.model.layers[0].self_attn.q_proj.weight)
    assert not torch.equal(weight, base.model.layers[0].self_attn.q_proj.weight)
    assert model.score.weight.shape == (1, 32)


def test_virtual_tokens_cannot_be_merged(policy_dir, tmp_path):
    tuned = get_peft_model(
        load_causal_lm(policy_dir), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    tuned.save_pretrained(tmp_path / "tuned")
    with pytest.raises(ModelError, match="prompt_tuning, whose virtual tokens cannot be merged"):
        load_causal_lm(tmp_path / "tuned")


def test_a_reward_model_starts_on_the_policys_backbone(policy_dir, tiny_tokenizer, tmp_path):
    model = load_reward_start(policy_dir, tiny_tokenizer, seed=1)
    causal = load_causal_lm(policy_dir)
    assert torch.equal(
        model.model.layers[0].mlp.up_proj.weight, causal.model.layers[0].mlp.up_proj.weight
    )
    assert model.config.pad_token_id == tiny_tokenizer.pad_token_id
    head = score_head(model).weight.clone()
    again = load_reward_start(policy_dir, tiny_tokenizer, seed=1)
    assert torch.equal(head, score_head(again).weight)
    model.save_pretrained(tmp_path / "rm")
    kept = load_reward_start(tmp_path / "rm", tiny_tokenizer, seed=2)
    assert torch.equal(head, score_head(kept).weight)


def test_freezing_by_pattern(tiny_llama):
    model = tiny_llama()
    assert freeze(model, [r"layers\.0\.", "embed_tokens"]) == 10
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert all("layers.0." in n or "embed_tokens" in n for n in frozen)
    with pytest.raises(ModelError, match="matches no parameter"):
        freeze(model, ["lyers"])
    with pytest.raises(ModelError, match="no regular expression"):
        freeze(model, ["("])
    with pytest.raises(ModelError, match="nothing to train"):
        freeze(model, ["."])


def test_weights_that_are_not_finite_are_refused(tiny_llama, tmp_path):
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "bad")
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN"):
        load_causal_lm(tmp_path / "bad")


def test_what_is_not_a_model_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"there is no folder .*nothing in .*from the hub"):
        load_causal_lm(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("x")
    with pytest.raises(ModelError, match=r"holds notes\.txt; a model needs"):
        load_causal_lm(tmp_path / "empty")


def test_peft_configs_take_their_arguments_or_say_no():
    config = peft_config("lora", {"r": 3}, "SEQ_CLS")
    assert config.r == 3
    assert list(config.modules_to_save) == ["score"]
    with pytest.raises(ModelError, match=r"peft\.kwargs does not fit LoraConfig.*rank"):
        peft_config("lora", {"rank": 3}, "CAUSAL_LM")


def test_dtypes():
    assert resolve_dtype("auto") == torch.float32
    assert resolve_dtype("auto", quantized=True) == torch.bfloat16
    assert resolve_dtype("float16") == torch.float16


def test_weights_that_lack_a_tensor_are_refused(policy_dir, tmp_path):
    folder = tmp_path / "torn"
    shutil.copytree(policy_dir, folder)
    tensors = load_file(folder / "model.safetensors")
    name = next(key for key in tensors if "mlp" in key)
    tensors.pop(name)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"lack 1 tensors.*{re.escape(name)}"):
        load_causal_lm(folder)
