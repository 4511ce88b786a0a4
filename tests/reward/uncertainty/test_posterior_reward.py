"""Rewards of a posterior: modes, metrics and scale, for heads, Laplace and dropout alike."""

from __future__ import annotations

import copy

import pytest
import torch

from align.config import load_config
from align.config.stages import PPOStage
from align.errors import ConfigError
from align.ppo.rewards import RewardScorer
from align.stages.rewards import check_rewards, open_rewards
from reward.ensemble import EnsembleReward
from reward.errors import ModelError, RewardError
from reward.laplace import LastLayerLaplace
from reward.model import RewardModel
from reward.posterior import EnsemblePosterior
from reward.posterior_reward import (
    STATE,
    PosteriorReward,
    load_posterior_reward,
    posterior_of,
)
from reward.score import head_parameters

PROMPTS, ANSWERS = ["Say 1: ", "Say 2: ", "Say 3: "], ["sun sea sky", "mud fog", "oak jet vat elm"]


@pytest.fixture(scope="module")
def with_laplace(folder, make_pairs):
    """The saved model with a posterior beside it."""
    model = RewardModel.load(folder)
    pairs = make_pairs(100, seed=3)
    prompts = [p.prompt for p in pairs]
    chosen = model.features(prompts, [p.chosen for p in pairs])
    rejected = model.features(prompts, [p.rejected for p in pairs])
    LastLayerLaplace.fit(*head_parameters(model.model), chosen, rejected).save(folder / STATE)
    return folder


@pytest.mark.parametrize(
    ("kind", "options"),
    [("heads", {}), ("laplace", {}), ("dropout", {"samples": 4}), ("dropout", {"rate": 0.2})],
)
def test_a_reward_is_the_bound_of_its_posterior_in_normalised_units(kind, options, with_laplace):
    reward = load_posterior_reward(with_laplace, kind, pessimism=0.7, **options)
    noted = {}
    found = reward(PROMPTS, ANSWERS, log_metric=noted.__setitem__, answer=["x"] * 3)
    features = reward.read(PROMPTS, ANSWERS)
    mean, std = reward.posterior.mean(features), reward.posterior.std(features)
    assert (std > 1e-4).all()
    wanted = (mean - 0.7 * std - 0.5) / 2.0  # the model's own statistics
    assert found == pytest.approx(wanted.tolist())
    assert found == pytest.approx(
        ((reward.posterior.lower_bound(features, 0.7) - 0.5) / 2.0).tolist()
    )
    assert noted["reward/disagreement"] == pytest.approx(float(std.mean()) / 2.0)
    assert noted["reward/lower_bound"] == pytest.approx(sum(found) / 3)
    raw = load_posterior_reward(with_laplace, kind, mode="mean", normalise=False, **options)
    assert raw(PROMPTS, ANSWERS) == pytest.approx(mean.tolist())
    assert reward([], []) == []


@pytest.mark.parametrize("kind", ["heads", "laplace"])
def test_the_mean_is_the_models_own_score(kind, with_laplace):
    reward = load_posterior_reward(with_laplace, kind, mode="mean")
    own = RewardModel.load(with_laplace)(PROMPTS, ANSWERS)
    assert reward(PROMPTS, ANSWERS) == pytest.approx(own, abs=1e-5)


def test_heads_are_an_ensemble_of_models_with_one_head_each(folder):
    """Grouped on one trunk or apart: the same reward."""
    model = RewardModel.load(folder)

    def member(head: int):
        one = copy.deepcopy(model.model)
        one.score.weight = torch.nn.Parameter(one.score.weight[head : head + 1].clone())
        return RewardModel(one, model.tokenizer, model.normalisation)

    for mode in ("mean", "lower_bound", "worst"):
        apart = EnsembleReward([member(head) for head in range(4)], mode=mode, pessimism=0.5)
        together = load_posterior_reward(folder, "heads", mode=mode, pessimism=0.5)
        assert together(PROMPTS, ANSWERS) == pytest.approx(apart(PROMPTS, ANSWERS), abs=1e-5)


