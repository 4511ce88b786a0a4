"""Merged models by hand, and an adapter for each task."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig

from align.engine.guards.adapters import Router, TaskAdapters, prompt_features
from align.engine.guards.merge import merge_weights
from align.errors import ModelError


def test_ties_and_soups_by_hand():
    base = {"w": torch.tensor([1.0, 1.0, 1.0, 1.0]), "n": torch.tensor([3])}
    one = {"w": torch.tensor([5.0, 1.1, 1.0, 3.0]), "n": torch.tensor([3])}
    two = {"w": torch.tensor([3.0, 1.0, 0.9, -2.0]), "n": torch.tensor([3])}
    soup = merge_weights(base, [one, two], "soup")
    assert soup["w"].tolist() == pytest.approx([4.0, 1.05, 0.95, 0.5])
    assert soup["n"].tolist() == [3]
    # half of each change is kept: (4, 0, 0, 2) and (2, 0, 0, -3); the fourth's sign is voted -
    ties = merge_weights(base, [one, two], "ties", weights=[1.0, 1.0], density=0.5)
    assert ties["w"].tolist() == pytest.approx([1 + 3.0, 1.0, 1.0, 1 - 3.0])
    dare = merge_weights(base, [one], "dare_linear", weights=[1.0], density=0.5, seed=1)
    change = dare["w"] - base["w"]
    whole = 2 * (one["w"] - base["w"])
    assert all(abs(c) < 1e-6 or abs(c - w) < 1e-5 for c, w in zip(change, whole, strict=True))
    with pytest.raises(ModelError, match="do not share a start"):
        merge_weights(base, [{"w": torch.ones(3), "n": torch.tensor([3])}], "soup")


@pytest.mark.parametrize("progressive", [False, True])
def test_a_later_task_leaves_an_earlier_one_as_it_was(tiny_llama, progressive):
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    tasks = TaskAdapters(tiny_llama(seed=1), config, progressive=progressive)
    ids = torch.tensor([[5, 6, 7, 8]])

    def train(model, seed: int) -> None:
        trained = [p for p in model.parameters() if p.requires_grad]
        assert 0 < sum(p.numel() for p in trained) < 2000
        optimizer = torch.optim.SGD(trained, lr=1.0)
        torch.manual_seed(seed)
        for _ in range(3):
            model(input_ids=ids, labels=torch.randint(300, ids.shape)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    train(tasks.begin_task("first"), 0)
    with torch.no_grad(), tasks.using("first") as model:
        before = model(input_ids=ids).logits
    model = tasks.begin_task("second")
    with torch.no_grad():
        fresh = model(input_ids=ids).logits  # B = 0: where the new task starts from
    assert torch.allclose(fresh, before, atol=1e-5) is progressive
    train(model, 1)
    with torch.no_grad():
        assert not torch.allclose(model(input_ids=ids).logits, before, atol=1e-3)
        with tasks.using("first") as earlier:
            assert torch.allclose(earlier(input_ids=ids).logits, before, atol=1e-6)
        assert not torch.allclose(model(input_ids=ids).logits, before, atol=1e-3)
    with pytest.raises(ModelError, match="no task 'third'"):
        tasks.use("third")
    with pytest.raises(ModelError, match="already"):
        tasks.begin_task("first")


def test_prompts_find_their_task(tiny_llama):
    model = tiny_llama(seed=1)

    def ask(low: int, seed: int) -> torch.Tensor:
        ids = torch.randint(low, low + 3, (8, 16), generator=torch.Generator().manual_seed(seed))
        return prompt_features(model, ids, torch.ones_like(ids))

    router = Router()
    with pytest.raises(ModelError, match="knows no task"):
        router.route(ask(10, 0))
    router.learn("low", ask(10, 0))
    router.learn("high", ask(200, 0))
    again = Router()
    again.load_state_dict(router.state_dict())
    assert again.route(ask(10, 5)).count("low") >= 7
    assert again.route(ask(200, 5)).count("high") >= 7
