"""The last TRL with PPO, run by the Python of its own environment: `trl_ppo.py JOB.json`.

Imports nothing of Align. `benchmarks.ppo` writes the job and reads the line printed last. Phases
are timed around public pieces: `batch_generation` (generation), from there to the first accumulated
microbatch (scoring: old and reference log-probabilities, values, rewards, advantages), and from
there to the update's log (optimisation).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer


class Clock(TrainerCallback):
    """When each phase of each update ended."""

    def __init__(self) -> None:
        self.generation = 0.0
        self.scoring = 0.0
        self.optimisation = 0.0
        self.rewards: list[float] = []
        self.scored_from: float | None = None
        self.optimised_from: float | None = None

    def generating(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        """`batch_generation`, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            found = generate(*args, **kwargs)
            self.scored_from = time.perf_counter()
            self.generation += self.scored_from - started
            return found

        return timed

    def accumulating(self, accumulate: Callable[..., Any]) -> Callable[..., Any]:
        """`Accelerator.accumulate`: its first call of an update ends the scoring."""

        def noted(*args: Any, **kwargs: Any) -> Any:
            if self.optimised_from is None and self.scored_from is not None:
                self.optimised_from = time.perf_counter()
                self.scoring += self.optimised_from - self.scored_from
            return accumulate(*args, **kwargs)

        return noted

    def on_log(self, *args: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """The end of an update."""
        if self.optimised_from is None or not logs or "objective/scores" not in logs:
            return
        self.optimisation += time.perf_counter() - self.optimised_from
        self.optimised_from = None
        self.rewards.append(logs["objective/scores"])


def peak_megabytes() -> float:
    """The greatest resident size of this process so far."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM: this needs Linux.")


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Train as the job says; seconds by phase, peak memory, mean reward of every update."""
    torch.set_num_threads(job["threads"])
    tokenizer = AutoTokenizer.from_pretrained(job["policy"], padding_side="left")
    policy, reference = (AutoModelForCausalLM.from_pretrained(job["policy"]) for _ in range(2))
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(job["reward"], num_labels=1)
        for _ in range(2)
    )
    batch = job["batch"]
    config = PPOConfig(
        output_dir=job["folder"],
        seed=job["seed"],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        lr_scheduler_type="constant",
        learning_rate=job["learning_rate"],
        total_episodes=batch * job["updates"],
        # One optimizer step for each of its minibatches: it accumulates over
        # gradient_accumulation_steps microbatches whatever num_mini_batches says.
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=1,
        num_mini_batches=batch // job["minibatch"],
        local_rollout_forward_batch_size=job["rollout_rows"],
        num_sample_generations=0,
        num_ppo_epochs=job["epochs"],
        response_length=job["response"],
        stop_token="eos",
        temperature=job["temperature"],
        missing_eos_penalty=job["missing_eos_penalty"],
        kl_coef=job["kl_coef"],
        kl_estimator="k1",
        cliprange=job["clip"],
        cliprange_value=job["value_clip"],
        vf_coef=job["vf_coef"],
        gamma=job["gamma"],
        lam=job["lambda"],
        whiten_rewards=False,
    )
    clock = Clock()
    ppo_trainer.batch_generation = clock.generating(ppo_trainer.batch_generation)
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": job["prompts"]}),
        callbacks=[clock],
    )
    trainer.accelerator.accumulate = clock.accumulating(trainer.accelerator.accumulate)
    started = time.perf_counter()
    trainer.train()
    return {
        "seconds": time.perf_counter() - started,
        "generation": clock.generation,
        "scoring": clock.scoring,
        "optimisation": clock.optimisation,
        "rewards": clock.rewards,
        "peak_mb": peak_megabytes(),
    }


if __name__ == "__main__":
    told = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(json.dumps(main(told)))
