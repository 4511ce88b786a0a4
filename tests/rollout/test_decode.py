"""The decoding loop: rows that leave and join, on any cache, give what one alone gives."""

from __future__ import annotations

from collections import deque

import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, Gemma3TextConfig, MistralConfig, Qwen3Config

from align.data.tokens import encode_prompt
from align.engine.head import policy_logprobs
from align.errors import ModelError
from align.rollout import runners as runners_module
from align.rollout.cache import SlotCache
from align.rollout.decode import compaction, grouped, take
from align.rollout.runners import PaddedRunner, SlotRunner, fits, packs
from align.rollout.transformers import TransformersSampler

PROMPTS = ["Where is my order", "Thank you, that", "I", "The quick brown fox", "No", "Send it"] * 3
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,
}
KINDS = {
    "qwen3": Qwen3Config(**SIZES),
    "mistral": MistralConfig(**SIZES, sliding_window=6),
    "gemma3": Gemma3TextConfig(
        **SIZES, sliding_window=6, layer_types=["sliding_attention", "full_attention"]
    ),
}


def make(kind, tokenizer, tiny_llama):
    if kind in KINDS:
        config = KINDS[kind]
        config.vocab_size, config.bos_token_id = len(tokenizer), None
        config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    else:
        model = tiny_llama(seed=3)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(100, 120)]
    if kind == "eager":
        model.set_attn_implementation("eager")
    return model


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gemma3", "eager"])
def test_completions_do_not_depend_on_the_batch(kind, tiny_llama, tiny_tokenizer, monkeypatch):
    model = make(kind, tiny_tokenizer, tiny_llama)
    assert fits(model) == (kind != "eager")
    monkeypatch.setattr(runners_module, "SLACK", 3)  # rows must be moved back often
    monkeypatch.setattr(runners_module, "PACK_TOKENS", 40)  # and prompts need several packs
    moves = []
    original = SlotCache.move
    monkeypatch.setattr(
        SlotCache, "move", lambda self, *a: moves.append(self.used) or original(self, *a)
    )
    found = {}
    for batch in (1, 5, 36):
        sampler = TransformersSampler(
            model, tiny_tokenizer, max_new_tokens=20, batch_size=batch, seed=4
        )
        found[batch] = sampler(PROMPTS, group_size=2)
    assert (len(moves) > 0) == (kind != "eager")
    assert 0 < found[36].finished.sum() < 36
    for batch in (1, 5):
        assert torch.equal(found[batch].completion_ids, found[36].completion_ids)
        assert (found[batch].logprobs - found[36].logprobs).abs().max() < 1e-5
    with torch.no_grad():
        expected = policy_logprobs(model, found[5])
    assert (expected - found[5].logprobs).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["qwen3", "mistral", "gemma3"])
def test_greedy_is_generate_beyond_the_window(kind, tiny_llama, tiny_tokenizer):
    model = make(kind, tiny_tokenizer, tiny_llama)
    draws = TransformersSampler(
        model, tiny_tokenizer, max_new_tokens=16, temperature=0, batch_size=4
    ).draw([encode_prompt(prompt, tiny_tokenizer) for prompt in PROMPTS[:6]])
    for prompt, draw in zip(PROMPTS, draws, strict=False):
        ids = torch.tensor([encode_prompt(prompt, tiny_tokenizer)])
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=16,
            do_sample=False,
            pad_token_id=tiny_tokenizer.pad_token_id,
        )
        assert draw.tokens == output[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("method", [PromptTuningConfig, PrefixTuningConfig])
def test_learnt_tokens_go_through_their_wrapper(method, tiny_llama, tiny_tokenizer):
    torch.manual_seed(0)
    config = method(task_type="CAUSAL_LM", num_virtual_tokens=4)
    policy = get_peft_model(tiny_llama(seed=3), config).eval()
    assert not fits(policy)
    sampler = TransformersSampler(policy, tiny_tokenizer, max_new_tokens=10, batch_size=4, seed=0)
    rollout = sampler(PROMPTS[:6], group_size=2)
    with torch.no_grad():
        expected = policy_logprobs(policy, rollout)
        bare = policy_logprobs(policy.get_base_model(), rollout)
    assert (expected - rollout.logprobs).abs().max() < 1e-5
    assert (bare - expected).abs().max() > 1e-3


def test_each_prompt_has_its_own_limit(tiny_llama, tiny_tokenizer):
    model = tiny_llama(seed=3)
    sampler = TransformersSampler(model, tiny_tokenizer, batch_size=3, seed=0)
    ends = sampler.policy.generation_config.eos_token_id
    prompts = [encode_prompt(prompt, tiny_tokenizer) for prompt in PROMPTS[:5]]
    limits = [7, 0, 3, 1, 12]
    draws = sampler.draw(prompts, group_size=2, max_new_tokens=limits)
    assert len(draws) == 10
    for index, draw in enumerate(draws):
        assert len(draw.tokens) == len(draw.logprobs)
        assert draw.finished == (bool(draw.tokens) and draw.tokens[-1] == ends)
        assert draw.finished or len(draw.tokens) == limits[index // 2]
    with pytest.raises(ModelError, match="3 limits for 5 prompts"):
        sampler.draw(prompts, max_new_tokens=[1, 2, 3])
    with pytest.raises(ModelError, match="prompt 1 has no tokens"):
        sampler.draw([[5], []])


@pytest.mark.parametrize("runner", [SlotRunner, PaddedRunner])
def test_a_prompt_is_computed_once_for_its_group(runner, tiny_llama, tiny_tokenizer, monkeypatch):
    model = tiny_llama(seed=3)
    monkeypatch.setattr("align.rollout.transformers.fits", lambda policy: runner is SlotRunner)
    seen = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    prompt = encode_prompt("The quick brown fox", tiny_tokenizer)
    TransformersSampler(model, tiny_tokenizer, max_new_tokens=2).draw([prompt], group_size=4)
    hook.remove()
    assert seen[0] == len(prompt)
    assert seen[1] <= 4


def test_the_models_own_attention_comes_back(tiny_llama, tiny_tokenizer):
    model = tiny_llama(seed=3)
    ids = torch.tensor([encode_prompt("Where is", tiny_tokenizer)])
    with torch.no_grad():
        before = model(ids).logits
        TransformersSampler(model, tiny_tokenizer, max_new_tokens=3).draw(ids.tolist())
        assert model.config._attn_implementation == "sdpa"
        assert torch.equal(model(ids).logits, before)


def test_few_rows_move():
    assert compaction([4, -1, 6, -1, 8, 9]) == [0, 5, 2, 4]
    assert compaction([1, 2, -1]) == [0, 1]
    assert compaction([-1, -1]) == []


def test_whole_groups_join_where_they_fit():
    waiting = deque(range(12))
    assert take(waiting, 7, 3) == [0, 1, 2, 3, 4, 5]
    assert take(waiting, 2, 3) == [6, 7]
    assert take(waiting, 5, 3) == [8, 9, 10, 11]
    assert grouped(["a", "b", "c"], [2, 3, 4, 0], 2) == (["b", "c", "a"], [2, 1, 1])


def test_packs_hold_so_many_tokens(monkeypatch):
    monkeypatch.setattr(runners_module, "PACK_TOKENS", 10)
    assert list(packs([12, 4, 6, 1, 9])) == [[0], [1, 2], [3, 4]]
