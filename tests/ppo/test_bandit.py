"""Every advantage finds the known optimum of a contextual bandit.

One seed by default; `BANDIT_SEEDS=5` runs five and asks it of the interval's lower end, which is
what docs/benchmarks.md reports.
"""

from __future__ import annotations

import os
import statistics

import pytest
import torch
from scipy.stats import t

from align.data.tokens import encode_prompt
from align.engine.head import causal_lm

QUESTIONS = ["Where is my order", "I cannot log in", "Thank you", "The parcel is late", "Hello"]
SEEDS = int(os.environ.get("BANDIT_SEEDS", "1"))


def table(vocabulary: int) -> torch.Tensor:
    """(contexts, arms) rewards: 1 at an arm of its own for each context, falling to both sides."""
    generator = torch.Generator().manual_seed(0)
    best = torch.randint(vocabulary, (len(QUESTIONS), 1), generator=generator)
    arms = torch.arange(vocabulary)[None]
    return 1.0 - (arms - best).abs() / vocabulary


@torch.no_grad()
def expected_reward(policy, tokenizer, rewards: torch.Tensor) -> float:
    """Exactly, by the policy's whole distribution over the one token it writes."""
    values = []
    for context, question in enumerate(QUESTIONS):
        ids = torch.tensor([encode_prompt(question, tokenizer)])
        probabilities = causal_lm(policy)(input_ids=ids).logits[0, -1].softmax(-1)
        values.append(float(probabilities @ rewards[context]))
    return statistics.mean(values)


@pytest.mark.parametrize(
    "advantage", ["gae", "rloo", "grpo", "dr_grpo", "reinforce++", "reinforce++-baseline"]
)
def test_the_optimum_is_found(make_trainer, tiny_llama, tiny_tokenizer, advantage):
    rewards = table(len(tiny_tokenizer))

    def score(rollout):
        rows = [QUESTIONS.index(prompt) for prompt in rollout.prompts]
        return rewards[rows, rollout.completion_ids[:, 0]].tolist(), {}

    reached, started = [], []
    for seed in range(SEEDS):
        policy = tiny_llama(seed=seed)
        started.append(expected_reward(policy, tiny_tokenizer, rewards))
        trainer = make_trainer(
            policy=policy,
            critic={"backbone": "separate" if advantage == "gae" else "none"},
            sampler={"max_new_tokens": 1, "batch_size": 256},
            advantage=advantage,
            group_size=1 if advantage in ("gae", "reinforce++") else 4,
            rollout_batch_size=160,
            per_device_train_batch_size=160,
            total_episodes=160 * 60,
            ppo_epochs=2,
            learning_rate=1e-2,
            lr_scheduler_type="linear",  # settles at the end
            kl_coef=0.0,
            vf_coef=0.5,
            seed=seed,
            logging_strategy="no",
        )
        trainer.score = score
        trainer.train()
        reached.append(expected_reward(policy, tiny_tokenizer, rewards))
    half = 0.0
    if SEEDS > 1:
        half = float(t.ppf(0.975, SEEDS - 1)) * statistics.stdev(reached) / SEEDS**0.5
    low = statistics.mean(reached) - half
    print(f"{advantage}: {statistics.mean(reached):.3f} +- {half:.3f} of 1")
    assert max(started) < 0.75
    assert low >= 0.95, reached
