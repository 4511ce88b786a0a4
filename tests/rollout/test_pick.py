"""Drawing one token: frequencies, what may not be drawn, and what is said about it."""

from __future__ import annotations

import torch

from align.rollout.pick import BELOW_ONE, build_warpers, pick_tokens, uniform_numbers


def grid(count):
    """Every share of [0, 1) once, so that frequencies are exact up to 1 / count."""
    return torch.arange(count, dtype=torch.float64) / count


def test_frequencies_are_the_probabilities():
    logits = torch.tensor([0.3, -1.0, 2.0, -torch.inf, 0.0])
    tokens, logprobs = pick_tokens(logits.expand(100_000, -1), grid(100_000), temperature=0.7)
    wanted = (logits / 0.7).softmax(-1)
    shares = torch.bincount(tokens, minlength=5) / 100_000
    assert (shares - wanted).abs().max() < 2e-5
    assert shares[3] == 0
    assert torch.allclose(logprobs, wanted.log()[tokens], atol=1e-6)


def test_the_last_number_below_one_draws_a_possible_token():
    logits = torch.cat([torch.zeros(1, 5), torch.full((1, 3), -torch.inf)], dim=1)
    tokens, _ = pick_tokens(logits, torch.tensor([BELOW_ONE], dtype=torch.float64))
    assert tokens.tolist() == [4]
    assert uniform_numbers(50, 50, None).max() <= BELOW_ONE


def test_rare_tokens_of_a_large_vocabulary_are_reached():
    logits = torch.zeros(1, 150_000)
    logits[0, 0] = 18.0  # the others have 2e-8 each: float32 sums would lose them
    share = float(logits.double().softmax(-1)[0, :75_001].sum())
    tokens, _ = pick_tokens(logits, torch.tensor([share], dtype=torch.float64))
    assert abs(int(tokens) - 75_000) < 50


def test_greedy_takes_the_likeliest_and_barred_tokens_are_never_drawn():
    torch.manual_seed(0)
    logits = torch.randn(400, 7)
    greedy, _ = pick_tokens(logits, None)
    assert torch.equal(greedy, logits.argmax(-1))
    barred = torch.zeros(400, 7, dtype=torch.bool).scatter_(1, greedy[:, None], True)
    second, said = pick_tokens(logits, None, barred=barred)
    assert torch.equal(second, logits.topk(2).indices[:, 1])
    drawn, _ = pick_tokens(logits, uniform_numbers(400, 1, None)[:, 0], barred=barred)
    assert (drawn != greedy).all()
    full = logits.log_softmax(-1).gather(1, second[:, None])[:, 0]
    assert torch.allclose(said, full, atol=1e-6)  # of the full distribution


def test_top_k_draws_from_k_and_says_the_full_probability():
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).expand(1000, -1)
    tokens, said = pick_tokens(logits, grid(1000), warpers=build_warpers(2, 1.0, 0.0))
    assert set(tokens.tolist()) == {2, 3}
    assert torch.allclose(said, logits[0].log_softmax(-1)[tokens], atol=1e-6)
    top = (tokens == 3).float().mean()
    assert abs(top - torch.tensor([2.0, 3.0]).softmax(-1)[1]) < 2e-3


def test_half_precision_logits_are_summed_in_float32_and_float64_stays():
    logits = torch.randn(3, 5, dtype=torch.bfloat16)
    tokens, said = pick_tokens(logits, grid(3))
    assert said.dtype == torch.float32
    assert torch.allclose(said, logits.float().log_softmax(-1).gather(1, tokens[:, None])[:, 0])
    assert pick_tokens(logits.double(), grid(3))[1].dtype == torch.float64
