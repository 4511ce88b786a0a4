"""A sampler that plays episodes: the model's turn, the environment's reply, and so on.

All episodes are played at once: each round draws a turn for every episode that goes on. An episode
ends by itself when its environment says so. It is cut off (`finished` is False) after `max_turns`,
when the context is full, and when a turn reached `max_new_tokens`: half an action is not carried
out. Leaves out pools of environments: each episode makes its own and closes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from align.data.tokens import encode_prompt
from align.errors import ConfigError, ModelError, SamplerError
from align.rollout.base import Engine, pad_id, pad_left, pad_right
from align.rollout.calls import Call, Caller
from align.rollout.environment import REWARD_COLUMN, Environment, Step, as_messages, opening
from align.rollout.transcript import Transcript, reply_ids
from align.types import Messages, Rollout, SyncedSampler, Text

INFO_COLUMN, TURNS_COLUMN = "environment_info", "environment_turns"
TURN_SEED = 7919  # between the seeds of two turns


class SyncedEngine(Engine, SyncedSampler, Protocol):
    """vLLM's samplers: they draw, and take over weights."""


@dataclass
class Episode:
    """One play, and how it stands."""

    number: int  # in the batch
    environment: Environment
    row: dict[str, Any]  # of the dataset, the prompt included
    transcript: Transcript = field(default_factory=lambda: Transcript([], []))
    turns: int = 0
    reward: float = 0.0
    info: dict[str, Any] = field(default_factory=dict)
    over: bool = False
    finished: bool = False  # ended by its environment

    def call(self, method: str, *args: Any, **kwargs: Any) -> Call:
        """One of the environment's methods, labelled."""
        name = type(self.environment).__name__
        turn = f", turn {self.turns}" if self.turns else ""
        label = f"environment {name}, episode {self.number}{turn}: {method}"
        return Call(label, getattr(self.environment, method), args, kwargs)