def test_what_is_refused(folder, trained, tiny_tokenizer, with_laplace):
    def read(prompts, completions, **columns):
        return torch.zeros(len(completions), 2)

    with pytest.raises(RewardError, match="mode is one of mean, lower_bound, worst"):
        PosteriorReward(EnsemblePosterior(), read, mode="median")
    with pytest.raises(RewardError, match="pessimism is at least 0"):
        PosteriorReward(EnsemblePosterior(), read, pessimism=-1.0)
    with pytest.raises(RewardError, match="has no worst score"):
        load_posterior_reward(with_laplace, "laplace", mode="worst")
    single = copy.deepcopy(trained)
    single.config.align_reward = {}
    single.config.attention_dropout = 0.0
    model = RewardModel(single, tiny_tokenizer)
    with pytest.raises(ModelError, match="one head, and nothing to disagree with"):
        posterior_of(model, "heads")
    with pytest.raises(ModelError, match="names no dropout"):
        posterior_of(model, "dropout")
    with pytest.raises(ModelError, match="there is no uncertainty/laplace"):
        posterior_of(model, "laplace", folder=folder.parent)
    with pytest.raises(ModelError, match="name the folder"):
        posterior_of(model, "laplace")
    with pytest.raises(ModelError, match="heads, laplace or dropout, not 'swag'"):
        posterior_of(model, "swag")


def ppo(tmp_path, *rewards: str):
    file = tmp_path / "ppo.yaml"
    lines = "".join(f"  - {reward}\n" for reward in rewards)
    file.write_text(f"model: {{path: policy}}\ndata: {{train: prompts.jsonl}}\nreward:\n{lines}")
    return load_config(PPOStage, file).reward


@pytest.mark.parametrize("kind", ["heads", "laplace", "dropout", "dropout, dropout: 0.2"])
def test_named_in_yaml(kind, with_laplace, tmp_path, make_rollout):
    sections = ppo(
        tmp_path, f"{{path: {with_laplace}, posterior: {kind}, pessimism: 2, samples: 3}}"
    )
    check_rewards(sections)
    score = open_rewards(sections)
    assert isinstance(score, RewardScorer)
    rollout = make_rollout(prompts=(2, 2, 2), lengths=(2, 3, 4))
    rollout.prompts, rollout.completions = PROMPTS, ANSWERS
    total, metrics = score(rollout)
    plain = open_rewards(ppo(tmp_path, f"{{path: {with_laplace}}}"))(rollout)[0]
    assert metrics["reward/disagreement"] > 0
    assert metrics["reward/lower_bound"] == pytest.approx(sum(total) / 3)
    if "dropout" not in kind:  # whose mean over masks is not the model's own score
        lost = (sum(plain) - sum(total)) / 3
        assert lost == pytest.approx(2 * metrics["reward/disagreement"], abs=1e-5)


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("posterior: ensemble", "reward.0.posterior: ensemble is of the reward model(s) in `ensem"),
        ("posterior: laplace", "reward.0.posterior: laplace does not fit"),
        ("posterior: heads", "it has one head"),
        ("posterior: dropout", "names no dropout"),
        ("dropout: 0.1", "reward.0.dropout: is the rate of `posterior: dropout`"),
        ("posterior: laplace, mode: worst", "reward.0.mode: worst needs finitely many"),
        ("mode: lower_bound", "reward.0.mode: is of a posterior or an ensemble"),
        ("pessimism: 2.0", "reward.0.pessimism: is of a posterior or an ensemble"),
        ("samples: 8", "reward.0.samples: is of a posterior or an ensemble"),
    ],
)
def test_posteriors_that_are_not_there_are_told_before_anything_loads(
    rest, message, trained, tiny_tokenizer, tmp_path
):
    single = copy.deepcopy(trained)
    single.config.align_reward = {"mean": 0.0, "std": 1.0, "samples": 4}
    single.config.attention_dropout = 0.0
    single.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError) as caught:
        check_rewards(ppo(tmp_path, f"{{path: {tmp_path / 'model'}, {rest}}}"))
    assert message in str(caught.value)


def test_a_function_has_no_posterior(tmp_path):
    with pytest.raises(ConfigError, match="heads is of the reward model"):
        check_rewards(ppo(tmp_path, "{function: 'a:b', posterior: heads}"))
    with pytest.raises(ConfigError, match=r"reward\.0\.samples"):
        ppo(tmp_path, "{path: x, posterior: dropout, samples: 1}")


def test_heads_without_statistics_are_refused_unless_raw(trained, tiny_tokenizer, tmp_path):
    bare = copy.deepcopy(trained)
    bare.config.align_reward = {"heads": 4}
    bare.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    path = tmp_path / "model"
    with pytest.raises(ConfigError, match="carries no normalisation statistics"):
        check_rewards(ppo(tmp_path, f"{{path: {path}, posterior: heads}}"))
    check_rewards(ppo(tmp_path, f"{{path: {path}, posterior: heads, normalise: false}}"))
