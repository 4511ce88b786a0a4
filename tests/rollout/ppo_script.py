"""PPO with a vLLM sampler on three seeds: `ppo_script.py FOLDER ENGINE [URL]` writes ENGINE.json.

The reward counts vowels. On a server a fourth run draws its rollouts while it trains. Colocated it
runs in vLLM's environment, else anywhere.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from datasets import Dataset

from align.config.sections import RolloutSection
from align.engine.models import load_policy
from align.ppo.actor_critic import build_actor_critic
from align.ppo.config import PPOConfig
from align.ppo.rewards import reward_scorer
from align.ppo.trainer import PPOTrainer
from align.rollout.open import open_sampler

QUESTIONS = ["Where is my order", "I cannot log in", "Thank you", "The parcel is late"]
LOGGED = ("reward/mean", "rollout/sampler_gap", "rollout/probe_gap", "rollout/age")


def vowels(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Vowels in the answer."""
    return [float(sum(text.count(vowel) for vowel in "aeiou")) for text in completions]


def learn(
    folder: Path, engine: str, url: str | None, seed: int, ahead: bool = False
) -> dict[str, list[float]]:
    """One run; what was logged at each update."""
    policy, reference, tokenizer = load_policy(folder / "policy")
    vllm = {"kv_cache_gib": 0.25} if url is None else {"url": url, "timeout": 120}
    section = RolloutSection(engine=engine, max_new_tokens=12, vllm=vllm)
    sampler = open_sampler(section, policy, tokenizer, folder / f"{engine}-{seed}")
    trainer = PPOTrainer(
        model=build_actor_critic(policy),
        reference=reference,
        args=PPOConfig(
            output_dir=str(folder / "out"),
            report_to=[],
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            save_strategy="no",
            learning_rate=3e-3,
            rollout_batch_size=32,
            group_size=4,  # few requests
            per_device_train_batch_size=16,
            total_episodes=32 * 12,
            ppo_epochs=2,
            logging_steps=1,
            rollouts_ahead=ahead,
            missing_eos_penalty=0.0,
            seed=seed,
        ),
        sampler=sampler,
        score=reward_scorer([("vowels", vowels, 1.0)]),
        train_dataset=Dataset.from_dict({"prompt": QUESTIONS * 8}),
        processing_class=tokenizer,
    )
    try:
        trainer.train()
    finally:
        sampler.close()
    history = trainer.state.log_history
    return {key: [row[key] for row in history if key in row] for key in LOGGED}


if __name__ == "__main__":
    place, chosen = Path(sys.argv[1]), sys.argv[2]
    address = sys.argv[3] if len(sys.argv) > 3 else None
    runs = [learn(place, chosen, address, seed) for seed in (1, 2, 3)]
    if chosen == "vllm-server":
        runs.append(learn(place, chosen, address, 1, ahead=True))
    (place / f"{chosen}.json").write_text(json.dumps(runs))