@dataclass
class EnvironmentSampler:
    """A `Sampler` whose completions are whole episodes with an environment.

    In a rollout, `mask` is 1 on the tokens that the model sampled and `real` on the environment's
    as well; `completions` hold all messages; `columns` gain `environment_reward` (the sum over the
    turns), `environment_turns` and `environment_info` (the last step's).
    """

    engine: Engine
    tokenizer: PreTrainedTokenizerBase  # with a chat template
    make_environment: Callable[[], Environment]  # once per episode
    max_turns: int = 8  # of the model's
    max_new_tokens: int = 128  # of one turn
    context: int | None = None  # tokens of prompt and episode together; None: no limit
    timeout: float = 60.0  # seconds for each reset, step and close
    device: torch.device | str = "cpu"  # of the rollouts' tensors
    version: int = 0

    def __post_init__(self) -> None:
        """Refuse what could not be played.

        Raises:
            ModelError: the tokenizer has no chat template.
            ConfigError: a limit that leaves nothing to play.
        """
        if self.tokenizer.chat_template is None:
            raise ModelError(
                "an environment and a model take turns, which needs a chat template, and the "
                "tokenizer has none. Fix: model.chat_template=chatml, or a .jinja file."
            )
        for name in ("max_turns", "max_new_tokens", "timeout"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)}; more than 0 is expected.")

    @property
    def temperature(self) -> float:
        """The engine's."""
        return self.engine.temperature

    @property
    def seed(self) -> int | None:
        """The engine's, where it has one."""
        return getattr(self.engine, "seed", None)

    @seed.setter
    def seed(self, seed: int | None) -> None:
        if hasattr(self.engine, "seed"):
            self.engine.seed = seed

    def __call__(self, prompts: list[Text], group_size: int = 1, **columns: list[Any]) -> Rollout:
        """Play `group_size` episodes from each prompt; a prompt's lie side by side.

        A prompt that is plain text is put as a user's message.

        Raises:
            SamplerError: an environment raised, hung or answered with something else than a
                `Step`; it is named with episode and turn.
            ModelError: no prompt was given, one fills the context, or the chat template cannot
                hold such a conversation.
        """
        if not prompts:
            raise ModelError("the sampler was given no prompts; at least one is expected.")
        taken = {REWARD_COLUMN, INFO_COLUMN, TURNS_COLUMN} & columns.keys()
        if taken:
            raise ConfigError(f"the data's column {min(taken)} is one that environments fill.")
        rows = [
            {"prompt": as_messages(prompt)} | {key: values[i] for key, values in columns.items()}
            for i, prompt in enumerate(prompts)
            for _ in range(group_size)
        ]
        episodes: list[Episode] = []
        with Caller(self.timeout) as caller:
            try:
                self._open(rows, caller, episodes)
                self._play(group_size, caller, episodes)
            except BaseException:
                _close(caller, episodes, quiet=True)
                raise
            _close(caller, episodes)
        return self._assemble(episodes, columns)

    def _open(self, rows: list[dict[str, Any]], caller: Caller, episodes: list[Episode]) -> None:
        name = getattr(self.make_environment, "__name__", "environment")
        for number, row in enumerate(rows):  # one by one, so that all that were made are closed
            label = f"environment {name}, episode {number}"
            (made,) = caller([Call(label, self.make_environment)])
            if not (callable(getattr(made, "reset", None)) and hasattr(made, "step")):
                what = f"is a {type(made).__name__}, which has no reset and step."
                raise SamplerError(f"{label} {what} Fix: make an environment there.")
            episodes.append(Episode(number, made, row))
        shown = caller([episode.call("reset", **episode.row) for episode in episodes])
        for episode, observation in zip(episodes, shown, strict=True):
            if observation is not None:
                _check_observation(observation, episode.call("reset").label)
            prompt = opening(episode.row["prompt"], observation)
            ids = encode_prompt(prompt, self.tokenizer)
            if self.context is not None and len(ids) >= self.context:
                raise ModelError(
                    f"episode {episode.number} begins with {len(ids)} tokens, which leave no room "
                    f"in a context of {self.context}. Fix: shorten the prompt or the opening "
                    "observation."
                )
            episode.transcript = Transcript(prompt, ids)

    def _play(self, group_size: int, caller: Caller, episodes: list[Episode]) -> None:
        for turn in range(self.max_turns):
            running = [episode for episode in episodes if not episode.over]
            if not running:
                break
            with self._seeded(turn):
                self._draw(running, group_size)
            acting = [episode for episode in running if not episode.over]
            steps = caller([_step_call(episode) for episode in acting])
            for episode, step in zip(acting, steps, strict=True):
                _take(episode, step)
                if not episode.over and episode.turns < self.max_turns:
                    self._reply(episode, as_messages(step.observation))

    @contextmanager
    def _seeded(self, turn: int) -> Iterator[None]:
        """An engine with a seed repeats its numbers at every call: each turn has its own."""
        seed = self.seed
        if seed is not None:
            self.seed = seed + turn * TURN_SEED
        try:
            yield
        finally:
            self.seed = seed

    def _draw(self, running: list[Episode], group_size: int) -> None:
        starts = [episode.transcript.ids for episode in running]
        rooms = [self._room(len(start)) for start in starts]
        groups = starts[::group_size]
        if running[0].turns == 0 and starts == [g for g in groups for _ in range(group_size)]:
            draws = self.engine.draw(groups, group_size, rooms[::group_size])  # one prefill a group
        else:
            draws = self.engine.draw(starts, 1, rooms)
        for episode, draw in zip(running, draws, strict=True):
            text = str(self.tokenizer.decode(draw.tokens, skip_special_tokens=True))
            episode.transcript.add_turn(draw, text)
            episode.turns += 1
            episode.over = not draw.finished

    def _room(self, used: int) -> int:
        left = math.inf if self.context is None else self.context - used
        return int(min(self.max_new_tokens, left))

    def _reply(self, episode: Episode, reply: Messages) -> None:
        ids = reply_ids(episode.transcript, reply, self.tokenizer)
        if self._room(len(episode.transcript.ids) + len(ids)) < 1:
            episode.over = True
        else:
            episode.transcript.add_reply(reply, ids)

    def _assemble(self, episodes: list[Episode], columns: dict[str, list[Any]]) -> Rollout:
        padding = pad_id(self.tokenizer)
        played = [episode.transcript for episode in episodes]
        prompt_ids, prompt_mask = pad_left([t.prompt_ids for t in played], padding, self.device)
        tokens, real = pad_right([t.tokens for t in played], padding)
        mask, logprobs = torch.zeros(real.shape), torch.zeros(real.shape)
        for row, transcript in enumerate(played):
            mask[row, : len(transcript.mask)] = torch.tensor(transcript.mask, dtype=mask.dtype)
            logprobs[row, : len(transcript.logprobs)] = torch.tensor(transcript.logprobs)
        kept = {key: [episode.row[key] for episode in episodes] for key in columns}
        return Rollout(
            prompts=[t.prompt for t in played],
            completions=[t.messages for t in played],
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            completion_ids=tokens.to(self.device),
            mask=mask.to(self.device),
            logprobs=logprobs.to(self.device),
            finished=torch.tensor([e.finished for e in episodes], device=self.device),
            columns=kept
            | {
                REWARD_COLUMN: [episode.reward for episode in episodes],
                TURNS_COLUMN: [episode.turns for episode in episodes],
                INFO_COLUMN: [episode.info for episode in episodes],
            },
            temperature=self.temperature or 1.0,
            real=real.float().to(self.device),
            version=self.version,
        )


