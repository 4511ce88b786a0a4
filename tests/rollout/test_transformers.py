"""The sampler: what it draws, what it says about it, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig

from align.data.tokens import encode_prompt
from align.engine.head import policy_logprobs
from align.errors import ModelError
from align.rollout.cache import SlotCache
from align.rollout.transformers import TransformersSampler, end_ids

PROMPTS = ["Where is", "Thank you, that", "I", "The quick brown fox jumps over the lazy"]
OTHERS = {
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.3),
    "gpt_neox": GPTNeoXConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=0.3,
    ),
}


@pytest.fixture(scope="module")
def policy(tiny_llama, tiny_tokenizer):
    """A policy that ends some answers early: about one token in thirty ends one."""
    model = tiny_llama(seed=3)
    model.generation_config.eos_token_id = [tiny_tokenizer.eos_token_id, *range(100, 114)]
    return model


def other(name: str, tokenizer) -> torch.nn.Module:
    config = OTHERS[name]
    config.vocab_size = len(tokenizer)
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_greedy_is_generate_token_for_token(name, policy, tiny_tokenizer):
    model = policy if name == "llama" else other(name, tiny_tokenizer)
    sampler = TransformersSampler(model, tiny_tokenizer, max_new_tokens=20, temperature=0)
    rollout = sampler(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        ids = torch.tensor([encode_prompt(prompt, tiny_tokenizer)])
        expected = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=end_ids(model, tiny_tokenizer),
            pad_token_id=tiny_tokenizer.pad_token_id,
        )[0, ids.shape[1] :]
        found = rollout.completion_ids[row][rollout.mask[row].bool()]
        assert found.tolist() == expected.tolist()
        assert bool(rollout.finished[row]) == (
            expected[-1].item() in end_ids(model, tiny_tokenizer)
        )


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("group_size", [1, 3])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_log_probabilities_are_the_policys_own(
    name, group_size, temperature, policy, tiny_tokenizer, monkeypatch
):
    model = policy if name == "llama" else other(name, tiny_tokenizer)
    shrunk = []
    original = SlotCache.select
    monkeypatch.setattr(
        SlotCache, "select", lambda self, keep: shrunk.append(len(keep)) or original(self, keep)
    )
    sampler = TransformersSampler(
        model, tiny_tokenizer, max_new_tokens=24, temperature=temperature, seed=1
    )
    rollout = sampler(PROMPTS * 5, group_size=group_size)
    if name == "llama":
        assert shrunk  # finished rows did leave the batch
        assert 0 < rollout.finished.sum() < len(rollout)
    with torch.no_grad():
        expected = policy_logprobs(model, rollout)
    assert (expected - rollout.logprobs * rollout.mask).abs().max() < 1e-5
    rollout.temperature = temperature * 1.1  # the negative control
    with torch.no_grad():
        assert (policy_logprobs(model, rollout) - rollout.logprobs).abs().max() > 1e-3


def test_log_probabilities_outside_the_mask_are_zero(policy, tiny_tokenizer):
    rollout = TransformersSampler(policy, tiny_tokenizer, max_new_tokens=24, seed=1)(PROMPTS * 2)
    assert (rollout.mask == 0).any()
    assert (rollout.logprobs[rollout.mask == 0] == 0).all()
    assert (rollout.completion_ids[rollout.mask == 0] == tiny_tokenizer.pad_token_id).all()


def test_adapters_are_sampled_from(tiny_llama, tiny_tokenizer):
    torch.manual_seed(0)
    adapted = get_peft_model(
        tiny_llama(seed=3), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    ).eval()
    rollout = TransformersSampler(adapted, tiny_tokenizer, max_new_tokens=8, seed=0)(PROMPTS)
    with torch.no_grad():
        expected = policy_logprobs(adapted, rollout)
        with adapted.disable_adapter():
            bare = policy_logprobs(adapted, rollout)
    assert (expected - rollout.logprobs * rollout.mask).abs().max() < 1e-5
    assert (bare - expected).abs().max() > 1e-3


def test_tokens_are_drawn_with_the_models_frequencies(policy, tiny_tokenizer):
    sampler = TransformersSampler(
        policy, tiny_tokenizer, max_new_tokens=1, temperature=0.8, batch_size=30_000, seed=0
    )
    rollout = sampler(["Where is"], group_size=30_000)
    ids = torch.tensor([encode_prompt("Where is", tiny_tokenizer)])
    with torch.no_grad():
        wanted = (policy(input_ids=ids).logits[0, -1] / 0.8).softmax(-1)
    counts = torch.bincount(rollout.completion_ids[:, 0], minlength=len(wanted)) / 30_000
    assert (counts - wanted).abs().sum() < 0.12
    assert (counts - wanted.roll(1)).abs().sum() > 0.5


def test_min_new_tokens_holds_and_log_probabilities_stay_the_policys(policy, tiny_tokenizer):
    plain = TransformersSampler(policy, tiny_tokenizer, max_new_tokens=12, seed=2)(PROMPTS * 4)
    assert plain.mask.sum(1).min() < 6
    longer = TransformersSampler(
        policy, tiny_tokenizer, max_new_tokens=12, min_new_tokens=6, seed=2
    )(PROMPTS * 4)
    assert longer.mask.sum(1).min() >= 7
    with torch.no_grad():
        expected = policy_logprobs(policy, longer)
    assert (expected - longer.logprobs * longer.mask).abs().max() < 1e-5


def test_a_seed_repeats_and_leaves_the_global_generator_alone(policy, tiny_tokenizer):
    sampler = TransformersSampler(policy, tiny_tokenizer, max_new_tokens=10, seed=5)
    before = torch.random.get_rng_state()
    first, second = sampler(PROMPTS), sampler(PROMPTS)
    assert torch.equal(first.completion_ids, second.completion_ids)
    assert torch.equal(before, torch.random.get_rng_state())
    sampler.seed = None
    torch.manual_seed(0)
    third, fourth = sampler(PROMPTS), sampler(PROMPTS)
    assert third.completion_ids.shape != fourth.completion_ids.shape or not torch.equal(
        third.completion_ids, fourth.completion_ids
    )


def test_groups_lie_side_by_side_with_their_columns(policy, tiny_tokenizer):
    sampler = TransformersSampler(policy, tiny_tokenizer, max_new_tokens=5, seed=0, batch_size=4)
    rollout = sampler(PROMPTS, group_size=2, answer=[1, 2, 3, 4])
    assert rollout.prompts == [p for p in PROMPTS for _ in range(2)]
    assert rollout.columns == {"answer": [1, 1, 2, 2, 3, 3, 4, 4]}
    for row, prompt in enumerate(rollout.prompts):
        kept = rollout.prompt_ids[row][rollout.prompt_mask[row].bool()]
        assert kept.tolist() == encode_prompt(prompt, tiny_tokenizer)
        ids = rollout.completion_ids[row][rollout.mask[row].bool()]
        assert tiny_tokenizer.decode(ids, skip_special_tokens=True) == rollout.completions[row]


def test_conversations_are_answered_with_a_message(policy, tiny_tokenizer):
    prompt = [{"role": "user", "content": "Where is it?"}]
    rollout = TransformersSampler(policy, tiny_tokenizer, max_new_tokens=5, seed=0)([prompt])
    (message,) = rollout.completions[0]
    assert message["role"] == "assistant"


def test_training_mode_survives_and_dropout_does_not(policy, tiny_tokenizer):
    policy.train()
    try:
        TransformersSampler(policy, tiny_tokenizer, max_new_tokens=2)(PROMPTS)
        assert policy.training
    finally:
        policy.eval()


def test_a_prompt_longer_than_the_context_is_named(policy, tiny_tokenizer):
    sampler = TransformersSampler(policy, tiny_tokenizer, max_new_tokens=100)
    with pytest.raises(ModelError, match=r"prompt 1 has \d+ tokens.*context of 128.*Fix"):
        sampler(["I", "word " * 40])
    with pytest.raises(ModelError, match="no prompts"):
        sampler([])


def test_a_chat_template_with_its_own_end_of_turn_ends_the_answer(policy, tiny_tokenizer):
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|eot|>"]})
    assert tokenizer.convert_tokens_to_ids("<|eot|>") not in end_ids(policy, tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace("eos_token", "'<|eot|>'")
    assert tokenizer.convert_tokens_to_ids("<|eot|>") in end_ids(policy, tokenizer)
