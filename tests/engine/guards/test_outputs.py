"""Guards on outputs: distillation, and CLEAR's cloning of rollouts."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from align.engine.guards.base import Guard
from align.engine.guards.clear import Clear, apart, cloning_loss, together
from align.engine.guards.distill import (
    Distill,
    divergence,
    divergence_of_best,
    language_batch,
)
from align.errors import ModelError
from align.ppo.actor_critic import build_actor_critic
from align.stages.on_policy import policy_logits
from align.stages.sft import labelled, sequence_logits

ROWS = [labelled([5, 6, 7, 8], 0, "cpu"), labelled([20, 21, 22, 23, 24], 2, "cpu")]


def test_the_divergence_by_hand():
    before = torch.tensor([[2.0, 0.0]])
    now = torch.tensor([[0.0, 0.0]], requires_grad=True)
    p = torch.sigmoid(torch.tensor(1.0))  # at temperature 2
    expected = 4 * (p * (p / 0.5).log() + (1 - p) * ((1 - p) / 0.5).log())
    found = divergence(before, now, temperature=2.0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    found.sum().backward()  # T^2 * (q - p) / T
    assert now.grad[0, 0].item() == pytest.approx(float(2 * (0.5 - p)), rel=1e-5)
    back = 4 * (0.5 * (0.5 / p).log() + 0.5 * (0.5 / (1 - p)).log())
    assert divergence(before, now, 2.0, reverse=True).item() == pytest.approx(back.item(), rel=1e-5)


def test_the_best_classes_bound_the_whole_from_below_and_reach_it():
    torch.manual_seed(0)
    before, now = torch.randn(5, 12), torch.randn(5, 12)
    whole = divergence(before, now)
    last = torch.zeros(5)
    for k in (2, 6, 11):
        values, indices = before.log_softmax(-1).topk(k, dim=-1)
        found = divergence_of_best(values, indices, now)
        assert (found <= whole + 1e-5).all()
        assert (found >= last - 1e-5).all()
        last = found
    assert torch.allclose(last, whole, atol=1e-5)  # eleven and the rest are all twelve


@pytest.mark.parametrize("top_k", [None, 40])
def test_old_data_is_held_where_it_was(tiny_llama, moved, top_k):
    model = tiny_llama(seed=1).eval()
    guard = Distill(sequence_logits, 3.0, copy.deepcopy(ROWS), top_k=top_k, batch_size=2)
    assert isinstance(guard, Guard)
    guard.begin(model)
    assert guard.penalty(model, {}).item() == pytest.approx(0.0, abs=1e-5)
    other = moved(model)
    found = guard.penalty(other, {})
    before = torch.cat([sequence_logits(model, row)[0] for row in ROWS])
    now = torch.cat([sequence_logits(other, row)[0] for row in ROWS])
    kept = torch.tensor([True] * 3 + [False] + [True] * 3)  # the prompt's second token trains not
    expected = 3.0 * divergence(before[kept], now[kept]).mean().item()
    if top_k is None:
        assert found.item() == pytest.approx(expected, rel=1e-4)
    else:
        assert 0.3 * expected < found.item() < expected
    found.backward()
    assert max(float(p.grad.abs().max()) for p in other.parameters()) > 0


def test_new_data_is_compared_with_a_copy_or_without_adapters(tiny_llama):
    model = tiny_llama(seed=1).eval()
    plain = Distill(sequence_logits, 1.0)
    plain.begin(model)
    batch = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3)}
    assert plain.penalty(model, batch).item() == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    assert plain.penalty(model, batch).item() > 1e-3
    adapted = get_peft_model(tiny_llama(seed=1), LoraConfig(r=2, target_modules=["q_proj"]))
    guard = Distill(sequence_logits, 1.0)
    guard.begin(adapted)
    assert guard.teacher is None
    adapted.eval()
    assert guard.penalty(adapted, batch).item() == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    found = guard.penalty(adapted, batch)
    assert found.item() > 1e-4
    found.backward()


def test_an_actor_critics_policy_is_what_is_held(tiny_llama):
    pair = build_actor_critic(tiny_llama(seed=1))
    guard = Distill(policy_logits, 1.0)
    guard.begin(pair)
    batch = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3)}
    with torch.no_grad():
        pair.policy.lm_head.weight.mul_(1.5)
    assert guard.penalty(pair, batch).item() > 1e-3


def test_batches_are_read_as_trainers_name_them():
    groups = {
        "prompt_ids": torch.tensor([[0, 5]]),
        "prompt_mask": torch.tensor([[0, 1]]),
        "completion_ids": torch.tensor([[6, 0]]),
        "completion_mask": torch.tensor([[1, 0]]),
    }
    assert language_batch(groups)["labels"].tolist() == [[-100, 5, 6, -100]]
    with pytest.raises(ModelError, match="holds no tokens"):
        language_batch({"x": torch.ones(1)})
    with pytest.raises(ModelError, match="top_k goes with"):
        Distill(sequence_logits, 1.0, ROWS, top_k=3, temperature=2.0)


def test_the_cloning_terms_by_hand():
    now, then = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, 0.0]])
    ratio = torch.tensor(0.5).exp()
    loss = cloning_loss(
        now, then, torch.tensor([[2.0, 9.0]]), torch.tensor([[1.0, 0.0]]),
        torch.tensor([[1.0, 0.0]]), 0.5, 3.0,
    )  # fmt: skip
    assert loss.item() == pytest.approx(0.5 * float(ratio - 1 - 0.5) + 1.5 * 1.0)


def test_the_kls_estimate_is_unbiased():
    torch.manual_seed(0)
    mu, pi = torch.randn(6).log_softmax(0), torch.randn(6).log_softmax(0)
    drawn = torch.multinomial(mu.exp(), 200_000, replacement=True)
    one = torch.ones(1, len(drawn))
    found = cloning_loss(pi[drawn][None], mu[drawn][None], one, one, one, 1.0, 0.0)
    assert found.item() == pytest.approx(float((mu.exp() * (mu - pi)).sum()), rel=0.02)


def test_rollouts_are_kept_and_held(tiny_llama):
    pair = build_actor_critic(tiny_llama(seed=1)).eval()
    batch = {
        "input_ids": torch.tensor([[0, 5, 6, 7, 8], [9, 10, 11, 12, 0]]),
        "attention_mask": torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]]),
        "mask": torch.tensor([[1.0, 1.0], [1.0, 0.0]]),
    }
    with torch.no_grad():
        said = pair(batch["input_ids"], batch["attention_mask"], batch["mask"])
    batch |= {"logprobs": said.logprobs, "values": said.values}
    rows = apart(batch)
    assert [row["completion"] for row in rows] == [[7, 8], [12]]
    again = together(rows, torch.device("cpu"))
    for name in ("input_ids", "attention_mask", "mask", "logprobs"):
        assert torch.allclose(again[name].float(), batch[name].float())
    guard = Clear(0.5, 0.5, capacity=4, batch_size=8)
    assert guard.penalty(pair, batch).item() == 0.0  # nothing was kept yet
    assert len(guard.buffer) == 2
    assert guard.penalty(pair, batch).item() == pytest.approx(0.0, abs=1e-5)
    with torch.no_grad():
        pair.value_head.bias.add_(2.0)
    assert guard.penalty(pair, batch).item() == pytest.approx(0.5 * 0.5 * 4.0, rel=1e-4)
    later = Clear(0.5, 0.5, capacity=4, batch_size=8)
    later.load_state_dict(guard.state_dict())
    assert later.buffer.items == guard.buffer.items
