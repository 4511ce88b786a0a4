"""Text and embedding terms: against loops, DPO's loss and cross-entropy; what must not matter."""

from __future__ import annotations

import math

import pytest
import torch

from reward.losses import contrastive_term, generative_term, preference_loss, simcse_term

LOGPS = torch.tensor([[-1.0, -0.5, -2.0], [-0.1, math.nan, -math.inf]]).double()
MASK = torch.tensor([[1, 1, 1], [1, 0, 0]])
WORSE = torch.tensor([[-3.0, -1.0], [-0.2, -0.4]]).double()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_text_term_by_hand():
    assert generative_term(LOGPS, MASK).tolist() == pytest.approx([3.5 / 3, 0.1])
    sft = generative_term(LOGPS, MASK, kind="sft", beta=0.1)
    assert sft.tolist() == pytest.approx(
        [math.log(1 + math.exp(0.35)), math.log(1 + math.exp(0.01))]
    )


def test_the_pairwise_text_term_is_dpos():
    worse_mask, reference = torch.tensor([[1, 1], [1, 0]]), torch.tensor([0.3, -0.7]).double()
    options = {"kind": "dpo", "rejected_logps": WORSE, "rejected_mask": worse_mask, "beta": 0.2}
    margins = 0.2 * torch.tensor([-3.5 + 4.0, -0.1 + 0.2]).double()
    plain = generative_term(LOGPS, MASK, **options)
    torch.testing.assert_close(plain, preference_loss(margins, torch.ones(2).double()))
    found = generative_term(LOGPS, MASK, reference_margins=reference, **options)
    expected = preference_loss(margins - 0.2 * reference, torch.ones(2).double())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["nll", "sft", "dpo"])
def test_tokens_outside_the_answer_do_not_matter(kind):
    extra = {"rejected_logps": WORSE.clone()} if kind == "dpo" else {}
    logps = LOGPS.clone().requires_grad_()
    found = generative_term(logps, MASK, kind=kind, **extra)
    (gradient,) = torch.autograd.grad(found.sum(), logps)
    assert gradient.isfinite().all()
    assert (gradient[MASK == 0] == 0).all()
    assert (gradient[MASK == 1] < 0).all()  # likelier text, smaller loss
    wide = torch.nn.functional.pad(LOGPS, (2, 3), value=-9.0)
    padded = generative_term(wide, torch.nn.functional.pad(MASK, (2, 3)), kind=kind, **extra)
    torch.testing.assert_close(padded, found.detach())
    none = {name: value[:1] for name, value in extra.items()}
    assert generative_term(LOGPS[:1], MASK[:1] * 0, kind=kind, **none).isfinite().all()
    clean = noise(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: generative_term(x, MASK, kind=kind, **extra), (clean,)
    )


def test_text_terms_without_meaning_are_refused():
    with pytest.raises(ValueError, match="kind is 'lm'"):
        generative_term(LOGPS, MASK, kind="lm")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kind is 'dpo' without rejected_logps"):
        generative_term(LOGPS, MASK, kind="dpo")
    with pytest.raises(ValueError, match="kind is 'sft' with rejected_logps"):
        generative_term(LOGPS, MASK, kind="sft", rejected_logps=WORSE)
    with pytest.raises(ValueError, match="mask has the shape"):
        generative_term(LOGPS, MASK[:, :2])
    with pytest.raises(ValueError, match="reference_margins has the shape"):
        generative_term(
            LOGPS, MASK, kind="dpo", rejected_logps=WORSE, reference_margins=torch.zeros(2, 1)
        )


def naive_contrast(chosen: torch.Tensor, rejected: torch.Tensor, t: float) -> list[float]:
    """Khosla et al., eq. 2, with loops."""
    points = [point / point.norm() for point in [*chosen, *rejected]]
    count = len(chosen)
    losses = []
    for i, anchor in enumerate(points):
        others = [a for a in range(2 * count) if a != i]
        whole = sum(math.exp(float(anchor @ points[a]) / t) for a in others)
        same = [p for p in others if p // count == i // count]
        terms = [math.log(math.exp(float(anchor @ points[p]) / t) / whole) for p in same]
        losses.append(-sum(terms) / len(terms))
    return [(losses[i] + losses[i + count]) / 2 for i in range(count)]


def test_the_contrastive_term_is_khosla_et_als():
    chosen, rejected = noise(4, 6), noise(4, 6, seed=1)
    for t in (0.1, 1.0):
        found = contrastive_term(chosen, rejected, t)
        assert found.tolist() == pytest.approx(naive_contrast(chosen, rejected, t), rel=1e-9)


def test_the_contrastive_term_does_not_see_lengths_order_or_names():
    chosen, rejected = noise(4, 6), noise(4, 6, seed=1)
    found = contrastive_term(chosen, rejected)
    scale = torch.tensor([0.1, 3.0, 20.0, 1.0]).double()[:, None]
    torch.testing.assert_close(contrastive_term(chosen * scale, rejected / scale), found)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(contrastive_term(chosen[order], rejected[order]), found[order])
    torch.testing.assert_close(contrastive_term(rejected, chosen), found)


def test_classes_that_lie_apart_have_the_smaller_loss():
    axis = torch.zeros(6).double()
    axis[0] = 5.0
    mixed = contrastive_term(noise(8, 6), noise(8, 6, seed=1)).mean()
    apart = contrastive_term(noise(8, 6) + axis, noise(8, 6, seed=1) - axis).mean()
    assert apart < mixed
    one = axis.expand(8, 6)
    perfect = contrastive_term(one, -one, 0.05)  # 7 alike, 8 opposite: -log(1/7)
    assert perfect.tolist() == pytest.approx([math.log(7)] * 8)


@pytest.mark.parametrize("term", [contrastive_term, simcse_term])
def test_embedding_terms_have_gradients_and_edges(term):
    chosen, rejected = noise(3, 4).requires_grad_(), noise(3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: term(a, b, 0.5), (chosen, rejected))
    single = term(chosen[:1], rejected[:1])
    assert single.tolist() == [0]  # nothing to tell it from
    assert torch.autograd.grad(single.sum(), chosen)[0].isfinite().all()
    assert term(chosen[:0], rejected[:0]).shape == (0,)
    zero = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    far = term(zero, noise(3, 4) * 1e4, 0.01)
    assert far.isfinite().all()
    assert torch.autograd.grad(far.sum(), zero)[0].isfinite().all()
    assert term(noise(3, 4).bfloat16(), noise(3, 4).bfloat16()).dtype == torch.float32
    with pytest.raises(ValueError, match="shape"):
        term(noise(3, 4), noise(2, 4))
    with pytest.raises(ValueError, match="temperature is 0"):
        term(noise(3, 4), noise(3, 4), 0)


def test_the_dropout_term_is_cross_entropy_of_cosines():
    first, second = noise(5, 4), noise(5, 4, seed=2)
    cosines = torch.nn.functional.cosine_similarity(first[:, None], second[None], dim=-1)
    expected = torch.nn.functional.cross_entropy(cosines / 0.05, torch.arange(5), reduction="none")
    torch.testing.assert_close(simcse_term(first, second), expected)
