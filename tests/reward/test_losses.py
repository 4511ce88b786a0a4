"""Cross-entropy with soft labels: hand-computed values, gradients, and where its minimum lies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import trl

from reward import losses
from reward.losses import (
    centring_term,
    check_pair_options,
    class_weights,
    cost_weights,
    decided,
    focal_weights,
    pair_loss,
    preference_loss,
    soft_label_term,
)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("margin", "label", "loss"),
    [
        (0.0, 1.0, math.log(2)),
        (0.0, 0.5, math.log(2)),
        # sigmoid(log 3) = 3/4
        (math.log(3), 1.0, math.log(4 / 3)),
        (math.log(3), 0.5, -0.5 * math.log(3 / 4) - 0.5 * math.log(1 / 4)),
        (math.log(3), 2 / 3, -2 / 3 * math.log(3 / 4) - 1 / 3 * math.log(1 / 4)),
        (-math.log(3), 0.0, math.log(4 / 3)),
        (800.0, 0.9, 80.0),  # no overflow
        (-800.0, 0.9, 720.0),
    ],
)
def test_values_computed_by_hand(margin, label, loss):
    assert preference_loss(column(margin), column(label)).item() == pytest.approx(loss, abs=1e-12)


def test_the_gradient_is_sigmoid_minus_label_and_vanishes_at_the_label():
    margins = column(-2.0, -0.3, 0.0, 1.7, math.log(3)).requires_grad_()
    labels = column(0.2, 1.0, 0.5, 0.6, 0.75)
    (gradient,) = torch.autograd.grad(preference_loss(margins, labels).sum(), margins)
    torch.testing.assert_close(gradient, margins.detach().sigmoid() - labels, atol=1e-12, rtol=0)
    assert gradient[4].item() == pytest.approx(0.0, abs=1e-12)


def test_a_label_of_1_is_the_plain_loss_bit_for_bit():
    margins = torch.randn(64, generator=torch.Generator().manual_seed(0)) * 5
    plain = -torch.nn.functional.logsigmoid(margins)
    assert torch.equal(preference_loss(margins, torch.ones(64)), plain)
    assert torch.equal(soft_label_term(margins, torch.ones(64)), torch.zeros(64))


def test_only_one_half_names_no_better_answer():
    known = decided(torch.tensor([0.5, 0.5 + 1e-8, 0.51, 0.49, 1.0]))
    assert known.tolist() == [False, False, True, True, True]


def naive(margin: float, m: float = 0.0, p: float = 1.0, e: float = 0.0) -> float:
    """The table of `pair_loss`, with logarithms of plain probabilities."""

    def better(d: float) -> float:
        return 1 / (1 + math.exp(-d))

    right = (1 - e) * p
    return -right * math.log(better(margin - m)) - (1 - right) * math.log(better(-margin - m))


@pytest.mark.parametrize("d", [-1.3, 0.0, 0.4, 5.0])
@pytest.mark.parametrize(
    ("options", "textbook"),
    [
        ({}, {}),
        ({"margin": 0.7}, {"m": 0.7}),
        ({"margin": column(0.7)}, {"m": 0.7}),
        ({"margin": torch.tensor(0.7, dtype=torch.float64)}, {"m": 0.7}),
        ({"soft_labels": column(0.8)}, {"p": 0.8}),
        ({"label_smoothing": 0.1}, {"e": 0.1}),
        ({"label_smoothing": 0.1, "margin": 0.7}, {"e": 0.1, "m": 0.7}),
    ],
)
def test_pair_loss_is_the_textbook_likelihood(d, options, textbook):
    assert pair_loss(column(d), **options).item() == pytest.approx(naive(d, **textbook), abs=1e-12)
    margins = column(d, d + 1).requires_grad_()
    if "soft_labels" in options:
        options = {"soft_labels": column(0.8, 0.3)}
    if isinstance(options.get("margin"), torch.Tensor) and options["margin"].dim():
        options = {"margin": column(0.7, 0.1)}
    assert torch.autograd.gradcheck(lambda x: pair_loss(x, **options), (margins,))


def test_plain_pairs_and_pairs_with_a_margin_are_trls_bit_for_bit():
    chosen, rejected = torch.randn(2, 64, generator=torch.Generator().manual_seed(0)) * 5
    margin = torch.rand(64, generator=torch.Generator().manual_seed(1))
    plain = -torch.nn.functional.logsigmoid(chosen - rejected)
    assert torch.equal(pair_loss(chosen - rejected), plain)
    moved = -torch.nn.functional.logsigmoid(chosen - rejected - margin)
    assert torch.equal(pair_loss(chosen - rejected, margin=margin), moved)
    assert torch.equal(
        pair_loss(chosen - rejected, soft_labels=margin), preference_loss(chosen - rejected, margin)
    )


def test_a_pair_turned_round_has_the_same_loss():
    margins = column(-3.0, 0.2, 2.5)
    labels = column(0.1, 0.5, 0.9)
    torch.testing.assert_close(
        pair_loss(margins, soft_labels=labels), pair_loss(-margins, soft_labels=1 - labels)
    )
    # Label smoothing says that a share e of the pairs are the other way round, margin and all.
    mixed = 0.8 * pair_loss(margins, margin=0.5) + 0.2 * pair_loss(-margins, margin=0.5)
    torch.testing.assert_close(pair_loss(margins, margin=0.5, label_smoothing=0.2), mixed)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"margin": True, "soft_labels": True}, ["soft_labels and margin"]),
        ({"soft_labels": True, "label_smoothing": 0.1}, ["soft_labels and label_smoothing=0.1"]),
        ({"label_smoothing": 0.5}, ["label_smoothing is 0.5"]),
        ({"label_smoothing": -0.1}, ["label_smoothing is -0.1"]),
        (
            {"margin": True, "soft_labels": True, "label_smoothing": 0.7},
            ["soft_labels and margin", "soft_labels and label_smoothing", "label_smoothing is 0.7"],
        ),
    ],
)
def test_options_without_meaning_together_are_refused_all_at_once(options, named):
    with pytest.raises(ValueError, match=r"Fix|expected") as caught:
        check_pair_options(**options)
    lines = str(caught.value).split("\n")
    assert all(name in line for name, line in zip(named, lines, strict=True))
    given: dict[str, Any] = {"label_smoothing": options.get("label_smoothing", 0.0)}
    given["margin"] = column(0.0) if options.get("margin") else 0.0  # a tensor is a margin
    given["soft_labels"] = column(0.5) if options.get("soft_labels") else None
    with pytest.raises(ValueError, match=r"Fix|expected"):
        pair_loss(column(1.0), **given)


def test_a_shape_that_would_broadcast_is_refused():
    for name, options in {"margin": {}, "soft_labels": {}}.items():
        options[name] = torch.zeros(3, 1)
        with pytest.raises(ValueError, match=rf"{name} has the shape \(3, 1\); expected \(3,\)"):
            pair_loss(torch.zeros(3), **options)
    with pytest.raises(ValueError, match="soft_labels has the shape"):
        focal_weights(torch.zeros(3), 2.0, torch.ones(3, 1))
    with pytest.raises(ValueError, match="rejected has the shape"):
        centring_term(torch.zeros(3), torch.zeros(3, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [-1e4, 1e4])
def test_margins_far_out_give_finite_losses_and_gradients(d, dtype):
    labels = torch.tensor([0.9], dtype=dtype)
    for loss in (
        lambda x: pair_loss(x),
        lambda x: pair_loss(x, margin=3.0, label_smoothing=0.1),
        lambda x: pair_loss(x, soft_labels=labels),
        lambda x: pair_loss(x) * focal_weights(x, 0.5),
        lambda x: pair_loss(x) * focal_weights(x, 2.0, labels),
    ):
        margins = torch.tensor([d], dtype=dtype, requires_grad=True)
        value = loss(margins)
        (gradient,) = torch.autograd.grad(value.sum(), margins)
        assert value.isfinite().all()
        assert 0 <= value.item() <= 1.1e4
        assert gradient.isfinite().all()
        assert gradient.abs().item() <= 1.1
    assert pair_loss(torch.tensor([-1e4], dtype=dtype)).item() == 1e4
    assert pair_loss(torch.tensor([1e4], dtype=dtype)).item() == 0


def test_half_precision_is_computed_in_float32():
    margins = torch.tensor([0.30078125, -2.0], dtype=torch.bfloat16)
    assert pair_loss(margins).dtype == torch.float32
    assert torch.equal(pair_loss(margins), pair_loss(margins.float()))
    assert pair_loss(margins.double()).dtype == torch.float64
    margin = torch.ones(2, dtype=torch.float64)  # as a data set's column may come
    assert pair_loss(margins, margin=margin, label_smoothing=0.1).dtype == torch.float32
    assert centring_term(margins, margins).dtype == torch.float32
    assert focal_weights(margins, 2.0, torch.ones(2)).dtype == torch.float32


def test_focal_weights_by_hand():
    # sigmoid(log 3) = 3/4
    margins = column(math.log(3), -math.log(3))
    torch.testing.assert_close(focal_weights(margins, 2.0), column(1 / 16, 9 / 16))
    torch.testing.assert_close(focal_weights(margins, 2.0, column(1.0, 1.0)), column(1, 9) / 16)
    torch.testing.assert_close(focal_weights(margins, 1.0, column(0.5, 0.0)), column(0.25, 0.25))
    assert torch.equal(focal_weights(margins, 0.0), column(1.0, 1.0))
    assert torch.equal(focal_weights(margins, 0.0, column(0.75, 0.1)), column(1.0, 1.0))
    # The model says exactly what the label says: no weight, and a gradient all the same.
    exact = column(math.log(3)).requires_grad_()
    weight = focal_weights(exact, 2.0, column(0.75))
    assert weight.item() == pytest.approx(0, abs=1e-30)
    assert torch.autograd.grad(weight.sum(), exact)[0].isfinite().all()


def test_the_focal_loss_has_the_gradient_of_lin_et_al():
    margins = column(-2.0, -0.1, 1.5).requires_grad_()
    (found,) = torch.autograd.grad(
        (focal_weights(margins, 2.0) * pair_loss(margins)).sum(), margins
    )
    p = margins.detach().sigmoid()  # their appendix B: y (1 - p)^g (g p log p + p - 1)
    expected = (1 - p) ** 2 * (2 * p * p.log() + p - 1)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    soft = column(0.2, 0.6, 0.9)
    assert torch.autograd.gradcheck(lambda x: focal_weights(x, 1.5, soft), (margins,))


def test_focal_weights_refuse_a_gamma_without_a_gradient():
    with pytest.raises(ValueError, match="gamma is -1"):
        focal_weights(column(1.0), -1)
    with pytest.raises(ValueError, match=r"gamma is 0.5; expected 0, or 1 or more"):
        focal_weights(column(1.0), 0.5, column(1.0))
    assert focal_weights(column(0.0), 0.5).item() == pytest.approx(math.sqrt(0.5))


def test_class_weights_are_scikit_learns_and_cui_et_als():
    from sklearn.utils.class_weight import compute_class_weight

    labels = torch.tensor([0] * 80 + [1] * 15 + [3] * 5)
    found = class_weights(labels)
    balanced = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels.numpy())
    torch.testing.assert_close(found[[0, 1, 3]], torch.tensor(balanced))
    assert found[2] == 0  # nobody has it
    assert torch.equal(class_weights(labels, 0.0), column(1, 1, 0, 1))
    beta = 0.9
    weights = class_weights(labels, beta)
    effective = column(*((1 - beta**n) / (1 - beta) for n in (80, 15, 5)))
    torch.testing.assert_close(
        weights[[0, 1, 3]] * effective, (weights[0] * effective[0]).expand(3)
    )
    for value in (0.0, 0.9, 0.999, 1.0):
        assert class_weights(labels, value)[labels].mean().item() == pytest.approx(1)
    torch.testing.assert_close(class_weights(labels, 1 - 1e-9), found, rtol=1e-6, atol=0)


def test_class_weights_and_costs_refuse_what_has_no_meaning():
    for labels, beta, said in (
        (torch.tensor([0]), 1.5, "beta is 1.5"),
        (torch.tensor([], dtype=torch.long), 1.0, "none or negative"),
        (torch.tensor([0, -1]), 1.0, "none or negative"),
    ):
        with pytest.raises(ValueError, match=said):
            class_weights(labels, beta)
    for costs, said in (
        (column(1.0, -2.0), "cost of pair 1 is -2.0"),
        (column(1.0, math.nan), "cost of pair 1 is nan"),
        (column(math.inf), "cost of pair 0 is inf"),
        (column(0.0, 0.0), "all costs are 0"),
    ):
        with pytest.raises(ValueError, match=said):
            cost_weights(costs)


def test_costs_keep_their_ratio_and_get_mean_1():
    assert cost_weights(torch.tensor([1, 3])).tolist() == [0.5, 1.5]


@pytest.mark.parametrize("with_margin", [False, True])
def test_centring_and_margin_are_what_trls_trainer_computes(
    with_margin, tmp_path, tiny_llama, tiny_tokenizer, preference_rows
):
    from datasets import Dataset
    from transformers import LlamaForSequenceClassification

    torch.manual_seed(7)
    config = tiny_llama().config
    config.num_labels = 1
    rows = [dict(row) for row in preference_rows[:4]]
    for place, row in enumerate(rows if with_margin else []):
        row["margin"] = 0.5 * place
    trainer = trl.RewardTrainer(
        model=LlamaForSequenceClassification(config),
        args=trl.RewardConfig(
            output_dir=str(tmp_path),
            center_rewards_coefficient=0.3,
            per_device_train_batch_size=4,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    theirs, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
    assert (chosen + rejected).abs().max() > 0.01
    ours = pair_loss(chosen - rejected, margin=batch["margin"] if with_margin else 0.0).mean()
    ours = ours + centring_term(chosen, rejected, 0.3).mean()
    assert theirs.item() == pytest.approx(ours.item(), rel=1e-6)


def test_every_loss_can_be_imported_from_one_place():
    assert sorted(losses.__all__) == losses.__all__
    assert all(callable(getattr(losses, name)) for name in losses.__all__)


def test_no_loss_looks_at_values_or_leaves_its_device():
    """Tensors without values: reading one, or mixing in one of the CPU, raises."""

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    flat, mask, raw = empty(4), empty(4, 3, dtype=torch.bool), empty()
    order, outcome = empty(4, 2, dtype=torch.long), empty(4, dtype=torch.long)
    found = [
        losses.pair_loss(flat, margin=flat, label_smoothing=0.1),
        losses.pair_loss(flat, soft_labels=flat),
        losses.focal_weights(flat, 2.0, flat),
        losses.centring_term(flat, flat),
        losses.rao_kupper_loss(flat, outcome, raw),
        losses.davidson_loss(flat, empty(4, 3), raw),
        losses.plackett_luce_loss(empty(4, 3), order, mask),
        losses.ranking_pairs_loss(empty(4, 3), losses.order_ranks(order, empty(4, 3)), mask),
        losses.rating_loss(empty(4, 3), empty(4, 3), "huber"),
        losses.ordinal_loss(empty(4, 3), empty(4, 3), empty(6)),
        losses.combine_attributes(empty(4, 3), empty(3), learned=True),
        losses.step_loss(empty(4, 3), empty(4, 3), mask),
        *(
            losses.aggregate_steps(empty(4, 3), mask, how)
            for how in ("min", "prod", "last", "mean")
        ),
        losses.generative_term(empty(4, 3), mask),
        losses.generative_term(
            empty(4, 3), mask, kind="dpo", rejected_logps=empty(4, 2), reference_margins=flat
        ),
        losses.contrastive_term(empty(4, 3), empty(4, 3)),
        losses.simcse_term(empty(4, 3), empty(4, 3)),
    ]
    assert all(loss.shape == (4,) and loss.device.type == "meta" for loss in found)
