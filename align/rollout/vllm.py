"""What the two vLLM samplers share: encoding, limits, seeds, and weights that are proven to arrive.

`align.rollout.vllm_colocated` has vLLM in this process, `align.rollout.vllm_remote` on a server.
TRL's VLLMGeneration is not used: it wants an accelerator and a trainer's arguments, offers no dtype
(it picks bfloat16, 20 times slower on a CPU without its instructions), waits without a limit, and
proves nothing about the weights. Nothing here imports vLLM.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from align.data.tokens import encode_prompt
from align.engine.head import causal_lm
from align.errors import ConfigError, ModelError, Problem, SamplerError
from align.rollout.base import Draw, assemble
from align.rollout.transformers import end_ids
from align.rollout.vllm_probe import Probe
from align.rollout.vllm_weights import unwrapped
from align.types import Rollout, Text

GIB = 2**30
CPU_CACHE_GIB = 1.0  # of keys and values; by default vLLM would take nearly all memory
CPU_BLOCK = 32  # tokens: vLLM's 128 on a CPU would share no prefix of a shorter prompt

Request = dict[str, Any]  # keyword arguments of vLLM's SamplingParams, and fields of its HTTP API


class VLLMSampler(ABC):
    """A `SyncedSampler` and an `Engine` on vLLM; subclasses bring weights, tokens and scores over.

    `temperature` 0 is greedy. Log-probabilities are those of the full distribution at the sampling
    temperature, as the transformers sampler's are. `seed` makes every call repeatable.
    """

    shares_generator = False  # the engine draws from this process's global generator

    def __init__(
        self,
        policy: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_new_tokens: int = 128,
        min_new_tokens: int = 0,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        seed: int | None = None,
        dtype: str = "auto",
        max_model_len: int | None = None,
        timeout: float = 600.0,
        tolerance: float | None = None,
    ):
        """Set up what both samplers need.

        Args:
            policy: whose weights the engine gets; a PEFT wrapper included.
            tokenizer: the policy's.
            max_new_tokens: of a completion, unless `draw` says otherwise.
            min_new_tokens: no completion ends earlier.
            temperature: of the draws.
            top_p: mass of the tokens to draw from; 1 is all.
            top_k: number of tokens to draw from; 0 is all.
            min_p: least probability relative to the likeliest token; 0 is all.
            seed: makes every call draw the same; None continues torch's global generator.
            dtype: of the engine's weights; auto is float32 on a CPU, else the policy's own, or
                bfloat16 where that is float32.
            max_model_len: the engine's context in tokens; None for the model's.
            timeout: seconds for any one wait.
            tolerance: of the probe (`vllm_probe`); None for the dtype's own.

        Raises:
            ConfigError: vLLM cannot give the log-probabilities of such draws.
        """
        problem = truncation_problem(temperature, top_p, top_k, min_p, min_new_tokens)
        if problem is not None:
            raise ConfigError([problem])
        self.policy, self.tokenizer = policy, tokenizer
        self.max_new_tokens, self.min_new_tokens = max_new_tokens, min_new_tokens
        self.temperature, self.top_p, self.top_k, self.min_p = temperature, top_p, top_k, min_p
        self.seed, self.timeout = seed, timeout
        self.version = 0  # of the weights that the engine has
        self.dtype = resolve_dtype(dtype, unwrapped(policy))
        self.context = max_model_len or context_of(policy)
        self.ends = end_ids(unwrapped(policy), tokenizer)
        config = causal_lm(unwrapped(policy)).config.get_text_config()
        self.probe = Probe(int(config.vocab_size), self.dtype, self.context, tolerance)
        self.proven = False  # the engine has the weights of `version`
        self._lock = threading.RLock()  # no draw may see weights change under it

    def __call__(self, prompts: list[Text], group_size: int = 1, **columns: list[Any]) -> Rollout:
        """Sample `group_size` completions of each prompt; a prompt's completions lie side by side.

        Raises:
            ModelError: no prompt was given, or a prompt and its completion exceed the context.
            SamplerError: the engine failed or did not answer in time.
        """
        if not prompts:
            raise ModelError("the sampler was given no prompts; at least one is expected.")
        encoded = [encode_prompt(prompt, self.tokenizer) for prompt in prompts]
        draws = self.draw(encoded, group_size)
        return assemble(
            prompts,
            encoded,
            draws,
            self.tokenizer,
            columns,
            temperature=self.temperature or 1.0,
            version=self.version,
            device=next(self.policy.parameters()).device,
        )

    def draw(
        self,
        prompts: Sequence[Sequence[int]],
        group_size: int = 1,
        max_new_tokens: int | Sequence[int] | None = None,
    ) -> list[Draw]:
        """See `align.rollout.base.Engine`."""
        room = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        rooms = [room] * len(prompts) if isinstance(room, int) else list(room)
        self._check_lengths(prompts, rooms)
        # vLLM draws one greedy completion of a request, since all would be the same.
        copies, repeats = (group_size, 1) if self.temperature else (1, group_size)
        seeds = self._seeds(len(prompts) * repeats, copies)
        requests = [self._request(rooms[i], copies) for i in range(len(prompts))]
        asked = [
            (prompt, request)
            for prompt, request in zip(prompts, requests, strict=True)
            for _ in range(repeats)
        ]
        with self._alone():
            if not self.proven:
                raise SamplerError(
                    "vLLM was restarted or closed, or its last synchronisation failed: nobody "
                    "knows its weights. Fix: synchronise before drawing."
                )
            draws = self._generate(
                [prompt for prompt, _ in asked],
                [
                    r if s is None else r | {"seed": s}
                    for (_, r), s in zip(asked, seeds, strict=True)
                ],
            )
        expected = len(prompts) * group_size
        if len(draws) != expected or any(len(d.tokens) != len(d.logprobs) for d in draws):
            raise SamplerError(
                f"vLLM returned {len(draws)} completions where {expected} were expected, or a "
                "completion without all its log-probabilities."
            )
        return draws

    def sync(self, policy: nn.Module, version: int) -> dict[str, float]:
        """See `align.types.SyncedSampler`: brings the weights over and proves that they arrived.

        Raises:
            ModelError: the policy cannot be sent (virtual tokens, quantised weights).
            SamplerError: the weights did not arrive within the time-out, or not whole.
        """
        start = time.monotonic()
        with self._alone():
            self.proven = False
            self._send(policy, version)
            sent = time.monotonic() - start
            with torch.random.fork_rng():  # rollouts draw the same, proven or not
                gap = self._prove(policy, version)
            self.policy, self.version, self.proven = policy, version, True
        return {
            "rollout/sync_seconds": sent,
            "rollout/probe_seconds": time.monotonic() - start - sent,
            "rollout/probe_gap": gap,
        }

    def _prove(self, policy: nn.Module, version: int) -> float:
        probe = self.probe
        request = self._request(8, 1) | {"min_tokens": 0}
        if self.temperature:
            request["seed"] = 1
        scored = self._score(probe.tokens)
        drawn = self._generate([probe.prompt], [request])[0]
        return probe.check(
            unwrapped(policy), scored, drawn, version=version, temperature=self.temperature
        )

    @abstractmethod
    def close(self) -> None:
        """Let go of the engine; harmless to repeat."""

    @abstractmethod
    def _send(self, policy: nn.Module, version: int) -> None:
        """Bring the weights over, and forget what was computed with the old ones."""

    @abstractmethod
    def _generate(
        self, prompts: Sequence[Sequence[int]], requests: Sequence[Request]
    ) -> list[Draw]:
        """`n` draws for each prompt, side by side."""

    @abstractmethod
    def _score(self, tokens: Sequence[int]) -> list[float]:
        """Log-probabilities of `tokens[1:]`, each after those before it, at temperature 1."""

    def _draw_of(self, tokens: Sequence[int], logprobs: Sequence[float]) -> Draw:
        found = list(tokens)
        return Draw(found, list(logprobs), finished=bool(found) and found[-1] in self.ends)

    def _request(self, room: int, copies: int) -> Request:
        return {
            "n": copies,
            "max_tokens": room,
            "min_tokens": min(self.min_new_tokens, room),
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "logprobs": 0,  # of the drawn token alone
            "stop_token_ids": self.ends,
            "ignore_eos": True,  # `ends` has it
        }

    def _seeds(self, requests: int, copies: int) -> list[int | None]:
        """A seed for each request; vLLM gives copy number i of a request its seed + i."""
        if not self.temperature or (self.seed is None and self.shares_generator):
            return [None] * requests
        base = self.seed
        if base is None:
            base = int(torch.randint(2**48, ()))
        return [(base * 1_000_003 + request * copies) % 2**62 for request in range(requests)]

    def _check_lengths(self, prompts: Sequence[Sequence[int]], rooms: Sequence[int]) -> None:
        for row, (prompt, room) in enumerate(zip(prompts, rooms, strict=True)):
            if not prompt:
                raise ModelError(f"prompt {row} has no tokens; vLLM needs at least one.")
            if room < 1:
                raise ModelError(f"prompt {row} may have {room} new tokens; at least 1 is needed.")
            if len(prompt) + room > self.context:
                raise ModelError(
                    f"prompt {row} has {len(prompt)} tokens; with max_new_tokens={room} that is "
                    f"{len(prompt) + room}, more than vLLM's context of {self.context}. Fix: "
                    "shorten the prompt, lower rollout.max_new_tokens, or raise "
                    "rollout.vllm.max_model_len if the model allows it."
                )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Inside, no other thread draws or synchronises."""
        if not self._lock.acquire(timeout=self.timeout):
            raise SamplerError(
                f"another thread has been drawing or synchronising for {self.timeout:g} s. Fix: "
                "look at the engine's log, or raise rollout.vllm.timeout."
            )
        try:
            yield
        finally:
            self._lock.release()


