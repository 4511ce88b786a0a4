"""Best of n against enumeration; rejection sampling down to data that `align sft` reads."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch

from align.config.sections import DataSection
from align.data import load_splits
from align.rollout.best_of import (
    BestOfN,
    accepted,
    best_of_curve,
    best_of_kl,
    best_of_n,
    best_of_n_kl,
    draw_best,
    sft_rows,
    take,
)
from align.rollout.transformers import TransformersSampler

QUESTIONS = ["Where is it", [{"role": "user", "content": "Hello"}], "Thank you"]


@pytest.fixture
def sampler(tiny_llama, tiny_tokenizer):
    return TransformersSampler(tiny_llama(seed=4), tiny_tokenizer, max_new_tokens=6, seed=0)


def lengths(rollout):
    return (rollout.mask.sum(dim=1) + rollout.completion_ids[:, 0] / 1000).tolist(), {"m": 1.0}


def test_the_winner_is_the_best_of_its_own_prompt(sampler):
    winners = best_of_n(sampler, lengths, QUESTIONS, 5, place=["a", "b", "c"])
    drawn = sampler(QUESTIONS, group_size=5, place=["a", "b", "c"])
    scores = torch.tensor(lengths(drawn)[0]).view(3, 5)
    assert torch.allclose(torch.tensor(lengths(winners)[0]), scores.max(dim=1).values)
    assert winners.prompts == QUESTIONS
    assert winners.columns == {"place": ["a", "b", "c"]}
    for row, best in enumerate(scores.argmax(dim=1).tolist()):
        assert torch.equal(winners.completion_ids[row], drawn.completion_ids[5 * row + best])
        assert winners.completions[row] == drawn.completions[5 * row + best]
        assert torch.equal(winners.logprobs[row], drawn.logprobs[5 * row + best])


def test_one_of_one_is_the_draw_and_none_is_refused(sampler):
    plain = sampler(QUESTIONS, group_size=1)
    assert best_of_n(sampler, lengths, QUESTIONS, 1).completions == plain.completions
    with pytest.raises(ValueError, match="n is 0"):
        best_of_n(sampler, lengths, QUESTIONS, 0)


def test_best_of_n_is_a_sampler(sampler):
    rollout = BestOfN(sampler, lengths, 3)(QUESTIONS, group_size=2, place=[1, 2, 3])
    assert len(rollout) == 6
    assert rollout.prompts == [q for q in QUESTIONS for _ in range(2)]
    assert rollout.columns["place"] == [1, 1, 2, 2, 3, 3]
    every = draw_best(sampler, lengths, QUESTIONS, 3, group_size=2)
    assert every.drawn_scores.shape == (6, 3)
    assert torch.equal(every.scores, every.drawn_scores.max(dim=1).values)
    assert torch.equal(rollout.completion_ids, every.winners.completion_ids)


def test_take_keeps_every_field_together(make_rollout):
    rollout = make_rollout(columns={"x": [1, 2, 3, 4]}, version=7, temperature=0.5)
    rollout.real = torch.arange(24.0).view(4, 6)
    chosen = take(rollout, torch.tensor([2, 0]))
    assert chosen.columns == {"x": [3, 1]}
    assert torch.equal(chosen.real, rollout.real[[2, 0]])
    assert torch.equal(chosen.prompt_ids, rollout.prompt_ids[[2, 0]])
    assert (chosen.version, chosen.temperature, len(chosen)) == (7, 0.5, 2)


def test_kl_is_that_of_the_maximum_of_n():
    """Best of n of a distribution without ties has density n u^(n-1) in the rank u."""
    for n in (1, 2, 4, 64):
        u = (np.arange(1_000_000) + 0.5) / 1_000_000
        density = n * u ** (n - 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            integrand = np.where(density > 0, density * np.log(density), 0.0)
        assert best_of_n_kl(n) == pytest.approx(integrand.mean(), abs=1e-4)
    assert best_of_n_kl(1) == 0
    with pytest.raises(ValueError, match="n is 0"):
        best_of_n_kl(0)


def test_the_estimator_is_the_mean_over_all_subsets():
    generator = np.random.default_rng(0)
    proxy = generator.normal(size=(3, 7))
    proxy[0, 2] = proxy[0, 5] = proxy[0].max() + 1  # a tie at the top
    proxy[1, 1] = proxy[1, 3]
    gold = generator.normal(size=(3, 7))
    found = best_of_curve(proxy, [1, 2, 5, 7], gold)
    for row, (column, k) in itertools.product(range(3), enumerate([1, 2, 5, 7])):
        values = []
        for chosen in itertools.combinations(range(7), k):
            top = max(proxy[row, list(chosen)])
            values.append(np.mean([gold[row, i] for i in chosen if proxy[row, i] == top]))
        assert found[row, column] == pytest.approx(np.mean(values), abs=1e-12)


def test_the_estimator_of_the_proxy_ends_at_mean_and_maximum():
    proxy = np.random.default_rng(1).normal(size=(4, 256))
    curve = best_of_curve(proxy, list(range(1, 257)))
    assert np.allclose(curve[:, 0], proxy.mean(axis=1))
    assert np.allclose(curve[:, -1], proxy.max(axis=1))
    assert (np.diff(curve, axis=1) > 0).all()


@pytest.mark.parametrize("ks", [[0], [8], []])
def test_k_beyond_the_draws_is_refused(ks):
    with pytest.raises(ValueError, match="k must lie in 1 to 7"):
        best_of_curve(np.zeros((2, 7)), ks)
    with pytest.raises(ValueError, match=r"\(P, N\) tables"):
        best_of_curve(np.zeros((2, 7)), [1], np.zeros((2, 6)))


def test_rejection_keeps_what_a_rule_says_in_order():
    scores = [0.5, 2.0, -1.0, 2.0, 1.0]
    assert accepted(scores, threshold=1.0) == [1, 3, 4]
    assert accepted(scores, fraction=0.2) == [1]
    assert accepted(scores, fraction=0.5) == [1, 3, 4]  # rounded up
    assert accepted(scores, fraction=1.0) == [0, 1, 2, 3, 4]
    assert accepted(scores, threshold=math.inf) == []
    for rule in ({}, {"threshold": 1.0, "fraction": 0.5}):
        with pytest.raises(ValueError, match="either"):
            accepted(scores, **rule)
    with pytest.raises(ValueError, match="above 0"):
        accepted(scores, fraction=0.0)


@pytest.mark.parametrize("chat", [True, False])
def test_winners_are_sft_data(sampler, tmp_path, chat):
    asked = ["Where is it", "Thank you", "Hello"]
    prompts = [[{"role": "user", "content": q}] for q in asked] if chat else asked
    every = draw_best(sampler, lengths, prompts, 3)
    file = tmp_path / "winners.jsonl"
    kept = sft_rows(every.winners, every.scores.tolist())
    file.write_text("".join(json.dumps(row) + "\n" for row in kept))
    section = DataSection(train=[{"path": str(file)}], validation_fraction=0)
    rows = load_splits(section, "sft").train.to_list()
    assert [row["prompt"] for row in rows] == prompts
    assert [row["completion"] for row in rows] == every.winners.completions


def test_the_kl_without_ties_is_the_formula_and_never_more_with_them():
    ks = [1, 2, 4, 16]
    exact = [best_of_n_kl(k) for k in ks]
    continuous = np.random.default_rng(0).random((3, 20_000))
    np.testing.assert_allclose(best_of_kl(continuous, ks), [exact] * 3, atol=2e-3)
    tied = np.random.default_rng(1).integers(0, 5, (50, 64))
    assert (best_of_kl(tied, ks) <= np.asarray(exact) + 1e-12).all()
    assert (best_of_kl(tied, ks)[:, 1:] < 0.98 * np.asarray(exact)[1:]).all()


def test_the_kl_with_ties_is_that_of_the_winners_distribution():
    """One answer in four is right: the best of 2 is right with probability 1 - (3/4)^2."""
    right = 1 - 0.75**2
    kl = right * np.log(right / 0.25) + (1 - right) * np.log((1 - right) / 0.75)
    assert best_of_kl([[0, 0, 1, 0]], [2])[0, 0] == pytest.approx(kl)
    assert best_of_kl([[3.0, 3.0]], [1, 8]).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("proxy", "ks"), [([1.0], [1]), ([[1.0]], []), ([[1.0]], [0]), ([[]], [1])]
)
def test_a_kl_of_nothing_is_refused(proxy, ks):
    with pytest.raises(ValueError, match="best_of_kl"):
        best_of_kl(proxy, ks)
