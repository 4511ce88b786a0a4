"""A model of 60,000 weights that learns when to use a calculator, on a CPU, in under a minute.

    python examples/tool_environment.py

It is asked `3+4?`. A turn that begins with `=` goes to the calculator, whose result it reads; any
other turn is its answer, and a right one earns 1. Imitation teaches it both to call the tool and to
guess; the reward then teaches it which of them pays.
"""

import random

import torch
from torch.optim import AdamW
from transformers import LlamaConfig, LlamaForCausalLM

from align import TransformersSampler, group_center, policy_logprobs, policy_loss
from align.engine.create import train_tokenizer
from align.engine.tokenizer import read_template
from align.rollout.environment import Step
from align.rollout.episodes import EnvironmentSampler


class Calculator:
    """Computes `=3+4`; takes anything else for the answer."""

    def reset(self, answer, **columns):
        """Begin an episode; the columns of the data arrive by name."""
        self.answer = answer

    def step(self, completion):
        """Reply to the model's turn."""
        if not completion.startswith("="):
            return Step(reward=float(completion == self.answer), done=True)
        numbers = completion[1:].split("+")
        return Step(str(sum(map(int, numbers))) if all(map(str.isdecimal, numbers)) else "error")


def question():
    left, right = random.randrange(5), random.randrange(5)
    return [{"role": "user", "content": f"{left}+{right}?"}], str(left + right)


def demonstration():
    """Half of them call the tool and repeat what it says, half guess."""
    prompt, answer = question()
    if random.random() < 0.5:
        return [*prompt, {"role": "assistant", "content": str(random.randrange(9))}]
    turns = ["=" + prompt[0]["content"][:-1], answer, answer]
    roles = ["assistant", "user", "assistant"]
    return [*prompt, *({"role": r, "content": t} for r, t in zip(roles, turns, strict=True))]


def imitate(policy, tokenizer):
    optimizer = AdamW(policy.parameters(), lr=3e-3)
    for _ in range(250):
        talks = [demonstration() for _ in range(32)]
        form = {"return_dict": True, "return_tensors": "pt", "padding": True}
        batch = tokenizer.apply_chat_template(talks, **form)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        policy(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def main(updates=30, seed=0):
    random.seed(seed)
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(iter(["0 1 2 3 4 5 6 7 8 9 + ? ="] * 2), 280)
    tokenizer.chat_template = read_template("chatml")
    shape = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    policy = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=4, **shape, **ids)
    )
    imitate(policy, tokenizer)
    engine = TransformersSampler(policy, tokenizer)
    sampler = EnvironmentSampler(engine, tokenizer, Calculator, max_turns=3, max_new_tokens=6)
    optimizer, history = AdamW(policy.parameters(), lr=3e-4), []
    for update in range(updates):
        prompts, answers = zip(*(question() for _ in range(16)), strict=True)
        rollouts = sampler(list(prompts), group_size=8, answer=list(answers))
        rewards = torch.tensor(rollouts.columns["environment_reward"])  # (P*G,)
        advantages = group_center(rewards, group_size=8)  # (B,)
        logprobs = policy_logprobs(policy, rollouts)  # (B, A)
        loss = policy_loss(logprobs, rollouts.logprobs, advantages, rollouts.mask)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        turns = torch.tensor(rollouts.columns["environment_turns"])
        history.append((rewards.mean().item(), (turns > 1).float().mean().item()))
        print(f"update {update}: right {history[-1][0]:.2f}, tool used {history[-1][1]:.2f}")
    return history


if __name__ == "__main__":
    main()
