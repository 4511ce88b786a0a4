"""vLLM in this process, beside the policy that trains: one device, no network.

Weights go over in memory, through the one call that works for every dtype: in float32 vLLM repacks
its weights on a CPU, and only `reload_weights` undoes that. Between rollouts the engine can sleep,
where the device supports it (CUDA; not a CPU). Leaves out several processes: a trainer on more than
one rank uses `vllm-server`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from align.errors import ConfigError, MissingDependencyError, Problem, SamplerError
from align.rollout.base import Draw
from align.rollout.vllm import Request, VLLMSampler, logprobs_mode, memory_options
from align.rollout.vllm_environment import INSTALL, vllm_here
from align.rollout.vllm_weights import needs_untied, save_config, whole_weights


class VLLMColocatedSampler(VLLMSampler):
    """A `SyncedSampler` and an `Engine` on a vLLM engine in this process.

    The engine starts without weights and gets the policy's at once, so that it can be used as soon
    as it is made. Other arguments are `VLLMSampler`'s.
    """

    shares_generator = True

    def __init__(
        self,
        policy: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        *,
        gpu_memory_utilization: float = 0.3,
        kv_cache_gib: float | None = None,
        sleep: bool = False,
        **sampling: Any,
    ):
        """Start the engine.

        Args:
            policy: whose weights the engine gets; a PEFT wrapper included.
            tokenizer: the policy's.
            folder: where the model's configuration is written for vLLM.
            gpu_memory_utilization: share of a GPU's memory that vLLM may use.
            kv_cache_gib: memory for keys and values, in GiB; None: 1 on a CPU, and on a GPU what
                `gpu_memory_utilization` leaves.
            sleep: give the GPU's memory back between rollouts.
            **sampling: see `VLLMSampler`.

        Raises:
            MissingDependencyError: this process cannot import vLLM.
            ConfigError: sleep without a GPU, or more than one process.
            SamplerError: vLLM did not start, or the weights did not arrive.
        """
        super().__init__(policy, tokenizer, **sampling)
        self.sleep, self.asleep = sleep, False
        self._llm: Any = None  # vLLM is no dependency: its types cannot be named
        refuse(sleep)
        options = {
            "gpu_memory_utilization": gpu_memory_utilization,
            "enable_sleep_mode": sleep,
        } | memory_options(kv_cache_gib)
        save_config(policy, folder)
        self._llm = self._start(folder, options)
        try:
            self.sync(policy, 0)
        except BaseException:
            self.close()
            raise

    def _start(self, folder: Path, options: dict[str, Any]) -> Any:
        # In this process, and silent about it.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        for name, value in (("VLLM_NO_USAGE_STATS", "1"), ("VLLM_LOGGING_LEVEL", "WARNING")):
            os.environ.setdefault(name, value)
        with undisturbed():
            from vllm import LLM

            try:
                return LLM(
                    str(folder),
                    load_format="dummy",
                    skip_tokenizer_init=True,
                    dtype=self.dtype,
                    max_model_len=self.context,
                    enforce_eager=not torch.cuda.is_available(),
                    logprobs_mode=logprobs_mode(self.temperature),
                    generation_config="vllm",
                    **options,
                )
            except Exception as error:
                raise SamplerError(
                    f"vLLM did not start in this process: {error}. Fix: see what it printed; on a "
                    "GPU that training fills, lower rollout.vllm.gpu_memory_utilization."
                ) from error

    def close(self) -> None:
        """Let go of the engine and its memory; harmless to repeat."""
        llm, self._llm, self.proven = self._llm, None, False
        if llm is not None:
            llm.llm_engine.engine_core.shutdown()

    def _send(self, policy: nn.Module, version: int) -> None:
        llm = self._engine()
        self._wake("weights")
        weights = whole_weights(policy, untied=needs_untied(policy))
        try:
            # vLLM reports an incomplete set of weights in its log only: the probe finds it.
            llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights.items())})
        except Exception as error:
            raise SamplerError(
                f"vLLM did not take weights of version {version}: {error}. Fix: check that vLLM "
                f"supports {type(policy).__name__}."
            ) from error
        self._wake(None)
        if not llm.reset_prefix_cache():
            raise SamplerError(
                "vLLM kept keys and values of the old weights: its prefix cache was in use."
            )

    def _generate(
        self, prompts: Sequence[Sequence[int]], requests: Sequence[Request]
    ) -> list[Draw]:
        from vllm import SamplingParams

        params = [SamplingParams(**request, detokenize=False) for request in requests]
        outputs = self._run(prompts, params)
        return [
            self._draw_of(
                one.token_ids,
                [
                    step[token].logprob
                    for token, step in zip(one.token_ids, one.logprobs, strict=True)
                ],
            )
            for output in outputs
            for one in sorted(output.outputs, key=lambda one: one.index)
        ]

    def _score(self, tokens: Sequence[int]) -> list[float]:
        from vllm import SamplingParams

        # Greedy, so that the one token it must draw takes nothing from the global generator.
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        (output,) = self._run([tokens], [params])
        steps = output.prompt_logprobs[1:]  # nothing precedes the first
        return [step[token].logprob for token, step in zip(tokens[1:], steps, strict=True)]

    def _run(self, prompts: Sequence[Sequence[int]], params: list[Any]) -> list[Any]:
        llm = self._engine()
        self._wake(None)
        try:
            outputs = llm.generate(
                [{"prompt_token_ids": list(prompt)} for prompt in prompts], params, use_tqdm=False
            )
        except Exception as error:
            raise SamplerError(f"vLLM failed while it generated: {error}.") from error
        if self.sleep:
            llm.sleep(level=1)
            self.asleep = True
        return cast(list[Any], outputs)

    def _wake(self, tag: str | None) -> None:
        """Bring memory back: the weights' alone, or all of it."""
        if self.asleep:
            self._engine().wake_up(tags=None if tag is None else [tag])
            self.asleep = tag is not None

    def _engine(self) -> Any:
        if self._llm is None:
            raise SamplerError("this sampler was closed. Fix: make a new one.")
        return self._llm


def refuse(sleep: bool) -> None:
    """Refuse what cannot work before anything starts.

    Raises:
        MissingDependencyError: this process cannot import vLLM.
        ConfigError: sleep without a GPU, or more than one process.
    """
    if not vllm_here():
        raise MissingDependencyError(f"rollout.engine=vllm needs vLLM. Fix: {INSTALL}.")
    problems = []
    if sleep and not torch.cuda.is_available():
        problems.append(Problem("rollout.vllm.sleep", "vLLM cannot sleep on a CPU.", "remove it."))
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        problems.append(
            Problem(
                "rollout.engine",
                f"colocated vLLM runs in one process; there are "
                f"{torch.distributed.get_world_size()}.",
                "use rollout.engine: vllm-server.",
            )
        )
    if problems:
        raise ConfigError(problems)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Undo what starting vLLM does to this process.

    It seeds every generator anew, and on a CPU it takes `torch.set_num_threads` away.
    """
    states = random.getstate(), numpy.random.get_state(), torch.random.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads = set_threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