class SyncedEnvironmentSampler(EnvironmentSampler):
    """On an engine with weights of its own, which the trainer brings over (`SyncedSampler`)."""

    engine: SyncedEngine

    def sync(self, policy: nn.Module, version: int) -> dict[str, float]:
        """Pass the policy on to the engine.

        Raises:
            SamplerError: the weights did not arrive.
        """
        self.version = version
        return self.engine.sync(policy, version)

    def close(self) -> None:
        """Let go of the engine."""
        self.engine.close()


def _step_call(episode: Episode) -> Call:
    return episode.call("step", episode.transcript.messages[-1]["content"])


def _take(episode: Episode, step: Any) -> None:
    """Note what a step brought.

    Raises:
        SamplerError: it is no `Step`, its reward is not finite, or it neither ends the episode nor
            shows anything.
    """
    label = _step_call(episode).label
    if not isinstance(step, Step):
        raise SamplerError(
            f"{label} returned {type(step).__name__}. Fix: return align.rollout.environment.Step("
            "observation, reward, done)."
        )
    try:
        reward = float(step.reward)
    except (TypeError, ValueError):
        reward = math.nan
    if not math.isfinite(reward):
        raise SamplerError(
            f"{label} gave a reward of {step.reward!r}; a finite number is expected."
        )
    if not step.done and not step.observation:
        raise SamplerError(
            f"{label} neither ended the episode nor returned an observation, so that the model has "
            "nothing to answer. Fix: return one, or Step(done=True)."
        )
    if not step.done:
        _check_observation(step.observation, label)
    episode.reward += reward
    episode.info = step.info
    episode.over = episode.finished = step.done


def _check_observation(observation: Any, label: str) -> None:
    """Refuse what is neither text nor messages.

    Raises:
        SamplerError: naming what it is.
    """
    messages = isinstance(observation, list) and all(
        isinstance(message, dict) and {"role", "content"} <= message.keys()
        for message in observation
    )
    if not messages and not isinstance(observation, str):
        raise SamplerError(
            f"{label} showed {observation!r:.120}; text, or messages with role and content, are "
            "expected."
        )


def _close(caller: Caller, episodes: Sequence[Episode], *, quiet: bool = False) -> None:
    """Close every environment that can be closed, whatever the others do.

    Raises:
        SamplerError: the first that failed to close, unless `quiet`.
    """
    failures = []
    for episode in episodes:
        if callable(getattr(episode.environment, "close", None)):
            try:
                caller([episode.call("close")])
            except SamplerError as error:
                failures.append(error)
    if failures and not quiet:
        raise failures[0]
