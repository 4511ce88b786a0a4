"""Policy and critic as one module: how it starts, what it reads, what it saves."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2ForSequenceClassification, LlamaForSequenceClassification

from align.errors import ModelError
from align.ppo.actor_critic import ActorCritic, build_actor_critic
from reward.model import CONFIG_KEY, Normalisation, RewardModel, write_normalisation
from reward.score import pool_scores


def evaluate(model: ActorCritic, rollout):
    return model(rollout.input_ids, rollout.attention_mask, rollout.mask, with_entropy=True)


@pytest.fixture(params=[1, 3])
def reward_dir(request, tmp_path, tiny_llama, tiny_tokenizer):
    """A reward model of one head, or of several."""
    config = copy.deepcopy(tiny_llama(seed=5).config)
    config.num_labels = request.param
    torch.manual_seed(5)
    model = LlamaForSequenceClassification(config)
    if request.param > 1:
        setattr(model.config, CONFIG_KEY, {"heads": request.param})
    write_normalisation(model, Normalisation(mean=0.3, std=2.0, samples=10))
    model.save_pretrained(tmp_path / "reward")
    tiny_tokenizer.save_pretrained(tmp_path / "reward")
    return tmp_path / "reward"


@pytest.mark.parametrize("backbone", ["shared", "separate"])
def test_values_start_at_zero(backbone, tiny_llama, make_rollout):
    model = build_actor_critic(tiny_llama(), backbone=backbone)
    judged = evaluate(model, make_rollout())
    assert (judged.values == 0).all()
    assert judged.logprobs.abs().sum() > 0
    assert (model.value_backbone is None) == (backbone == "shared")


@pytest.mark.parametrize("backbone", ["shared", "separate"])
def test_the_value_loss_reaches_its_own_backbone_only(backbone, tiny_llama, make_rollout):
    model = build_actor_critic(tiny_llama(), backbone=backbone)
    torch.nn.init.ones_(model.value_head.weight)
    evaluate(model, make_rollout()).values.sum().backward()
    reached = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None}
    own = "policy" if backbone == "shared" else "value_backbone"
    assert reached == {"value_head", own}
    model.zero_grad()
    rollout = make_rollout()
    judged = model(rollout.input_ids, rollout.attention_mask, rollout.mask, detach_values=True)
    judged.values.sum().backward()
    reached = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None}
    assert "policy" not in reached


def test_the_value_of_a_token_does_not_see_that_token(tiny_llama, make_rollout):
    model = build_actor_critic(tiny_llama())
    torch.nn.init.normal_(model.value_head.weight)
    rollout = make_rollout(lengths=(4, 4, 4, 4))
    before = evaluate(model, rollout).values
    rollout.completion_ids[:, 2] = (rollout.completion_ids[:, 2] + 1) % 200 + 5
    after = evaluate(model, rollout).values
    assert torch.allclose(before[:, :3], after[:, :3], atol=1e-6)
    assert (before[:, 3] - after[:, 3]).abs().min() > 1e-4


def test_padding_changes_no_value(tiny_llama, make_rollout):
    model = build_actor_critic(tiny_llama())
    torch.nn.init.normal_(model.value_head.weight)
    rollout = make_rollout()
    whole = evaluate(model, rollout).values
    assert (whole[rollout.mask == 0] == 0).all()
    for row in range(4):
        kept, length = rollout.prompt_mask[row].bool(), int(rollout.mask[row].sum())
        ids = torch.cat([rollout.prompt_ids[row][kept], rollout.completion_ids[row][:length]])[None]
        alone = model(ids, torch.ones_like(ids), torch.ones(1, length)).values[0]
        assert torch.allclose(alone, whole[row, :length], atol=1e-5)


def test_a_critic_from_a_reward_model_starts_as_its_normalised_score(
    reward_dir, tiny_llama, make_rollout
):
    model = build_actor_critic(tiny_llama(), init=str(reward_dir))
    scorer = RewardModel.load(reward_dir)
    rollout = make_rollout()
    values = evaluate(model, rollout).values
    for row in range(4):
        kept = rollout.prompt_mask[row].bool()
        for t in range(int(rollout.mask[row].sum())):
            ids = torch.cat([rollout.prompt_ids[row][kept], rollout.completion_ids[row][:t]])[None]
            raw = pool_scores(scorer.model, ids, torch.ones_like(ids)).item()
            assert values[row, t].item() == pytest.approx((raw - 0.3) / 2.0, abs=1e-5)
    with pytest.raises(ModelError, match=r"value\.backbone=separate"):
        build_actor_critic(tiny_llama(), backbone="shared", init=str(reward_dir))
    narrow = tiny_llama(hidden_size=16)
    with pytest.raises(ModelError, match="32 wide and the policy 16"):
        build_actor_critic(narrow, init=str(reward_dir))


def test_dropout_is_off_also_in_the_critic(tmp_path, tiny_llama):
    GPT2ForSequenceClassification(
        GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=2, n_positions=64, num_labels=1)
    ).save_pretrained(tmp_path / "gpt2")
    policy = get_peft_model(
        tiny_llama(attention_dropout=0.3), LoraConfig(target_modules=["q_proj"], lora_dropout=0.3)
    )
    model = build_actor_critic(policy, init=str(tmp_path / "gpt2")).train()
    ids = torch.randint(5, 250, (2, 9))
    mask = torch.ones(2, 4)
    first, second = (model(ids, torch.ones_like(ids), mask) for _ in range(2))
    assert torch.equal(first.logprobs, second.logprobs)
    assert torch.equal(first.values, second.values)


def test_a_state_dict_holds_every_trained_tensor_once(tiny_llama):
    tied = build_actor_critic(tiny_llama(tie_word_embeddings=True))
    state = tied.state_dict()
    pointers = [t.data_ptr() for t in state.values() if t.data_ptr()]
    assert len(pointers) == len(set(pointers))
    assert "policy.model.embed_tokens.weight" in state
    assert "policy.lm_head.weight" not in state
    trained = {n for n, p in tied.named_parameters() if p.requires_grad}
    assert trained <= state.keys()


def test_a_state_dict_leaves_the_frozen_base_out(tiny_llama):
    policy = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    model = build_actor_critic(policy, backbone="shared")
    state = model.state_dict()
    assert {n for n, p in model.named_parameters() if p.requires_grad} <= state.keys()
    assert all("lora" in n or n.startswith("value_head") for n in state)


def test_saved_and_loaded_it_says_the_same(tiny_llama, make_rollout, moved):
    model = moved(build_actor_critic(tiny_llama(tie_word_embeddings=True)))
    fresh = build_actor_critic(tiny_llama(seed=9, tie_word_embeddings=True))
    rollout = make_rollout()
    wanted = evaluate(model, rollout)
    assert (evaluate(fresh, rollout).logprobs - wanted.logprobs).abs().max() > 0.01
    missing = fresh.load_state_dict(model.state_dict(), strict=False).missing_keys
    assert set(missing) == set(fresh._keys_to_ignore_on_save) == {"policy.lm_head.weight"}
    found = evaluate(fresh, rollout)
    assert torch.equal(found.logprobs, wanted.logprobs)
    assert torch.equal(found.values, wanted.values)


def test_the_critic_is_saved_beside_the_policy(tiny_llama, tmp_path):
    model = build_actor_critic(tiny_llama())
    model.save_value(tmp_path / "value")
    saved = load_file(tmp_path / "value" / "value.safetensors")
    assert torch.equal(saved["value_head.weight"], model.value_head.weight)
    assert any(name.startswith("value_backbone.layers.0") for name in saved)


@pytest.mark.parametrize("backbone", ["separate", "shared"])
def test_a_saved_critic_goes_on(tiny_llama, make_rollout, tmp_path, backbone):
    first = build_actor_critic(tiny_llama(), backbone=backbone)
    with torch.no_grad():
        for parameter in first.value_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    first.save_value(tmp_path)
    second = build_actor_critic(tiny_llama(), backbone=backbone, init=str(tmp_path))
    rollout = make_rollout()
    assert evaluate(first, rollout).values.abs().max() > 0.01
    assert torch.equal(evaluate(second, rollout).values, evaluate(first, rollout).values)
    assert all(p.requires_grad for p in second.value_parameters())
    other = {"separate": "shared", "shared": "separate"}[backbone]
    with pytest.raises(ModelError, match=f"has a {backbone} backbone"):
        build_actor_critic(tiny_llama(), backbone=other, init=str(tmp_path))
    with pytest.raises(ModelError, match="not of this policy's shape"):
        build_actor_critic(tiny_llama(hidden_size=64), backbone=backbone, init=str(tmp_path))
    (tmp_path / "value.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(ModelError, match=r"value\.safetensors is damaged"):
        build_actor_critic(tiny_llama(), backbone=backbone, init=str(tmp_path))


def test_the_critic_of_an_adapted_policy_is_a_plain_trainable_copy(tiny_llama):
    policy = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    model = build_actor_critic(policy)
    names = [n for n, _ in model.value_backbone.named_parameters()]
    assert not any("lora" in n or "base_layer" in n for n in names)
    assert all(p.requires_grad for p in model.value_backbone.parameters())
    assert set(names) == {n for n, _ in tiny_llama().model.named_parameters()}


def test_a_half_precision_policy_can_share_its_backbone(tiny_llama, make_rollout):
    model = build_actor_critic(tiny_llama().bfloat16(), backbone="shared")
    judged = evaluate(model, make_rollout())
    assert judged.values.dtype == judged.logprobs.dtype == torch.float32


def test_virtual_tokens_need_a_separate_critic(tiny_llama, make_rollout):
    def tuned():
        return get_peft_model(
            tiny_llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
        )

    with pytest.raises(ModelError, match=r"value\.backbone=separate"):
        build_actor_critic(tuned(), backbone="shared")
    judged = evaluate(build_actor_critic(tuned()), make_rollout())
    assert torch.isfinite(judged.logprobs).all()
