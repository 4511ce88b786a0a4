"""Rewards without their taste for length: known slopes, scikit-learn's fits, gradients."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LinearRegression
from transformers import LlamaForSequenceClassification

from align.config.sections import RewardSourceSection
from align.stages.rewards import check_rewards, open_reward
from reward.debias import (
    DebiasedReward,
    LengthState,
    fit_length,
    length_correlation,
    length_correlation_term,
    lengths_of,
)
from reward.errors import RewardError
from reward.functions import call_reward
from reward.model import Normalisation, RewardModel, write_normalisation
from reward.process import load_reward

METHODS = ["linear", "isotonic", "spline"]


def samples(seed: int = 0, n: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rewards that are quality plus 2 log(1 + length); prompts shift both."""
    generator = np.random.default_rng(seed)
    prompts = np.repeat(np.arange(n // 4), 4)
    shift = generator.normal(0, 1, n // 4)[prompts]
    lengths = np.round(np.exp(4 + 0.5 * shift + generator.normal(0, 0.5, n)))
    quality = generator.normal(0, 0.3, n)
    return quality + 2 * np.log1p(lengths) - 5 * shift, lengths, prompts


def correlation(a, b) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def test_a_linear_fit_is_least_squares():
    scores, lengths, _ = samples()
    state = fit_length(scores, lengths, log=False)
    theirs = LinearRegression().fit(lengths[:, None], scores)
    assert scores - state(lengths) - scores.mean() == pytest.approx(
        scores - theirs.predict(lengths[:, None])
    )
    far = np.array([lengths.max() * 3])  # the line goes on
    assert state(far) + scores.mean() == pytest.approx(theirs.predict(far[:, None]))
    assert state.before == pytest.approx(correlation(scores, lengths))
    assert state.after == pytest.approx(0, abs=1e-9)


def test_an_isotonic_fit_equals_sklearn():
    scores, lengths, _ = samples(1)
    for sign in (1, -1):
        fitted = fit_length(sign * scores, lengths, method="isotonic")
        theirs = IsotonicRegression(increasing="auto", out_of_bounds="clip")
        expected = theirs.fit(np.log1p(lengths), sign * scores).predict(np.log1p(lengths))
        assert fitted(lengths) == pytest.approx(expected - expected.mean(), abs=1e-8)
    assert fitted([1e9])[0] == pytest.approx(fitted([lengths.max()])[0])  # level beyond the ends


@pytest.mark.parametrize("method", METHODS)
def test_within_prompts_the_effect_of_length_is_found(method):
    scores, lengths, prompts = samples(2)
    between = fit_length(scores, lengths, method=method)
    within = fit_length(scores, lengths, list(prompts), method=method)
    low, high = np.quantile(lengths, [0.1, 0.9])
    true = 2 * (np.log1p(high) - np.log1p(low))
    assert np.diff(within([low, high]))[0] == pytest.approx(true, rel=0.1)
    assert abs(np.diff(between([low, high]))[0] - true) > 1  # prompts hide it
    assert abs(within.after) < 0.05
    assert within.within
    assert not between.within


def test_within_prompts_equals_a_regression_with_dummies():
    scores, lengths, prompts = samples(3, 80)
    dummies = np.eye(20)[prompts]
    theirs = LinearRegression(fit_intercept=False).fit(
        np.column_stack([np.log1p(lengths), dummies]), scores
    )
    state = fit_length(scores, lengths, list(prompts))
    slope = np.diff(state([0, np.e - 1]))[0]  # one step of log(1 + length)
    assert slope == pytest.approx(theirs.coef_[0])


def test_a_spline_follows_a_bend():
    generator = np.random.default_rng(4)
    lengths = np.round(generator.uniform(10, 500, 600))
    bent = -np.abs(np.log1p(lengths) - 5) + generator.normal(0, 0.1, 600)
    rest = {m: bent - fit_length(bent, lengths, method=m)(lengths) for m in METHODS}
    assert rest["spline"].std() < 0.5 * rest["linear"].std()


@pytest.mark.parametrize("method", METHODS)
def test_a_state_survives_its_file(method, tmp_path):
    scores, lengths, prompts = samples()
    state = fit_length(scores, lengths, list(prompts), method=method, unit="words")
    state.save(tmp_path / "length.json")
    again = LengthState.load(tmp_path / "length.json")
    assert again == state
    assert np.array_equal(again(lengths), state(lengths))


def verbose(completions, **columns):
    """What it likes is length, and a little the letter e."""
    return [np.log1p(len(text)) + 0.1 * text.count("e") / (1 + len(text)) for text in completions]


def texts(n: int = 200) -> list[str]:
    generator = np.random.default_rng(5)
    return ["".join(generator.choice(list("aeiou "), generator.integers(5, 300)))
            for _ in range(n)]  # fmt: skip


def test_the_wrapped_reward_does_not_follow_length():
    answers = texts()
    prompts = ["p"] * len(answers)
    raw = call_reward(verbose, prompts, answers)
    state = fit_length(raw, lengths_of(answers))
    reward = DebiasedReward(verbose, state)
    logged = {}
    left = reward(prompts, answers, log_metric=logged.__setitem__)
    assert correlation(raw, np.log1p(lengths_of(answers))) > 0.99
    assert abs(correlation(left, np.log1p(lengths_of(answers)))) < 1e-6
    assert np.mean(left) == pytest.approx(np.mean(raw))  # the mean stays: statistics may too
    assert reward.__name__ == "verbose_debiased"
    assert logged["verbose_debiased/length_share"] == pytest.approx(0, abs=1e-9)
    # Conversations are measured by what the model said.
    talk = [[{"role": "assistant", "content": text}] for text in answers]
    assert lengths_of(talk).tolist() == lengths_of(answers).tolist()
    assert lengths_of(["two words"], "words").tolist() == [2.0]


def test_it_can_be_named_in_a_configuration(tmp_path, monkeypatch):
    (tmp_path / "served_verbose.py").write_text(
        "def verbose(completions, **columns):\n    return [float(len(t)) for t in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    answers = texts(20)
    lengths = lengths_of(answers)
    fit_length(lengths, lengths, log=False).save("length.json")
    section = RewardSourceSection(
        function="reward.debias:DebiasedReward",
        kwargs={"reward": "served_verbose:verbose", "state": "length.json"},
    )
    check_rewards([section])
    name, reward = open_reward(section)
    assert name == "verbose_debiased"
    assert call_reward(reward, ["p"] * 20, answers) == pytest.approx([lengths.mean()] * 20)


def test_a_reward_model_is_read_when_it_is_wanted(tiny_llama, tiny_tokenizer, tmp_path):
    config = copy.deepcopy(tiny_llama(seed=5).config)
    config.num_labels, config.max_position_embeddings = 1, 2048
    folder = tmp_path / "verbose" / "model"
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    answers = texts(12)
    raw = RewardModel.load(folder, normalise=False).score(["p"] * 12, answers)
    state = fit_length(raw, lengths_of(answers))
    reward = DebiasedReward(str(folder), state)
    assert reward.reward is None
    assert reward.__name__ == "verbose_debiased"
    expected = np.array(raw) - state(lengths_of(answers))
    assert call_reward(reward, ["p"] * 12, answers) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(RewardError, match="there is no reward model at"):
        DebiasedReward(str(tmp_path / "gone"), state)


@pytest.fixture
def saved(tiny_llama, tiny_tokenizer, tmp_path):
    """`saved(**notes)`: a reward model with these notes in its config, normalised by (0.5, 2)."""

    def save(**notes) -> str:
        config = copy.deepcopy(tiny_llama(seed=5).config)
        config.num_labels, config.max_position_embeddings = 1, 2048
        model = LlamaForSequenceClassification(config)
        model.config.align_reward = notes
        write_normalisation(model, Normalisation(0.5, 2.0, 8, "p"))
        model.save_pretrained(tmp_path / "m")
        tiny_tokenizer.save_pretrained(tmp_path / "m")
        return str(tmp_path / "m")

    return save


def test_a_process_reward_is_read_by_its_steps(saved):
    folder = saved(steps="mean")
    answers = [f"One {'more ' * i}.\n\nTwo." for i in range(12)]
    raw = load_reward(folder, normalise=False).score(["p"] * 12, answers)
    state = fit_length(raw, lengths_of(answers))
    expected = np.array(raw) - state(lengths_of(answers))
    assert DebiasedReward(folder, state)(["p"] * 12, answers) == pytest.approx(expected, abs=1e-5)


def test_a_state_goes_with_one_scale(saved, tmp_path):
    folder, answers = saved(), texts(12)
    model = RewardModel.load(folder)
    scores, lengths = model(["p"] * 12, answers), lengths_of(answers)
    fit_length(scores, lengths, normalisation=model.normalisation).save(tmp_path / "n.json")
    state = LengthState.load(tmp_path / "n.json")
    assert state.scale == (0.5, 2.0)
    reward = DebiasedReward(folder, state, normalise=True)
    expected = np.array(scores) - state(lengths)
    assert reward(["p"] * 12, answers) == pytest.approx(expected, abs=1e-5)
    DebiasedReward(model, state)
    with pytest.raises(RewardError, match=r"on scores normalised by mean 0\.5, std 2, and"):
        DebiasedReward(folder, state)
    with pytest.raises(RewardError, match="the reward gives raw scores"):
        DebiasedReward(load_reward(folder, normalise=False), state)
    plain_state = fit_length(scores, lengths)
    with pytest.raises(RewardError, match="fitted on raw scores, and the reward gives scores norm"):
        DebiasedReward(folder, plain_state, normalise=True)
    with pytest.raises(RewardError, match="fitted on raw scores"):
        DebiasedReward(load_reward(saved(steps="min")), plain_state)
    with pytest.raises(RewardError, match=r"mean 0\.4"):
        DebiasedReward(folder, replace(state, scale=(0.4, 2.0)), normalise=True)


def test_where_a_reward_does_not_apply_it_stays_so():
    def sometimes(completions, **columns):
        return [None if "e" in text else float(len(text)) for text in completions]

    answers = [*texts(20), "aaa", "eee"]
    lengths = lengths_of(answers)
    state = fit_length(lengths, lengths, log=False)
    logged = {}
    found = DebiasedReward(sometimes, state)(["p"] * 22, answers, log_metric=logged.__setitem__)
    assert [one is None for one in found] == ["e" in text for text in answers]
    kept = ["e" not in text for text in answers]
    assert [one for one in found if one is not None] == pytest.approx([lengths.mean()] * sum(kept))
    assert logged["sometimes_debiased/length_share"] == pytest.approx(state(lengths[kept]).mean())


def test_conversations_are_groups():
    scores, lengths, prompts = samples(3, 80)
    asked = [[{"role": "user", "content": f"Question {i}?"}] for i in prompts]
    assert fit_length(scores, lengths, asked) == fit_length(scores, lengths, list(prompts))


def test_wrong_fits_and_states(tmp_path):
    scores, lengths, _ = samples()
    with pytest.raises(RewardError, match="at least 8 samples"):
        fit_length(scores[:5], lengths[:5])
    with pytest.raises(RewardError, match="got 400 scores, 399 lengths"):
        fit_length(scores, lengths[1:])
    with pytest.raises(RewardError, match="all lengths are alike within prompts"):
        fit_length(scores, lengths, list(range(400)))
    with pytest.raises(RewardError, match="finite"):
        fit_length(np.where(scores > 0, np.nan, scores), lengths)
    with pytest.raises(RewardError, match="not 'cubic'"):
        fit_length(scores, lengths, method="cubic")
    with pytest.raises(RewardError, match="no length state"):
        LengthState.load(tmp_path / "gone.json")
    state = fit_length(scores, lengths)
    replace(state, values=state.values[:1]).save(tmp_path / "cut.json")
    with pytest.raises(RewardError, match="damaged"):
        LengthState.load(tmp_path / "cut.json")
    (tmp_path / "list.json").write_text(json.dumps([1]))
    with pytest.raises(RewardError, match="no length state"):
        LengthState.load(tmp_path / "list.json")


def test_the_correlation_is_pearsons():
    generator = np.random.default_rng(6)
    scores, lengths = generator.normal(size=64), generator.integers(5, 900, 64)
    found = length_correlation(torch.tensor(scores), torch.tensor(lengths))
    assert float(found) == pytest.approx(correlation(scores, lengths), abs=1e-5)
    groups = np.repeat(np.arange(32), 2)
    centred = [v - v.reshape(-1, 2).mean(1)[groups] for v in (scores, lengths.astype(float))]
    inside = length_correlation(*map(torch.tensor, (scores, lengths, groups)))
    expected = (centred[0] @ centred[1]) / np.sqrt(
        (centred[0] ** 2).sum() * (centred[1] ** 2).sum()
    )
    assert float(inside) == pytest.approx(expected, abs=1e-5)
    assert float(length_correlation_term(torch.tensor(-lengths), torch.tensor(lengths))) > 0.999


def test_the_gradient_is_the_slope():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(12, generator=generator, requires_grad=True)
    lengths = torch.randint(5, 900, (12,), generator=generator)
    length_correlation_term(scores, lengths).backward()
    step = 1e-2
    for row in range(12):
        moved = [scores.detach().clone() for _ in range(2)]
        moved[0][row] += step
        moved[1][row] -= step
        up, down = (float(length_correlation_term(one, lengths)) for one in moved)
        assert float(scores.grad[row]) == pytest.approx((up - down) / (2 * step), abs=2e-3)


def test_lengths_are_no_way_out():
    scores = torch.randn(8, requires_grad=True)
    lengths = torch.rand(8, requires_grad=True)  # such as a soft count of tokens
    length_correlation_term(scores, lengths).backward()
    assert lengths.grad is None
    assert scores.grad.abs().max() > 0


def test_batches_without_spread_give_nothing():
    scores = torch.full((6,), 0.3, requires_grad=True)
    found = length_correlation_term(scores, torch.arange(6))
    found.backward()
    assert float(found.detach()) == 0.0
    assert torch.isfinite(scores.grad).all()
    assert float(length_correlation(torch.randn(6), torch.full((6,), 7))) == pytest.approx(
        0, abs=1e-6
    )


def test_a_head_trained_with_the_term_loses_its_taste():
    """Quality and length both predict the label; the term keeps the first and takes the second."""
    generator = torch.Generator().manual_seed(0)
    quality = torch.randn(512, 2, generator=generator)
    lengths = torch.rand(512, 2, generator=generator) * 100
    better = (quality[:, 0] - quality[:, 1]) + (lengths[:, 0] - lengths[:, 1]) / 30
    sign = torch.where(better > 0, 1.0, -1.0)
    left = {}
    for weight in (0.0, 3.0):
        head = torch.zeros(2, requires_grad=True)
        optimizer = torch.optim.Adam([head], lr=0.05)
        for _ in range(150):
            scores = quality * head[0] + lengths / 30 * head[1]
            loss = -torch.nn.functional.logsigmoid(sign * (scores[:, 0] - scores[:, 1])).mean()
            loss = loss + weight * length_correlation_term(scores.flatten(), lengths.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        left[weight] = float(length_correlation(scores.detach().flatten(), lengths.flatten()))
        assert float(head.detach()[0]) > 0.5
    assert left[0.0] > 0.5
    assert abs(left[3.0]) < 0.1
