"""PPO-ptx: PPO with the replay guard."""

from __future__ import annotations

import pytest
import torch

from align.engine.guards.replay import Replay, collate
from align.stages.on_policy import policy_nll
from align.stages.sft import sequence_nll


def example(*ids: int) -> dict[str, torch.Tensor]:
    tokens = torch.tensor([ids])
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}


ROWS = [example(5, 6, 7, 8), example(9, 10, 11), example(20, 21, 22, 23, 24)]


@pytest.mark.parametrize(("micro", "accumulation"), [(8, 1), (2, 4)])
def test_ppo_ptx_keeps_what_was_learnt(make_trainer, tiny_llama, micro, accumulation):
    """With the guard the replayed rows stay likely, and the accumulation does not matter."""

    def trained(strength: float, micro: int, accumulation: int):
        guard = Replay(ROWS, policy_nll, strength, batch_size=3)
        trainer = make_trainer(
            guards=(guard,) if strength else (),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=accumulation,
            ppo_epochs=3,
            total_episodes=24,
            optim="sgd",
            learning_rate=0.2,
            max_grad_norm=0.0,
        )
        torch.manual_seed(11)
        trainer.train()
        return float(sequence_nll(trainer.model.policy, collate(ROWS, "cpu")).detach()), trainer

    free, _ = trained(0.0, micro, accumulation)
    kept, trainer = trained(1.0, micro, accumulation)
    other, _ = trained(1.0, 4, 2)
    assert kept < free - 1.0
    assert kept == pytest.approx(other, rel=1e-3)
    assert any("guard/replay" in row for row in trainer.state.log_history)
