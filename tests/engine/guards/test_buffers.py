"""What buffers keep, herding, and the projection of gradients, by hand."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from align.engine.guards.agem import AGEM, project
from align.engine.guards.buffers import Buffer, herding, keep, nearest_mean
from align.engine.guards.er_ace import asymmetric_loss


def test_a_reservoir_keeps_every_item_alike():
    counts: Counter[int] = Counter()
    for seed in range(2000):
        kept = keep(range(12), 3, "reservoir", seed=seed)
        assert len(kept) == len(set(kept)) == 3
        counts.update(kept)
    assert min(counts.values()) > 500 * 0.85
    assert max(counts.values()) < 500 * 1.15


def test_a_ring_keeps_the_last_of_each_class_and_balanced_shares_alike():
    stream = [(number % 10 == 0, number) for number in range(100)]
    ring = keep(stream, 10, "ring", key=lambda item: item[0])
    assert sorted(ring) == [(False, n) for n in (95, 96, 97, 98, 99)] + [
        (True, n) for n in (50, 60, 70, 80, 90)
    ]
    balanced = keep(stream, 10, "balanced", key=lambda item: item[0])
    assert Counter(item[0] for item in balanced) == {True: 5, False: 5}
    plain = keep(stream, 10, "reservoir", key=lambda item: item[0])
    assert Counter(item[0] for item in plain)[True] < 5
    assert keep(stream, 10, "ring") == stream[-10:]


def test_a_class_that_comes_late_takes_its_share():
    buffer: Buffer[tuple[str, int]] = Buffer("balanced", 7, key=lambda item: item[0])
    buffer.extend(("a", n) for n in range(50))
    assert len(buffer) == 7
    buffer.extend(("b", n) for n in range(50))
    assert Counter(item[0] for item in buffer.items) == {"a": 4, "b": 3}


@pytest.mark.parametrize("kind", ["reservoir", "ring", "balanced"])
def test_a_buffer_goes_on_where_it_stopped(kind):
    def of(stop: int) -> Buffer[int]:
        buffer: Buffer[int] = Buffer(kind, 5, seed=3, key=lambda item: item % 2)
        buffer.extend(range(stop))
        return buffer

    whole, half = of(60), of(30)
    again: Buffer[int] = Buffer(kind, 5, seed=9, key=lambda item: item % 2)
    again.load_state_dict(half.state_dict())
    again.extend(range(30, 60))
    assert again.items == whole.items


def test_herding_follows_the_mean():
    """Unit vectors at 0, 90 and 40 degrees: the mean is near 42, so 40 comes first."""
    angles = torch.deg2rad(torch.tensor([0.0, 90.0, 40.0]))
    features = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor(
        [[5.0], [1.0], [2.0]]
    )
    assert herding(features, 2)[0] == 2
    assert sorted(herding(features, 9)) == [0, 1, 2]
    torch.manual_seed(0)
    cloud = torch.randn(200, 8) + 2
    unit = nn.functional.normalize(cloud, dim=1)
    chosen = unit[herding(cloud, 10)].mean(dim=0) - unit.mean(dim=0)
    drawn = unit[torch.randperm(200)[:10]].mean(dim=0) - unit.mean(dim=0)
    assert chosen.norm() < 0.5 * drawn.norm()


def test_the_nearest_mean_classifies():
    exemplars = torch.tensor([[1.0, 0.0], [1.0, 0.2], [0.0, 3.0], [0.1, 2.0]])
    classes = torch.tensor([7, 7, 4, 4])
    assert nearest_mean(torch.tensor([[9.0, 1.0], [0.0, 0.1]]), exemplars, classes).tolist() == [
        7,
        4,
    ]


def test_a_gem_turns_what_goes_against_the_memory_and_nothing_else():
    gradients = [torch.tensor([1.0, 0.0]), torch.tensor([2.0])]
    reference = [torch.tensor([-1.0, 1.0]), torch.tensor([0.0])]
    cosine = project(gradients, reference)  # g . r = -1, r . r = 2: g + r / 2
    assert cosine == pytest.approx(-1 / (2 * 5) ** 0.5)
    assert gradients[0].tolist() == [0.5, 0.5]
    assert gradients[1].tolist() == [2.0]
    assert sum(float((g * r).sum()) for g, r in zip(gradients, reference, strict=True)) == 0.0
    along = [torch.tensor([1.0, 0.0])]
    project(along, [torch.tensor([1.0, 5.0])])
    assert along[0].tolist() == [1.0, 0.0]


def test_the_guard_projects_in_a_step():
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    rows = [{"input_ids": torch.tensor([[0]]), "x": torch.tensor([[1.0, 0.0]])}]
    guard = AGEM(
        rows,
        lambda m, b: (m(b["x"]) - 1.0).square().sum(),  # the memory wants the first weight at 1
        batch_size=1,
        collate_fn=lambda examples, device: examples[0],
        size_fn=lambda batch: torch.tensor(1),
    )
    guard.begin(model)
    (3.0 * model.weight[0, 0] - model.weight[0, 1]).backward()  # the task lowers it
    guard.before_step(model)
    assert model.weight.grad.tolist() == [[0.0, -1.0]]
    assert guard.cosine < 0
    assert guard.penalty(model, {}).item() == pytest.approx(guard.cosine)


def test_er_ace_by_hand():
    new, old = torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[0.0, 0.0, 0.0]])
    loss = asymmetric_loss(new, torch.tensor([1]), old, torch.tensor([2]))
    assert loss.item() == pytest.approx(0.0 + torch.tensor(3.0).log().item())
    both = torch.cat([new, new])
    expected = torch.nn.functional.cross_entropy(both[:, :2], torch.tensor([0, 1]))
    assert asymmetric_loss(both, torch.tensor([0, 1])).item() == pytest.approx(expected.item())
    seen = torch.tensor([True, False, True])
    few = asymmetric_loss(new, torch.tensor([1]), old, torch.tensor([2]), seen)
    assert few.item() == pytest.approx(torch.tensor(2.0).log().item())