def truncation_problem(
    temperature: float, top_p: float, top_k: int, min_p: float = 0.0, min_new_tokens: int = 0
) -> Problem | None:
    """What vLLM cannot score: it does so before temperature and truncation, or after both."""
    cut = {
        "top_p": top_p < 1,
        "top_k": top_k > 0,
        "min_p": min_p > 0,
        "min_new_tokens": min_new_tokens > 0,
    }
    used = [name for name, on in cut.items() if on]
    if temperature in (0, 1) or not used:
        return None
    return Problem(
        f"rollout.{used[0]}",
        f"with temperature {temperature}, vLLM cannot tell a token's probability before "
        f"{', '.join(used)} cut the distribution.",
        "use temperature 1, leave it out, or set rollout.engine: transformers.",
    )


def logprobs_mode(temperature: float) -> str:
    """Which of vLLM's log-probabilities are those of the full distribution at the temperature."""
    return "raw_logprobs" if temperature in (0, 1) else "processed_logprobs"


def resolve_dtype(name: str, policy: nn.Module) -> str:
    """The dtype of the engine's weights, by vLLM's name."""
    if name != "auto":
        return name
    if not torch.cuda.is_available():
        return "float32"
    own = str(next(policy.parameters()).dtype).removeprefix("torch.")
    return own if own in ("bfloat16", "float16") else "bfloat16"


def context_of(policy: nn.Module) -> int:
    """The context of a policy's model, in tokens.

    Raises:
        ModelError: its configuration does not say.
    """
    config = causal_lm(unwrapped(policy)).config.get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    if context is None:
        raise ModelError(
            "the model's configuration does not say how long its context is. Fix: set "
            "rollout.vllm.max_model_len."
        )
    return int(context)


def memory_options(kv_cache_gib: float | None) -> dict[str, Any]:
    """Arguments of vLLM for its cache of keys and values."""
    on_cpu = not torch.cuda.is_available()
    if kv_cache_gib is None and on_cpu:
        kv_cache_gib = CPU_CACHE_GIB
    options: dict[str, Any] = {"block_size": CPU_BLOCK} if on_cpu else {}
    if kv_cache_gib is not None:
        options["kv_cache_memory_bytes"] = int(kv_cache_gib * GIB)
    return options
