"""The rewards of a run as one TRL reward function.

TRL sums reward functions by fixed weights. Schedules, running and group normalisation, clipping,
time-outs, retries, ensembles and rewards that are only logged are `RewardScorer`'s, so TRL is given
the sum, and the parts go to its `log_metric`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import TrainerState

from align.ppo.rewards import RewardScorer
from align.rollout.base import pad_right
from align.rollout.repetition import repetition
from align.types import Rollout, Text


class TRLReward:
    """`reward_funcs=[TRLReward(scorer, steps_per_rollout=1.0)]`."""

    __name__ = "sum"  # what TRL calls it

    def __init__(
        self,
        scorer: RewardScorer,
        steps_per_rollout: float = 1.0,
        learning: Callable[[], bool] = lambda: True,
    ):
        """Set up.

        Args:
            scorer: the rewards.
            steps_per_rollout: optimizer steps that TRL takes on each batch of completions;
                schedules count rollouts, as in PPO.
            learning: whether the completions are trained on, so that running statistics move.
        """
        self.scorer, self.steps_per_rollout, self.learning = scorer, steps_per_rollout, learning

    def __call__(
        self,
        prompts: list[Text],
        completions: list[Text],
        completion_ids: Sequence[Sequence[int]],
        trainer_state: TrainerState,
        log_metric: Callable[[str, float], None],
        **columns: Any,
    ) -> list[float]:
        """B scores.

        Raises:
            RewardError: as `RewardScorer`.
            NonFiniteError: likewise.
        """
        tokens, mask = pad_right(completion_ids, 0)
        rows = {k: v for k, v in columns.items() if isinstance(v, list)}  # not TRL's own helpers
        rollout = Rollout(
            prompts=prompts,
            completions=completions,
            prompt_ids=torch.zeros(len(tokens), 0, dtype=torch.long),
            prompt_mask=torch.zeros(len(tokens), 0, dtype=torch.long),
            completion_ids=tokens,
            mask=mask.float(),
            logprobs=torch.zeros(tokens.shape),
            finished=torch.zeros(len(tokens), dtype=torch.bool),  # no reward reads it
            columns=rows,
        )
        self.scorer.trainer_state = trainer_state
        self.scorer.update = int(trainer_state.global_step / self.steps_per_rollout)
        scores, metrics = self.scorer(rollout, learn=self.learning())
        metrics["rollout/repetition"] = repetition(tokens, mask).mean().item()
        for name, value in metrics.items():
            log_metric(name, value)
        return scores
