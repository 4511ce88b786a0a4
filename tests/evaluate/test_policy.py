"""KL, entropy and perplexity of tiny models, against exact sums over the vocabulary."""

import math

import pytest
import torch

from align.errors import DataError, ModelError
from align.evaluate.generate import complete
from align.evaluate.policy import kl_metrics, perplexity, policy_metrics, score_rollout
from align.rollout.transformers import TransformersSampler

PROMPTS = [f"w{row} w{2 * row} w3"[: 5 + row % 4] for row in range(24)]


@pytest.fixture(scope="module")
def policy(make_model):
    return make_model(0)


def sample(policy, tokenizer, temperature=1.0, samples=2, new=5, prompts=PROMPTS):
    sampler = TransformersSampler(policy, tokenizer, max_new_tokens=new, temperature=temperature)
    return complete({"m": sampler}, "m", prompts, samples=samples).rollout()


def test_scores_do_not_depend_on_batch_size_or_padding(policy, tokenizer) -> None:
    rollout = sample(policy, tokenizer)
    logprobs, entropy = score_rollout(policy, rollout, batch_size=64)
    one_by_one = score_rollout(policy, rollout, batch_size=1)
    assert torch.allclose(logprobs, one_by_one[0], atol=1e-5)
    assert torch.allclose(entropy, one_by_one[1], atol=1e-5)
    row = 3  # and by hand, without any padding
    prompt = rollout.prompt_ids[row][rollout.prompt_mask[row].bool()]
    ids = rollout.completion_ids[row][rollout.mask[row].bool()]
    with torch.no_grad():
        table = policy(torch.cat([prompt, ids])[None]).logits[0].log_softmax(dim=-1)
    expected = table[len(prompt) - 1 : -1]
    assert torch.allclose(
        logprobs[row, : len(ids)], expected.gather(1, ids[:, None])[:, 0], atol=1e-5
    )
    by_hand = -(expected.exp() * expected).sum(dim=1)
    assert torch.allclose(entropy[row, : len(ids)], by_hand, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_kl_of_a_policy_to_itself_is_zero(policy, tokenizer, temperature: float) -> None:
    rollout = sample(policy, tokenizer, temperature)
    metrics = policy_metrics(policy, policy, rollout, group_size=2)
    for name in ("kl_k1_token", "kl_k3_token", "kl_k1_sequence", "kl_k3_sequence", "kl_low"):
        assert metrics[name] == 0.0
    assert metrics["sampler_gap"] < 1e-5
    assert 0 < metrics["entropy_token"] < math.log(63)


def test_kl_estimators_agree_with_the_exact_divergence(policy, tokenizer, nearby) -> None:
    """One new token: the exact KL is a sum over the vocabulary, which k1 and k3 must meet."""
    reference = nearby(policy)
    rollout = sample(policy, tokenizer, samples=200, new=1, prompts=PROMPTS[:8])
    metrics = policy_metrics(policy, reference, rollout, group_size=200)
    exact = []
    for prompt in PROMPTS[:8]:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        with torch.no_grad():
            p, q = (m(ids).logits[0, -1].log_softmax(dim=-1) for m in (policy, reference))
        exact.append(float((p.exp() * (p - q)).sum()))
    truth = sum(exact) / len(exact)
    assert truth > 0.02
    assert metrics["kl_k3_sequence"] == pytest.approx(truth, rel=0.15)
    assert metrics["kl_k1_sequence"] == pytest.approx(truth, abs=4 * math.sqrt(2 * truth / 1600))
    assert metrics["kl_low"] < metrics["kl_k1_sequence"] < metrics["kl_high"]


def test_kl_by_hand_and_k3_never_negative() -> None:
    logprobs = torch.tensor([[-1.0, -2.0], [-1.0, -9.0]])
    ref = torch.tensor([[-1.5, -1.0], [-1.0, -1.0]])
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    metrics = kl_metrics(logprobs, ref, mask)
    assert metrics["kl_k1_token"] == pytest.approx((0.5 - 1.0 + 0.0) / 3)
    assert metrics["kl_k1_sequence"] == pytest.approx((0.5 - 1.0 + 0.0) / 2)
    k3 = (math.exp(-0.5) - 1 + 0.5) + (math.exp(1.0) - 1 - 1.0)
    assert metrics["kl_k3_token"] == pytest.approx(k3 / 3, rel=1e-6)
    assert metrics["kl_k3_sequence"] == pytest.approx(k3 / 2, rel=1e-6)
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 500, 7, generator=generator)
    noise = kl_metrics(a, b, torch.ones(500, 7))
    assert noise["kl_k3_token"] > 0
    with pytest.raises(DataError, match="3 per prompt"):
        kl_metrics(logprobs, ref, mask, group_size=3)


def test_kl_interval_is_over_prompts_not_samples() -> None:
    generator = torch.Generator().manual_seed(1)
    logprobs, ref = torch.randn(2, 60, 5, generator=generator)
    once = kl_metrics(logprobs, ref, torch.ones(60, 5))
    eight = [tensor.repeat_interleave(8, dim=0) for tensor in (logprobs, ref)]
    copied = kl_metrics(*eight, torch.ones(480, 5), group_size=8)
    naive = kl_metrics(*eight, torch.ones(480, 5))
    assert (copied["kl_low"], copied["kl_high"]) == pytest.approx((once["kl_low"], once["kl_high"]))
    assert naive["kl_high"] - naive["kl_low"] < 0.5 * (once["kl_high"] - once["kl_low"])


def test_sampler_gap_shows_a_model_that_is_not_the_sampler(policy, tokenizer, nearby) -> None:
    rollout = sample(policy, tokenizer)
    assert policy_metrics(nearby(policy), None, rollout)["sampler_gap"] > 0.05
    assert "kl_k1_token" not in policy_metrics(policy, None, rollout)


def test_dropout_mode_is_restored(policy, tokenizer) -> None:
    rollout = sample(policy, tokenizer)
    policy.train()
    score_rollout(policy, rollout)
    assert policy.training
    policy.eval()


def test_perplexity_by_hand_prompt_not_counted(policy) -> None:
    pairs = [([5, 6], [7, 8, 1]), ([], [9, 10, 11, 12, 1]), ([4], [1])]
    result = perplexity(policy, pairs, batch_size=2)
    total = 0.0
    for prompt, completion in pairs:
        ids = torch.tensor([prompt + completion])
        start = max(1, len(prompt))
        with torch.no_grad():
            table = policy(ids).logits[0].log_softmax(dim=-1)
        total -= sum(float(table[t - 1, ids[0, t]]) for t in range(start, ids.shape[1]))
    assert result.tokens == 3 + 4 + 1
    assert result.nll.value == pytest.approx(total / 8, rel=1e-5)
    assert result.value == pytest.approx(math.exp(total / 8), rel=1e-5)
    assert result.nll.low <= result.nll.value <= result.nll.high
    assert result.as_dict()["perplexity"] == result.value


def test_perplexity_of_whole_texts_only(policy) -> None:
    texts = [([], [5, 6, 7]), ([], [8, 9]), ([], [3])]  # the last has nothing to predict
    assert perplexity(policy, texts).tokens == 3
    one = perplexity(policy, texts, batch_size=1).nll.value
    assert perplexity(policy, texts).nll.value == pytest.approx(one, rel=1e-5)


def test_perplexity_refuses(policy) -> None:
    with pytest.raises(DataError, match="at least one text"):
        perplexity(policy, [([], [5])])
    with pytest.raises(ModelError, match="65 tokens, more than the model's context of 64"):
        perplexity(policy, [([5] * 60, [6] * 5)])
