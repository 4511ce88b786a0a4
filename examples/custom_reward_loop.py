"""A researcher's own loop: the objectives of `align ppo` without its trainer.

    python examples/custom_reward_loop.py MODEL PROMPTS

MODEL is a directory or a hub id, PROMPTS any file Align reads. The reward here prefers short
answers; put your own in its place.
"""

import sys

import torch
from torch.optim import AdamW

from align import (
    TransformersSampler,
    batches,
    group_center,
    load_policy,
    load_prompts,
    policy_logprobs,
    policy_loss,
)


def my_reward(prompts, completions):
    """One float per completion: minus its length in words."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [-float(len(text.split())) for text in texts]


def main(model: str, prompts_file: str, learning_rate: float = 1e-4) -> list[float]:
    policy, _reference, tokenizer = load_policy(model)
    sampler = TransformersSampler(policy, tokenizer, max_new_tokens=48)
    optimizer = AdamW(policy.parameters(), lr=learning_rate)
    history = []
    for prompts in batches(load_prompts(prompts_file), 8):
        rollouts = sampler(prompts, group_size=4)
        rewards = torch.tensor(my_reward(rollouts.prompts, rollouts.completions))  # (P*G,)
        advantages = group_center(rewards, group_size=4)  # (B,)
        logprobs = policy_logprobs(policy, rollouts)  # (B, A)
        loss = policy_loss(logprobs, rollouts.logprobs, advantages, rollouts.mask)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append(rewards.mean().item())
        print(f"mean reward {history[-1]:.2f}")
    return history


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) == 3 else sys.exit(__doc__)
