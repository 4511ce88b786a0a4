"""PPO on one process or several; samples depend on the prompt alone. See test_processes.py."""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path

import torch
from datasets import Dataset

from align.engine.models import load_policy
from align.ppo.actor_critic import build_actor_critic
from align.ppo.config import PPOConfig
from align.ppo.rewards import RewardScorer
from align.ppo.trainer import PPOTrainer
from align.rollout.transformers import TransformersSampler
from reward.combine import RewardTerm


class ByPrompt(TransformersSampler):
    """Draws with numbers and a length that each prompt has of its own, beside whomever."""

    def draw(self, prompts, group_size=1, max_new_tokens=None):
        drawn = []
        for ids in prompts:
            self.seed = zlib.crc32(str(ids).encode())
            drawn += super().draw([ids], group_size, 2 + self.seed % 5)
        return drawn


def vowels(prompts, completions, **columns):
    return [float(sum(text.count(v) for v in "aeiou")) for text in completions]


def main() -> None:
    model, out, rows = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    policy, reference, tokenizer = load_policy(model)
    args = PPOConfig(
        output_dir=str(out), report_to=[], use_cpu=True, bf16=False, disable_tqdm=True,
        save_strategy="no", optim="sgd", learning_rate=0.5, lr_scheduler_type="constant",
        rollout_batch_size=rows, per_device_train_batch_size=rows, total_episodes=8 * 3,
        ppo_epochs=2, kl_coef=0.1, kl_controller="adaptive", kl_target=2.2, kl_horizon=50,
        seed=3,
    )  # fmt: skip
    trainer = PPOTrainer(
        model=build_actor_critic(policy),
        reference=reference,
        args=args,
        sampler=ByPrompt(policy, tokenizer, max_new_tokens=6),
        score=RewardScorer([RewardTerm("vowels", vowels, normalise="running", clip=2.0)]),
        train_dataset=Dataset.from_dict(
            {"prompt": [f"Where is order {n * n}?" for n in range(30)]}
        ),
        processing_class=tokenizer,
    )
    trainer.train()
    rank = args.process_index
    facts = {"seed": torch.initial_seed(), "processes": args.world_size, "kl": trainer.kl.value}
    facts["log"] = trainer.state.log_history
    (out / f"facts-{rank}.json").write_text(json.dumps(facts))
    weights = {
        n: p.detach() for n, p in trainer.accelerator.unwrap_model(trainer.model).named_parameters()
    }
    torch.save(weights, out / f"weights-{rank}.pt")


if __name__ == "__main__":
    main()
