"""`compute_loss` against PPO's formulas written out token by token: each switch, and its effect.

The reference reads plain logits (no packing, no chunks) and loops over numbers.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

TEMPERATURE = 0.7
PLAIN: dict[str, Any] = {
    "clip_range": 0.2,
    "clip_range_high": None,
    "dual_clip": None,
    "clip_range_value": 0.2,
    "vf_coef": 0.1,
    "entropy_coef": 0.0,
    "kl_in_reward": True,
    "kl_estimator": "k1",
    "kl_coef": 0.05,
    "loss_aggregation": "token",
}
KL = {
    "k2": lambda log_ratio: 0.5 * log_ratio**2,
    "k3": lambda log_ratio: math.exp(-log_ratio) - 1 + log_ratio,
}


def judged(trainer, inputs) -> dict[str, list[list[float]]]:
    """Log-probabilities, entropies and values of every completion token, from whole logits."""
    model, ids, attention = trainer.model, inputs["input_ids"], inputs["attention_mask"]
    width = inputs["mask"].shape[1]
    places = (attention.cumsum(1) - 1).clamp(min=0)
    given = {"input_ids": ids, "attention_mask": attention, "position_ids": places}
    with torch.no_grad():
        logits = model.policy(**given).logits[:, -width - 1 : -1].double() / TEMPERATURE
        states = model.value_backbone(**given).last_hidden_state[:, -width - 1 : -1]
        values = model.value_head(states).squeeze(-1)
    scores = logits.log_softmax(-1)
    entropy = -(scores.exp() * scores).sum(-1)
    logprobs = scores.gather(-1, ids[:, -width:, None]).squeeze(-1)
    return {"logprobs": logprobs.tolist(), "entropy": entropy.tolist(), "values": values.tolist()}


def by_hand(said, inputs, longest: int, **switches) -> float:
    """Schulman et al. (2017), equations 7 and 9, as sums of numbers."""
    s = PLAIN | switches
    rows = {key: inputs[key].tolist() for key in ("mask", "logprobs", "ref_logprobs", "values")}
    rows |= {key: inputs[key].tolist() for key in ("advantages", "returns")}
    high = s["clip_range"] if s["clip_range_high"] is None else s["clip_range_high"]
    total, tokens, completions = 0.0, 0, 0
    for row, mask in enumerate(rows["mask"]):
        inside = 0.0
        for t in (t for t, trains in enumerate(mask) if trains):
            new, advantage = said["logprobs"][row][t], rows["advantages"][row][t]
            ratio = math.exp(new - rows["logprobs"][row][t])
            bounded = min(max(ratio, 1 - s["clip_range"]), 1 + high)
            surrogate = min(ratio * advantage, bounded * advantage)
            if s["dual_clip"] is not None and advantage < 0:
                surrogate = max(surrogate, s["dual_clip"] * advantage)
            value, old, wanted = said["values"][row][t], rows["values"][row][t], rows["returns"]
            error = (value - wanted[row][t]) ** 2
            if s["clip_range_value"] is not None:
                near = min(max(value, old - s["clip_range_value"]), old + s["clip_range_value"])
                error = max(error, (near - wanted[row][t]) ** 2)
            inside += -surrogate + s["vf_coef"] * 0.5 * error
            inside -= s["entropy_coef"] * said["entropy"][row][t]
            if not s["kl_in_reward"]:
                log_ratio = new - rows["ref_logprobs"][row][t]
                inside += s["kl_coef"] * KL[s["kl_estimator"]](log_ratio)
        length = int(sum(mask))
        tokens, completions = tokens + length, completions + 1
        total += inside / {"token": 1, "sequence": length, "fixed": longest}[s["loss_aggregation"]]
    return total / (tokens if s["loss_aggregation"] == "token" else completions)


@pytest.fixture
def batch_of(make_trainer, tiny_llama, moved):
    """`batch_of(**switches)`: a trainer, and a batch on which every switch would show."""

    def make(**switches):
        policy = tiny_llama(seed=4)
        policy.generation_config.eos_token_id = list(range(100, 130))  # lengths differ
        trainer = make_trainer(
            policy=policy,
            sampler={"temperature": TEMPERATURE},
            self_check=False,
            per_device_train_batch_size=8,
            **switches,
        )
        torch.manual_seed(7)
        inputs = next(iter(trainer.loader))
        trainer.model.load_state_dict(moved(trainer.model, 0.1).state_dict(), strict=False)
        said, mask = judged(trainer, inputs), inputs["mask"]
        assert len(set(mask.sum(1).tolist())) > 1

        def far(values):  # far enough for every clip to bite, on both sides
            return (torch.tensor(values).float() + 0.8 * torch.randn(mask.shape)) * mask

        for key, near in (("logprobs", "logprobs"), ("ref_logprobs", "logprobs")):
            inputs[key] = far(said[near])
        inputs["values"], inputs["returns"] = far(said["values"]), far(said["values"])
        inputs["advantages"] = torch.randn(mask.shape) * mask
        return trainer, inputs, said

    return make


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"clip_range": 0.4},
        {"clip_range_high": 0.5},
        {"dual_clip": 1.3},
        {"clip_range_value": None},
        {"clip_range_value": 0.6},
        {"vf_coef": 0.7},
        {"entropy_coef": 0.3},
        {"kl_in_reward": False, "kl_estimator": "k2"},
        {"kl_in_reward": False, "kl_estimator": "k3"},
        {"kl_in_reward": False, "kl_estimator": "k3", "kl_coef": 0.5},
        {"loss_aggregation": "sequence"},
        {"loss_aggregation": "fixed"},
    ],
    ids=lambda switches: ",".join(f"{k}={v}" for k, v in switches.items()) or "defaults",
)
def test_the_loss_is_the_formula(batch_of, switches):
    trainer, inputs, said = batch_of(**switches)
    found = trainer.compute_loss(trainer.model, inputs).item()
    expected = by_hand(said, inputs, trainer.longest, **switches)
    assert found == pytest.approx(expected, rel=1e-4)
    if switches:  # the negative control: the switch matters on this batch
        assert abs(by_hand(said, inputs, trainer.longest) - expected) > 1e-3


def test_without_a_critic_there_is_no_value_loss(batch_of):
    trainer, inputs, said = batch_of(advantage="rloo", group_size=2, vf_coef=5.0)
    found = trainer.compute_loss(trainer.model, inputs).item()
    expected = by_hand(said, inputs, trainer.longest, vf_coef=0.0)
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_kl_coefficient_of_the_loss_is_the_controllers_of_now(batch_of):
    switches = {"kl_in_reward": False, "kl_estimator": "k3"}
    trainer, inputs, said = batch_of(**switches)
    trainer.kl.value = 0.4  # as an adaptive one might be by then
    found = trainer.compute_loss(trainer.model, inputs).item()
    expected = by_hand(said, inputs, trainer.longest, kl_coef=0.4, **switches)
    assert found == pytest.approx(expected, rel=1e-4)


def test_what_is_logged_of_an_update_is_that_of_its_tokens(batch_of):
    trainer, inputs, said = batch_of()
    trainer.metrics.clear()
    trainer.compute_loss(trainer.model, inputs)
    mask = inputs["mask"].bool()
    log_ratio = (torch.tensor(said["logprobs"]) - inputs["logprobs"])[mask]
    ratio = log_ratio.exp()
    logged = {key: values[-1] for key, values in trainer.metrics.items()}
    assert logged["policy/ratio_max"] == pytest.approx(ratio.max().item(), rel=1e-4)
    assert logged["policy/ratio_min"] == pytest.approx(ratio.min().item(), rel=1e-4)
    moved = ((ratio - 1).abs() > 0.2).float().mean().item()
    assert logged["policy/clip_fraction"] == pytest.approx(moved)
    assert logged["policy/approx_kl"] == pytest.approx((ratio - 1 - log_ratio).mean().item(), 1e-3)
    both = by_hand(said, inputs, trainer.longest)
    actor = by_hand(said, inputs, trainer.longest, vf_coef=0.0)
    assert logged["policy/loss"] == pytest.approx(actor, rel=1e-3)
    assert logged["value/loss"] == pytest.approx((both - actor) / 0.1, rel=1e-3)
