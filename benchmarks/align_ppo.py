"""Our side of `benchmarks.ppo`: one job in a process of its own, timed by phase."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from align.engine.models import load_policy
from align.ppo.actor_critic import build_actor_critic
from align.ppo.config import PPOConfig
from align.ppo.trainer import PPOTrainer
from align.rollout.transformers import TransformersSampler
from align.types import Rollout
from benchmarks.paired import Json, peak_megabytes
from reward.score import score_ids

PHASES = ("generation", "scoring", "optimisation")


class Clock(TrainerCallback):
    """Seconds of generation, and from there to the next optimizer step (scoring)."""

    def __init__(self) -> None:
        self.generation = self.scoring = 0.0
        self.drawn_at: float | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The batch is there: scoring is over."""
        if self.drawn_at is not None:
            self.scoring += time.perf_counter() - self.drawn_at
            self.drawn_at = None


@dataclass
class TimedSampler(TransformersSampler):
    """Tells a clock how long it drew."""

    clock: Clock = field(default_factory=Clock)

    def __call__(self, *args: Any, **kwargs: Any) -> Rollout:
        """As without a clock."""
        started = time.perf_counter()
        rollout = super().__call__(*args, **kwargs)
        self.clock.drawn_at = time.perf_counter()
        self.clock.generation += self.clock.drawn_at - started
        return rollout


def arm(arguments: list[str]) -> int:
    """Our side of one job; prints seconds by phase, peak memory and rewards."""
    job: Json = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    print(json.dumps(train(job, arguments[1])))
    return 0


def train(job: Json, backbone: str) -> Json:
    """Train as the job says."""
    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    policy, reference, tokenizer = load_policy(job["policy"])
    judge = AutoModelForSequenceClassification.from_pretrained(job["reward"])
    clock = Clock()
    rewards: list[float] = []

    def score(rollout: Rollout) -> tuple[list[float], dict[str, float]]:
        """The reward model on token ids, as TRL's has it."""
        tokens, kept = rollout.input_ids, rollout.attention_mask.bool()
        rows = [row[mask].tolist() for row, mask in zip(tokens, kept, strict=True)]
        scores = score_ids(judge, rows, tokenizer.pad_token_id or 0, batch_size=8)
        penalty = job["missing_eos_penalty"] * (~rollout.finished).float()
        rewards.append(float((scores - penalty).mean()))
        return scores.tolist(), {}

    config = PPOConfig(
        output_dir=job["folder"],
        seed=job["seed"],
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        learning_rate=job["learning_rate"],
        total_episodes=job["batch"] * job["updates"],
        rollout_batch_size=job["batch"],
        per_device_train_batch_size=job["minibatch"],
        logging_steps=job["epochs"] * (job["batch"] // job["minibatch"]),  # TRL: once an update
        ppo_epochs=job["epochs"],
        missing_eos_penalty=job["missing_eos_penalty"],
        kl_coef=job["kl_coef"],
        clip_range=job["clip"],
        clip_range_value=job["value_clip"],
        vf_coef=job["vf_coef"],
        gamma=job["gamma"],
        gae_lambda=job["lambda"],
    )
    trainer = PPOTrainer(
        model=build_actor_critic(
            policy, backbone=backbone, init="zero" if backbone == "shared" else job["reward"]
        ),
        reference=reference,
        args=config,
        sampler=TimedSampler(
            policy,
            tokenizer,
            max_new_tokens=job["response"],
            temperature=job["temperature"],
            batch_size=job["rollout_rows"],
            clock=clock,
        ),
        score=score,
        train_dataset=Dataset.from_dict({"prompt": texts_of(job["prompts"], tokenizer)}),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    phases = {
        "generation": clock.generation,
        "scoring": clock.scoring,
        "optimisation": seconds - clock.generation - clock.scoring,
    }
    return {"seconds": seconds, **phases, "rewards": rewards, "peak_mb": peak_megabytes()}


def texts_of(prompts: Sequence[list[int]], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Prompts as text that is tokenised to the same ids.

    Raises:
        RuntimeError: one is not, so that the sides would see different prompts.
    """
    texts = [tokenizer.decode(ids) for ids in prompts]
    for ids, text in zip(prompts, texts, strict=True):
        if tokenizer(str(text))["input_ids"] != ids:
            raise RuntimeError(f"the prompt {text[:60]!r} is not tokenised to its own ids")
    return [str(text) for text in texts]


if __name__ == "__main__":
    raise SystemExit(arm(sys.argv[2:]))
