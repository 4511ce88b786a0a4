"""Process rewards: a model read at the end of every step of an answer.

Lightman et al. (2023), arXiv 2305.20050, label every step of a solution and score a solution by
its steps. A step ends where the next one begins, or where the answer does; which token that is
follows from the token ids alone, so chat templates and merges across the boundary do not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from feedback.schema import Text
from reward.errors import RewardError
from reward.losses import aggregate_steps, group_scores
from reward.model import RewardModel, steps_of
from reward.score import encode_answer, score_ids
from reward.steps import SEPARATOR, join_steps, split_steps

How = Literal["min", "prod", "last", "mean"]


@dataclass
class ProcessReward:
    """A `RewardFn`: the log-probability that an answer's steps are right."""

    model: RewardModel
    how: How = "min"  # the worst step, the product of all, the last, or their mean

    def __post_init__(self) -> None:
        if self.how not in get_args(How):
            raise RewardError(f"how is {self.how!r}; expected one of {', '.join(get_args(How))}.")

    @property
    def __name__(self) -> str:
        return self.model.name

    @classmethod
    def load(cls, path: str | Path, how: How = "min", **kwargs: Any) -> ProcessReward:
        """Load a model that `align reward` trained on steps; arguments as of `RewardModel.load`.

        Raises:
            ModelError: nothing loadable is there, or it lacks statistics that are wanted.
            RewardError: an unknown `how`.
        """
        return cls(RewardModel.load(path, steps=True, **kwargs), how)

    def step_scores(
        self, prompts: Sequence[Text], completions: Sequence[Text]
    ) -> list[list[float]]:
        """Log-odds that each step is right, one list per completion.

        A step is scored on the answer up to its end, which is what a causal model reads there.
        """
        model, tokenizer = self.model.model, self.model.tokenizer
        encoded = [
            encode_steps(prompt, split_steps(text_of(answer)), tokenizer)
            for prompt, answer in zip(prompts, completions, strict=True)
        ]
        rows = [ids[: end + 1] for ids, ends in encoded for end in ends]
        padding = tokenizer.pad_token_id or 0
        flat = iter(score_ids(model, rows, padding, self.model.batch_size).tolist())
        return [[next(flat) for _ in ends] for _, ends in encoded]

    def score(self, prompts: Sequence[Text], completions: Sequence[Text]) -> list[float]:
        """Raw scores: one log-probability per completion, 0 at the most."""
        if not completions:
            return []
        steps = self.step_scores(prompts, completions)
        sizes = torch.tensor([len(scores) for scores in steps])
        flat = torch.tensor([score for scores in steps for score in scores])
        table, real = group_scores(flat, sizes)
        found: list[float] = aggregate_steps(table, real, self.how).tolist()
        return found

    def __call__(self, prompts: list[Text], completions: list[Text], **columns: Any) -> list[float]:
        """Scores normalised over reference samples, where the model carries statistics."""
        raw, scale = self.score(prompts, completions), self.model.normalisation
        return raw if scale is None else [(value - scale.mean) / scale.std for value in raw]


def scorer_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 32
) -> RewardModel | ProcessReward:
    """What scores whole answers with a model in memory: by its steps, where it was trained so."""
    reward = RewardModel(model, tokenizer, batch_size=batch_size)
    return _by_steps(reward)


def load_reward(path: str | Path, **kwargs: Any) -> RewardModel | ProcessReward:
    """A reward model from a directory or the hub, a process reward model among them.

    Raises:
        ModelError: as `RewardModel.load`.
    """
    reward = RewardModel.load(path, steps=True, **kwargs)
    return _by_steps(reward)


def _by_steps(reward: RewardModel) -> RewardModel | ProcessReward:
    how = steps_of(reward.model.config)
    return reward if how is None else ProcessReward(reward, cast(How, how))


def text_of(answer: Text) -> str:
    """The words of an answer."""
    return answer if isinstance(answer, str) else answer[-1]["content"]


def encode_steps(
    prompt: Text, steps: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]]:
    """Token ids of prompt and answer, and the place of each step's last token.

    Args:
        prompt: text or a conversation.
        steps: at least one.
        tokenizer: the reward model's.

    Returns:
        T ids, and S ascending indices into them; the last step's is T - 1, where an ordinary
        reward model is read.
    """
    ids = encode_answer(prompt, _answer(prompt, join_steps(steps)), tokenizer)
    ends: list[int] = []
    for count in range(1, len(steps)):
        so_far = join_steps(steps[:count]) + SEPARATOR
        start = encode_answer(prompt, _answer(prompt, so_far), tokenizer)
        ends.append(max(_shared(start, ids) - 1, ends[-1] if ends else 0))
    return ids, [*ends, len(ids) - 1]


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin alike with."""
    for place, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return place
    return min(len(first), len(second))


def _answer(prompt: Text, text: str) -> Text:
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
