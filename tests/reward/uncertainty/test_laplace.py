"""Last-layer Laplace: against a dense Hessian by autograd, closed forms, and what it is for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn.functional import logsigmoid

from reward.errors import ModelError, RewardError
from reward.laplace import (
    FILE,
    LastLayerLaplace,
    bradley_terry_hessian,
    covariance_factor,
    fit_precision,
    log_evidence,
)
from reward.model import RewardModel
from reward.outliers import auroc
from reward.score import head_parameters


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def case():
    """Heads, and features of pairs: K = 2, n = 50, H = 6."""
    return draw(2, 6, seed=1), draw(2, seed=2), draw(50, 6, seed=3), draw(50, 6, seed=4) + 0.3


def test_the_covariance_is_that_of_a_dense_hessian(case):
    weight, bias, chosen, rejected = case
    posterior = LastLayerLaplace.fit(weight, bias, chosen, rejected, precision=0.7)
    for head, covariance in zip(weight, posterior.covariance, strict=True):

        def loss(w: torch.Tensor) -> torch.Tensor:
            fit = logsigmoid(chosen @ w - rejected @ w).sum()
            return -fit + 0.5 * 0.7 * w.square().sum()

        dense = torch.autograd.functional.hessian(loss, head)
        assert torch.allclose(covariance, torch.linalg.inv(dense), atol=1e-8, rtol=0)


def test_a_part_at_a_time_sums_to_the_same_hessian(case):
    weight, _, chosen, rejected = case
    whole = bradley_terry_hessian(chosen - rejected, weight[0])
    assert torch.allclose(
        bradley_terry_hessian(chosen - rejected, weight[0], rows=7), whole, atol=1e-12
    )


def test_deviations_by_hand(case):
    weight, bias, chosen, rejected = case
    one = LastLayerLaplace.fit(weight[:1], bias[:1], chosen, rejected, precision=0.7)
    gap = chosen - rejected
    byhand = torch.einsum("bi,ij,bj->b", gap, one.covariance[0], gap).sqrt()
    assert torch.allclose(one.margin_std(chosen, rejected), byhand, atol=1e-10)
    reference = (chosen.mean(dim=0) + rejected.mean(dim=0)) / 2
    assert torch.allclose(one.reference, reference, atol=1e-12)
    assert one.std(reference[None]).item() == pytest.approx(0.0, abs=1e-12)
    # An answer's deviation is that of its margin against the reference.
    there = reference.expand_as(chosen)
    assert torch.allclose(one.std(chosen), one.margin_std(chosen, there), atol=1e-12)
    origin = torch.zeros(6)
    moved = LastLayerLaplace.fit(
        weight[:1], bias[:1], chosen, rejected, precision=0.7, reference=origin
    )
    plain = torch.einsum("bi,ij,bj->b", chosen, one.covariance[0], chosen).sqrt()
    assert torch.allclose(moved.std(chosen), plain, atol=1e-10)
    # ... which no margin depends on.
    assert torch.equal(moved.margin_std(chosen, rejected), one.margin_std(chosen, rejected))


@pytest.mark.parametrize("heads", [1, 2])
def test_samples_have_the_moments_that_mean_and_std_name(case, heads):
    weight, bias, chosen, rejected = case
    posterior = LastLayerLaplace.fit(weight[:heads], bias[:heads], chosen, rejected, precision=0.7)
    features = torch.cat([chosen[:3], rejected[:3]])
    drawn = posterior.sample(features, 40_000, seed=5)
    assert torch.allclose(drawn.mean(dim=0), posterior.mean(features), atol=0.05)
    assert torch.allclose(drawn.std(dim=0), posterior.std(features), rtol=0.03)
    margins = drawn[:, :3] - drawn[:, 3:]
    assert torch.allclose(
        margins.std(dim=0), posterior.margin_std(chosen[:3], rejected[:3]), rtol=0.03
    )
    few, all_of_them = (posterior.sample(rows, 9, seed=5) for rows in (features[:2], features))
    assert torch.allclose(few, all_of_them[:, :2], atol=1e-12)


def test_a_linear_gaussian_model_has_its_closed_form():
    """y = F w + noise: posterior, predictions and evidence are known exactly."""
    inputs, noise, precision = draw(30, 4, seed=1), 0.5, 2.0
    y = inputs @ draw(4, seed=2) + noise * draw(30, seed=3)
    hessian = inputs.T @ inputs / noise**2
    covariance = torch.linalg.inv(hessian + precision * torch.eye(4))
    weight = covariance @ inputs.T @ y / noise**2
    normal = stats.norm(scale=noise)
    fit = float(normal.logpdf((y - inputs @ weight).numpy()).sum())
    factor, _ = covariance_factor(hessian, weight, fit, precision)
    posterior = LastLayerLaplace(
        weight[None], torch.zeros(1), factor[None], torch.zeros(4), (precision,), 30
    )
    new = draw(8, 4, seed=9)
    assert torch.allclose(posterior.mean(new), new @ weight, atol=1e-10)
    wanted = (new @ covariance @ new.T).diagonal().sqrt()
    assert torch.allclose(posterior.std(new), wanted, atol=1e-10)
    bound = new @ weight - 2 * wanted
    assert torch.allclose(posterior.lower_bound(new, 2.0), bound, atol=1e-10)

    def exact(value: float) -> float:
        marginal = inputs.numpy() @ inputs.numpy().T / value + noise**2 * np.eye(30)
        return float(stats.multivariate_normal(cov=marginal).logpdf(y.numpy()))

    curvature = torch.linalg.eigvalsh(hessian)
    assert log_evidence(fit, weight, curvature, precision) == pytest.approx(exact(precision))
    found = fit_precision(fit, weight, curvature)
    nearby = [log_evidence(fit, weight, curvature, found * f) for f in (0.9, 1.0, 1.1)]
    assert max(nearby) == nearby[1]


def test_evidence_finds_the_prior_that_the_weights_came_from():
    """Weights of deviation 2 in 40 dimensions: precision 0.25, give or take sampling."""
    weight = 2.0 * draw(40, seed=1)
    chosen, rejected = draw(4000, 40, seed=2), draw(4000, 40, seed=3)
    posterior = LastLayerLaplace.fit(weight[None], torch.zeros(1), chosen, rejected)
    assert 0.15 < posterior.precision[0] < 0.45
    tight = LastLayerLaplace.fit(0.05 * weight[None], torch.zeros(1), chosen, rejected)
    assert tight.precision[0] > 20 * posterior.precision[0]


def test_intervals_cover_the_truth():
    """Fitted to labels drawn from known weights, 95% of true margins lie within 1.96 deviations."""
    covered = []
    for seed in range(6):
        truth = draw(5, seed=seed)
        z = draw(300, 5, seed=seed + 100)
        coin = torch.rand(300, generator=torch.Generator().manual_seed(seed))
        z = torch.where((coin < torch.sigmoid(z @ truth))[:, None], z, -z)
        w = torch.zeros(5, dtype=torch.float64)
        for _ in range(30):  # Newton, prior precision 1
            slope = -(z * torch.sigmoid(-z @ w)[:, None]).sum(dim=0) + w
            w = w - torch.linalg.solve(bradley_terry_hessian(z, w) + torch.eye(5), slope)
        zero = torch.zeros_like(z)
        posterior = LastLayerLaplace.fit(w[None], torch.zeros(1), z, zero, precision=1.0)
        new = draw(200, 5, seed=seed + 200)
        spread = posterior.margin_std(new, torch.zeros_like(new))
        covered.append(((new @ (w - truth)).abs() < 1.96 * spread).double().mean().item())
    assert 0.85 < sum(covered) / len(covered) <= 1.0
    assert spread.mean() < 1.0  # and they are not merely wide


def test_saved_beside_the_model_and_loaded(case, tmp_path):
    weight, bias, chosen, rejected = case
    posterior = LastLayerLaplace.fit(weight, bias, chosen, rejected)
    assert posterior.save(tmp_path / "new").name == FILE
    again = LastLayerLaplace.load(tmp_path / "new", (weight, bias))
    assert torch.allclose(again.std(chosen), posterior.std(chosen), rtol=1e-12)
    assert torch.allclose(again.sample(chosen, 3), posterior.sample(chosen, 3), rtol=1e-9)
    assert (again.precision, again.pairs) == (posterior.precision, 50)
    with pytest.raises(ModelError, match="another head"):
        LastLayerLaplace.load(tmp_path / "new", (weight + 1.0, bias))
    with pytest.raises(ModelError, match="another head"):
        LastLayerLaplace.load(tmp_path / "new", (weight[:1], bias[:1]))
    with pytest.raises(ModelError, match=r"no Laplace posterior .* Fix: align reward calibrate"):
        LastLayerLaplace.load(tmp_path)
    (tmp_path / "new" / FILE).write_bytes(b"\x00" * 40)
    with pytest.raises(ModelError, match="damaged"):
        LastLayerLaplace.load(tmp_path / "new")


def test_what_cannot_be_fitted_is_refused(case):
    weight, bias, chosen, rejected = case
    with pytest.raises(ModelError, match="50 chosen and 49 rejected"):
        LastLayerLaplace.fit(weight, bias, chosen, rejected[1:])
    with pytest.raises(ModelError, match="0 chosen"):
        LastLayerLaplace.fit(weight, bias, chosen[:0], rejected[:0])
    with pytest.raises(ModelError, match=r"precision is positive; got -1"):
        LastLayerLaplace.fit(weight, bias, chosen, rejected, precision=-1.0)
    with pytest.raises(RewardError, match=r"\(50, 5\); \(B, 6\) is expected"):
        LastLayerLaplace.fit(weight, bias, chosen[:, 1:], rejected)
    posterior = LastLayerLaplace.fit(weight, bias, chosen, rejected, precision=math.e)
    with pytest.raises(RewardError, match="no worst score"):
        posterior.worst(chosen)


def test_doubt_of_a_trained_model_marks_errors_better_than_small_margins(folder, make_pairs, words):
    """Pairs of words that it was trained on, and of words that it never saw."""
    model = RewardModel.load(folder)

    def features(pairs) -> tuple[torch.Tensor, torch.Tensor]:
        prompts = [p.prompt for p in pairs]
        return (
            model.features(prompts, [p.chosen for p in pairs]),
            model.features(prompts, [p.rejected for p in pairs]),
        )

    weight, bias = head_parameters(model.model)
    mean_head = weight.mean(dim=0, keepdim=True), bias.mean(dim=0, keepdim=True)
    posterior = LastLayerLaplace.fit(*mean_head, *features(make_pairs(480, seed=1)))
    pairs = [p for v in words for p in make_pairs(300, seed=6, words=v) if p.chosen != p.rejected]
    held_out = features(pairs)
    margins = posterior.margin_mean(*held_out)
    wrong = (margins > 0).numpy() != np.array([p.truth for p in pairs])
    doubt = auroc(posterior.doubt(*held_out), wrong)
    assert doubt.low > 0.65
    assert doubt.value > auroc(-margins.abs(), wrong).value - 0.02  # which is close here
