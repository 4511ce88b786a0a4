"""An ensemble's bounds, against values worked out by hand, and real reward models as members."""

from __future__ import annotations

import pytest
import torch

from reward.ensemble import EnsembleReward, disagreement, lower_bound
from reward.errors import ModelError, RewardError
from reward.model import Normalisation, RewardModel, initialise_head, write_normalisation

SCORES = torch.tensor([[1.0, 4.0], [3.0, 4.0], [5.0, 4.0]])  # 3 members, 2 completions
STD = (8 / 3) ** 0.5


def members():
    def member(row):
        return lambda prompts, completions, **columns: row.tolist()

    return [member(row) for row in SCORES]


def test_bounds_by_hand():
    assert disagreement(SCORES).tolist() == pytest.approx([STD, 0.0])
    assert lower_bound(SCORES, 2.0).tolist() == pytest.approx([3 - 2 * STD, 4.0])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("mean", [3.0, 4.0]), ("worst", [1.0, 4.0]), ("lower_bound", [3 - 0.5 * STD, 4.0])],
)
def test_modes(mode, expected):
    noted = {}
    ensemble = EnsembleReward(members(), mode=mode, pessimism=0.5)
    found = ensemble(["p", "p"], ["a", "b"], log_metric=noted.__setitem__, answer=["x", "y"])
    assert found == pytest.approx(expected)
    assert noted == {
        "reward/disagreement": pytest.approx(STD / 2),
        "reward/lower_bound": pytest.approx((3 - 0.5 * STD + 4) / 2),
    }


@pytest.mark.parametrize(
    ("count", "settings", "message"),
    [
        (1, {}, "has 1 member; disagreement needs at least 2"),
        (2, {"mode": "median"}, "mode is one of mean, lower_bound, worst"),
        (2, {"pessimism": -1.0}, "pessimism is at least 0"),
    ],
)
def test_what_is_refused(count, settings, message):
    with pytest.raises(RewardError, match=message):
        EnsembleReward(members()[:count], **settings)


@pytest.fixture(scope="module")
def reward_dirs(tmp_path_factory, tiny_tokenizer, tiny_classifier):
    """Two saved reward models of other seeds and scales, with statistics, and one without."""
    folders = []
    for seed, statistics in enumerate([(0.5, 2.0), (-1.0, 0.1), None]):
        model = tiny_classifier(seed, num_hidden_layers=1, initializer_range=0.02)
        initialise_head(model, seed)
        if statistics:
            write_normalisation(model, Normalisation(*statistics, samples=9))
        folders.append(tmp_path_factory.mktemp("models") / f"member{seed}")
        model.save_pretrained(folders[-1])
        tiny_tokenizer.save_pretrained(folders[-1])
    return folders


def test_reward_models_are_normalised_each_by_its_own_statistics(reward_dirs):
    prompts, completions = ["Where is my order?"] * 3, ["It is here.", "Go away!", "Hm"]
    ensemble = EnsembleReward(reward_dirs[:2], mode="mean")
    apart = [RewardModel.load(path)(prompts, completions) for path in reward_dirs[:2]]
    expected = [(a + b) / 2 for a, b in zip(*apart, strict=True)]
    assert ensemble(prompts, completions) == pytest.approx(expected)
    raw = EnsembleReward(reward_dirs[:2], mode="mean", normalise=False)(prompts, completions)
    assert raw != pytest.approx(expected)
    with pytest.raises(ModelError, match=r"member2 carries no normalisation"):
        EnsembleReward(reward_dirs)
