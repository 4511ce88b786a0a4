"""Ensembles, heads and adapters as posteriors: by hand, and on trained models."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import norm

from reward.errors import ModelError, RewardError
from reward.model import (
    Normalisation,
    RewardModel,
    head_count,
    read_normalisation,
    write_normalisation,
)
from reward.outliers import auroc
from reward.posterior import EnsemblePosterior, adapter_scores
from reward.posterior_reward import posterior_of
from reward.score import head_parameters, heads_ids, pooled_features, score_ids

SCORES = torch.tensor([[1.0, 3.0, 5.0], [4.0, 4.0, 4.0]])  # 2 answers, 3 members
STD = (8 / 3) ** 0.5


def test_an_ensemble_by_hand():
    posterior = EnsemblePosterior()
    assert posterior.mean(SCORES).tolist() == [3.0, 4.0]
    assert posterior.std(SCORES).tolist() == pytest.approx([STD, 0.0])
    assert posterior.lower_bound(SCORES, 2.0).tolist() == pytest.approx([3 - 2 * STD, 4.0])
    assert posterior.worst(SCORES).tolist() == [1.0, 4.0]
    assert posterior.margin_mean(SCORES[:1], SCORES[1:]).tolist() == [-1.0]


def test_what_all_members_shift_alike_leaves_margins_certain():
    chosen, rejected = SCORES[:1], SCORES[:1] - 2.0
    posterior = EnsemblePosterior()
    assert posterior.margin_std(chosen, rejected).tolist() == pytest.approx([0.0])
    # Taken apart, both answers are uncertain: root of the sum of variances would be wrong.
    assert posterior.std(chosen).item() == pytest.approx(STD)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_samples_are_members_each_as_often(n):
    drawn = EnsemblePosterior().sample(SCORES, n, seed=3)
    assert drawn.shape == (n, 2)
    assert drawn[:, 1].tolist() == [4.0] * n
    counts = [int((drawn[:, 0] == value).sum()) for value in (1.0, 3.0, 5.0)]
    assert sum(counts) == n
    assert max(counts) - min(counts) <= 1
    again = EnsemblePosterior().sample(SCORES[:1], n, seed=3)  # other rows, the same functions
    assert torch.equal(again[:, 0], drawn[:, 0])


@pytest.mark.parametrize(("shape", "message"), [((3,), r"\(3,\)"), ((3, 1), "at least 2 members")])
def test_what_is_no_ensemble_is_refused(shape, message):
    with pytest.raises(RewardError, match=message):
        EnsemblePosterior().mean(torch.zeros(shape))


def rows_of(model: RewardModel, pairs) -> list[list[int]]:
    prompts = [p.prompt for p in pairs]
    return model.rows(prompts * 2, [p.chosen for p in pairs] + [p.rejected for p in pairs])


def test_a_model_of_several_heads_loads_and_scores_their_mean(folder, make_pairs):
    model = RewardModel.load(folder)
    assert head_count(model.model.config) == 4
    assert read_normalisation(model.model) == Normalisation(0.5, 2.0, 9)
    pairs = make_pairs(5, seed=9)
    prompts, answers = [p.prompt for p in pairs], [p.chosen for p in pairs]
    heads = model.heads_scores(prompts, answers)
    assert heads.shape == (4, 5)
    raw = heads.mean(dim=0)
    assert model.score(prompts, answers) == pytest.approx(raw.tolist(), abs=1e-6)
    assert model(prompts, answers) == pytest.approx(((raw - 0.5) / 2).tolist(), abs=1e-6)
    # one forward pass of transformers' own, a row at a time
    for row, wanted in zip(model.rows(prompts, answers), heads.T, strict=True):
        with torch.no_grad():
            theirs = model.model.model(torch.tensor([row])).last_hidden_state[0, -1]
            assert torch.allclose(model.model.score(theirs), wanted, atol=1e-5)


def test_statistics_do_not_forget_the_heads(trained):
    other = copy.deepcopy(trained)
    write_normalisation(other, Normalisation(1.0, 3.0, 4))
    assert head_count(other.config) == 4
    assert read_normalisation(other) == Normalisation(1.0, 3.0, 4)
    other.config.align_reward = {"heads": 4}
    assert read_normalisation(other) is None


def test_labels_that_are_no_heads_are_refused(trained, tiny_tokenizer, tmp_path):
    other = copy.deepcopy(trained)
    other.config.align_reward = {"heads": 2}
    other.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="4 labels; its config names 2 heads"):
        RewardModel.load(tmp_path, normalise=False)


def test_features_times_the_head_are_the_scores_in_any_order_and_batch(folder, make_pairs):
    model = RewardModel.load(folder)
    rows = rows_of(model, make_pairs(7, seed=4))
    rows[3] = rows[3] * 2
    weight, bias = head_parameters(model.model)
    together = pooled_features(model.model, rows, 0, batch_size=32)
    alone = torch.cat([pooled_features(model.model, [row], 0) for row in rows])
    assert torch.allclose(together, alone, atol=1e-5)
    shuffled = pooled_features(model.model, rows[::-1], 0, batch_size=3)
    assert torch.allclose(shuffled.flip(0), together, atol=1e-5)
    heads = heads_ids(model.model, rows, 0, batch_size=4)
    assert torch.allclose(together.double() @ weight.T + bias, heads.double(), atol=1e-5)
    assert torch.allclose(heads.mean(dim=1), score_ids(model.model, rows, 0), atol=1e-6)
    assert pooled_features(model.model, [], 0).shape == (0,)


def test_doubt_marks_errors(folder, make_pairs, words):
    """Common words are learnt; of rare ones the heads know nothing, and are right by chance."""
    model = RewardModel.load(folder)
    posterior, _ = posterior_of(model, "heads")
    spreads, doubts, wrong = [], [], []
    for vocabulary in reversed(words):
        pairs = [p for p in make_pairs(300, seed=6, words=vocabulary) if p.chosen != p.rejected]
        chosen, rejected = heads_ids(model.model, rows_of(model, pairs), 0).chunk(2)
        right = (posterior.margin_mean(chosen, rejected) > 0).numpy()
        wrong.append(right != np.array([p.truth for p in pairs]))
        spreads.append(posterior.margin_std(chosen, rejected).numpy())
        doubts.append(posterior.doubt(chosen, rejected).numpy())
    assert wrong[1].mean() < 0.15
    assert wrong[0].mean() > 1.5 * wrong[1].mean()
    every, missed = np.concatenate(doubts), np.concatenate(wrong)
    assert auroc(every, missed).low > 0.6
    assert auroc(doubts[1], wrong[1]).low > 0.5  # among pairs of common words alone
    # The negative control: a wide margin is often far from 0, and marks no error by itself.
    assert auroc(np.concatenate(spreads), missed).value < 0.5


def test_adapters_on_one_base_are_members(trained, make_pairs, tiny_tokenizer):
    base = copy.deepcopy(trained)
    settings = LoraConfig(
        task_type="SEQ_CLS",
        target_modules=["q_proj"],
        modules_to_save=["score"],
        init_lora_weights=False,
    )
    torch.manual_seed(1)
    model = get_peft_model(base, settings, adapter_name="first").eval()
    model.add_adapter("second", settings)
    rows = rows_of(RewardModel(trained, tiny_tokenizer), make_pairs(3, seed=5))
    found = adapter_scores(model, rows, ["first", "second"], 0)
    assert found.shape == (6, 2)
    assert model.active_adapter == "first"  # as it was
    model.set_adapter("second")
    assert torch.allclose(found[:, 1], score_ids(model, rows, 0))
    assert (found[:, 0] - found[:, 1]).abs().max() > 1e-3
    with pytest.raises(ModelError, match=r"no adapter 'third'; it holds first, second"):
        adapter_scores(model, rows, ["first", "third"], 0)
    with pytest.raises(ModelError, match="holds none"):
        adapter_scores(trained, rows, ["first", "second"], 0)


def test_doubt_by_hand():
    """Margins 1, 2, 3 lie 2 / sqrt(2 / 3) deviations from 0."""
    zero = torch.zeros(1, 3)
    margins = torch.tensor([[1.0, 2.0, 3.0]])
    posterior = EnsemblePosterior()
    wanted = norm.cdf(-2 / (2 / 3) ** 0.5)
    assert posterior.doubt(margins, zero).item() == pytest.approx(wanted)
    assert posterior.doubt(zero, margins).item() == pytest.approx(wanted)  # whichever is first
    assert posterior.doubt(zero, zero).item() == 0.5
    assert posterior.doubt(zero + 1, zero).item() == 0.0
