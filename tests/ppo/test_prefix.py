"""PPO on shared prefixes: groups that stay whole, and the training of the plain pass."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from align.engine import head
from align.engine.prefix import share_prefixes
from align.errors import ConfigError
from align.ppo.config import PPOConfig

PROMPT = "I cannot log in, my password does not work any more. What shall I do now?"
GROUPS = {"advantage": "rloo", "group_size": 2, "whole_groups": True}


def test_groups_stay_in_one_minibatch(make_trainer):
    trainer = make_trainer(critic={"backbone": "none"}, **GROUPS)
    batch = next(iter(trainer.loader))
    assert len(batch["input_ids"]) == 4
    order = trainer.loader.order.view(-1, 2)
    assert torch.equal(order[:, 0] % 2, torch.zeros(len(order)).long())
    assert torch.equal(order[:, 1], order[:, 0] + 1)
    assert sorted(order[:4, 0].tolist()) == [0, 2, 4, 6]


def test_whole_groups_must_fit(tmp_path):
    with pytest.raises(
        ConfigError, match=r"whole_groups.*holds no whole groups of 4.*multiple of 4"
    ):
        PPOConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=False,
            rollout_batch_size=24,
            per_device_train_batch_size=6,
            group_size=4,
            whole_groups=True,
        )


def trained(make_trainer, policy, mode):
    """Losses of two steps on long prompts, and what was installed."""
    trainer = make_trainer(policy=policy, **GROUPS | {"advantage": "gae"}, max_steps=2)
    trainer.loader.prompts.dataset = Dataset.from_dict({"prompt": [PROMPT, PROMPT + " Why?"] * 10})
    backbones = (
        trainer.model.policy.base_model,
        trainer.model.value_backbone,
        trainer.reference.base_model,
    )
    found = [share_prefixes(backbone, mode)[0] for backbone in backbones]
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row], found


def test_policy_critic_and_reference_share(make_trainer, tiny_llama):
    ours, found = trained(make_trainer, tiny_llama(seed=4), "on")
    plain, nothing = trained(make_trainer, tiny_llama(seed=4), "off")
    assert nothing == [None, None, None]
    for sharing in found:
        assert sharing.counts.shared == sharing.counts.passes > 0
        assert sharing.counts.computed < 0.8 * sharing.counts.real
    assert len(ours) == 2
    assert ours == pytest.approx(plain, rel=1e-3, abs=1e-5)


def test_a_step_makes_no_logits_larger_than_a_chunk(make_trainer, monkeypatch, largest_logits):
    """Of the policy before and while it trains, of its entropy, and of the reference."""
    trainer = make_trainer(entropy_coef=0.01, sampler={"max_new_tokens": 7})  # 28 tokens at most
    config = trainer.policy.config
    prepare = trainer.loader.prepare

    def most(chunk: int) -> list[int]:
        monkeypatch.setattr(head, "CHUNK_LOGITS", chunk)
        preparing, training = (
            largest_logits(config.vocab_size, config.hidden_size) for _ in range(2)
        )

        def watched(rollout):  # sampling is left out: it has a row of logits for each completion
            with preparing:
                return prepare(rollout)

        trainer.loader.prepare, trainer.loader.experience = watched, None
        batch = next(iter(trainer.loader))
        with training:
            trainer.compute_loss(trainer.model, batch).backward()
        return [preparing.most, training.most]

    chunk = 2 * config.vocab_size
    assert most(chunk) == [chunk] * 2
    assert min(most(1 << 24)) > chunk
