"""Online DPO: pairs and loss by hand, learning, accumulation, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from datasets import Dataset

from align.engine.models import snapshot
from align.errors import ConfigError, ModelError
from align.ppo.actor_critic import build_actor_critic
from align.ppo.online_dpo import OnlineDPOConfig, OnlineDPOTrainer, extremes, pair_loss
from align.ppo.rewards import reward_scorer
from align.rollout.transformers import TransformersSampler

QUESTIONS = ["Where is my order", "I cannot log in", "Thank you", "The parcel is late", "Hello"]


def vowels(prompts, completions, **columns):
    return [float(sum(text.count(v) for v in "aeiou")) for text in completions]


@pytest.fixture
def make_online(tmp_path, tiny_llama, tiny_tokenizer):
    def make(policy=None, reference="snapshot", reward=vowels, double=False, **changes):
        policy = tiny_llama(seed=4) if policy is None else policy
        policy = policy.double() if double else policy
        settings = {
            "output_dir": str(tmp_path / "out"),
            "report_to": [],
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
            "save_strategy": "no",
            "learning_rate": 1e-3,
            "rollout_batch_size": 16,
            "group_size": 4,
            "per_device_train_batch_size": 4,
            "total_episodes": 16,
            "missing_eos_penalty": 0.0,
            "seed": 3,
        }
        return OnlineDPOTrainer(
            model=build_actor_critic(policy, backbone="none"),
            reference=snapshot(policy) if reference == "snapshot" else reference,
            args=OnlineDPOConfig(**settings | changes),
            sampler=TransformersSampler(policy, tiny_tokenizer, max_new_tokens=8),
            score=reward_scorer([("vowels", reward, 1.0)]),
            train_dataset=Dataset.from_dict({"prompt": QUESTIONS * 4}),
            processing_class=tiny_tokenizer,
        )

    return make


def test_the_best_and_the_worst_of_each_group():
    scores = torch.tensor([1.0, 3.0, 2.0, 5.0, 5.0, 5.0, -1.0, 0.0, -2.0])
    chosen, rejected = extremes(scores, 3)
    assert chosen.tolist() == [1, 3, 7]
    assert rejected.tolist() == [0, 3, 8]  # all alike: no pair


def test_the_losses_by_hand():
    margins = torch.tensor([2.0, -1.0])
    sigmoid = [-math.log(1 / (1 + math.exp(-0.5 * m))) for m in (2.0, -1.0)]
    assert pair_loss(margins, 0.5).tolist() == pytest.approx(sigmoid)
    other = [-math.log(1 / (1 + math.exp(0.5 * m))) for m in (2.0, -1.0)]
    smooth = [0.9 * right + 0.1 * wrong for right, wrong in zip(sigmoid, other, strict=True)]
    assert pair_loss(margins, 0.5, label_smoothing=0.1).tolist() == pytest.approx(smooth)
    assert pair_loss(margins, 0.5, "ipo").tolist() == pytest.approx([1.0, 4.0])


def test_the_first_loss_is_log_2_and_pairs_are_the_scores_own(make_online, logged):
    trainer = make_online()
    trainer.train()
    assert logged(trainer, "policy/loss")[0] == pytest.approx(math.log(2), abs=1e-5)
    assert logged(trainer, "kl/reference")[0] == pytest.approx(0.0, abs=1e-5)
    pairs = trainer.loader.experience
    assert len(pairs) == 8
    assert (pairs.scores[0::2] >= pairs.scores[1::2]).all()
    used = pairs.weights[0::2].bool()
    assert (pairs.scores[0::2][used] > pairs.scores[1::2][used]).all()
    assert logged(trainer, "pairs/used")[0] == pytest.approx(used.float().mean().item())
    order = trainer.loader.order.view(-1, 2)
    assert (order[:, 0] % 2 == 0).all()
    assert torch.equal(order[:, 0] + 1, order[:, 1])


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_it_learns(make_online, logged, loss_type):
    trainer = make_online(
        total_episodes=64 * 10,
        rollout_batch_size=64,
        per_device_train_batch_size=16,
        learning_rate=3e-3,
        loss_type=loss_type,
    )
    trainer.train()
    rewards = logged(trainer, "reward/mean")
    assert sum(rewards[-2:]) / 2 > sum(rewards[:2]) / 2 + 0.5
    assert logged(trainer, "kl/k3")[-1] > 0.05


def test_where_all_answers_score_alike_nothing_is_learnt(make_online, weights, logged):
    trainer = make_online(reward=lambda prompts, completions, **c: [1.0] * len(completions))
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert logged(trainer, "pairs/used") == [0.0]


def test_one_batch_of_8_equals_four_of_2(make_online, weights):
    def one_update(micro, accumulation):
        trainer = make_online(
            double=True,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            learning_rate=0.5,
            max_grad_norm=0.0,
        )
        torch.manual_seed(11)
        start = weights(trainer.model)
        trainer.train()
        return start, weights(trainer.model)

    start, whole = one_update(8, 1)
    _, parts = one_update(2, 4)
    assert max(float((whole[n] - parts[n]).abs().max()) for n in whole) < 1e-6
    assert max(float((whole[n] - start[n]).abs().max()) for n in whole) > 1e-4


def test_another_reference_is_found(make_online, tiny_llama):
    with pytest.raises(ModelError, match="policy and reference differ"):
        make_online(reference=tiny_llama(seed=5)).train()


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"group_size": 1}, "group_size"),
        ({"per_device_train_batch_size": 1}, "per_device_train_batch_size"),
        ({"per_device_train_batch_size": 16}, "makes 8 rows an update"),
        ({"beta": 0.0}, "beta"),
        ({"dpo_epochs": 0}, "dpo_epochs"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(make_online, settings, key):
    with pytest.raises(ConfigError, match=key):
        make_online(**settings)
