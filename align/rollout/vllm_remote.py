"""vLLM on a server: prompts go out over HTTP, several at a time; weights follow every update.

Weights travel as a checkpoint on a disk that both see, as a LoRA adapter that the server loads
under a new name, or over NCCL (`vllm_nccl`). After each the server's weights carry a name of ours:
a server that was restarted since has lost both, and what it drew is refused. On several ranks the
first one sends, the others wait for it, and all draw.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from align.errors import AlignError, SamplerError
from align.rollout.base import Draw
from align.rollout.vllm import (
    Request,
    VLLMSampler,
    context_of,
    logprobs_mode,
    memory_options,
)
from align.rollout.vllm_client import VLLMClient
from align.rollout.vllm_nccl import WeightChannel
from align.rollout.vllm_server import VLLMServer
from align.rollout.vllm_weights import lora_settings, save_adapter, save_whole, whole_weights

Sync = Literal["checkpoint", "lora", "nccl"]
Result = TypeVar("Result")


class VLLMServerSampler(VLLMSampler):
    """A `SyncedSampler` and an `Engine` on a vLLM server.

    The server gets the policy's weights at once. Other arguments are `VLLMSampler`'s.
    """

    def __init__(
        self,
        policy: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        *,
        server: VLLMServer | None = None,
        url: str | None = None,
        sync: Sync = "checkpoint",
        concurrency: int = 64,
        **sampling: Any,
    ):
        """Connect to a server that runs.

        Args:
            policy: whose weights the server gets; a PEFT wrapper included.
            tokenizer: the policy's.
            folder: where weights are written for the server; it must see the same path.
            server: one that this sampler owns, and stops when it is closed.
            url: where a server listens, if none is owned.
            sync: how weights travel.
            concurrency: requests in flight at once.
            **sampling: see `VLLMSampler`.

        Raises:
            ModelError: the policy cannot be sent this way.
            SamplerError: the server does not answer, or the weights did not arrive.
        """
        super().__init__(policy, tokenizer, **sampling)
        self.server, self.way, self.folder = server, sync, Path(folder)
        # Several runs may share a server; a restarted run must not take old weights for its own.
        self.name = f"align-{uuid.uuid4().hex[:8]}"
        self.count = 0  # synchronisations so far
        self.current: str | None = None  # the weights that the server should have
        self._channel: WeightChannel | None = None
        address = url or (server.url if server is not None else "")
        self.client = VLLMClient(address.rstrip("/"), self.timeout, concurrency)
        if sync == "lora":
            lora_settings(policy)
        served = self._explained(self.client.models)[0]
        self.model = str(served["id"])
        if served.get("max_model_len"):
            self.context = min(self.context, int(served["max_model_len"]))
            self.probe.room = self.context
        self.sync(policy, 0)

    def close(self) -> None:
        """Stop an owned server; harmless to repeat."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self.server is not None:
            self.server.stop()

    def restart(self, say: Callable[[str], None] = lambda line: None) -> None:
        """Start an owned server anew; the next `sync` brings the weights back.

        Raises:
            SamplerError: it did not start, or is not this sampler's.
        """
        if self.server is None:
            raise SamplerError(
                f"the server at {self.client.url} was started by somebody else. Fix: restart it "
                "there; the next synchronisation brings the weights back."
            )
        self._channel, self.current, self.proven = None, None, False
        self.server.restart(say)
        self.client.url = self.server.url

    def _send(self, policy: nn.Module, version: int) -> None:
        if self.server is not None:
            self.client.url = self.server.url  # a restart may have chosen another port
        self.count += 1
        name = f"{self.name}-{version}-{self.count}"
        self.current = None
        send = {"checkpoint": self._by_checkpoint, "lora": self._by_lora, "nccl": self._by_nccl}

        def deliver() -> str:
            self._explained(lambda: send[self.way](policy, name))
            return f"{name} {self.client.url}"

        self.current, self.client.url = on_first_rank(deliver).split(" ")

    def _by_checkpoint(self, policy: nn.Module, name: str) -> None:
        folder = self.folder / name
        save_whole(policy, folder)
        body = {
            "method": "reload_weights",
            "kwargs": {"weights_path": str(folder.resolve())},
            "timeout": self.timeout,
        }
        self.client.post("/collective_rpc", body)
        self._forget_and_name(name)
        for old in self.folder.glob(f"{self.name}-*"):
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)

    def _by_lora(self, policy: nn.Module, name: str) -> None:
        folder = self.folder / name
        save_adapter(policy, folder)
        self.client.post(
            "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder.resolve())}
        )
        served = {str(model["id"]) for model in self.client.models()}
        for old in served - {name}:
            if old.startswith(f"{self.name}-"):
                self.client.post("/v1/unload_lora_adapter", {"lora_name": old})
        for path in self.folder.glob(f"{self.name}-*"):
            if path != folder:
                shutil.rmtree(path, ignore_errors=True)

    def _by_nccl(self, policy: nn.Module, name: str) -> None:
        if self._channel is None:
            self._channel = WeightChannel(self.client)
        try:
            self._channel.send(whole_weights(policy), name)
        except SamplerError:
            self._channel = None  # a connection that failed once is lost; the next one is new
            raise
        self._forget_and_name(name)

    def _forget_and_name(self, name: str) -> None:
        """Empty the prefix cache, and give the weights their name."""
        if self.client.post("/reset_prefix_cache").get("success") is not True:
            raise SamplerError(
                f"the vLLM server at {self.client.url} kept keys and values of the old weights: "
                "its prefix cache was in use. Fix: let nobody else use the server meanwhile."
            )
        self.client.post("/update_weight_version", {"new_version": name})

    def _generate(
        self, prompts: Sequence[Sequence[int]], requests: Sequence[Request]
    ) -> list[Draw]:
        answers = self._explained(
            lambda: self.client.post_all(
                "/v1/completions",
                [self._body(p) | r for p, r in zip(prompts, requests, strict=True)],
            )
        )
        self._explained(self._check_weights)
        return [
            self._draw_of(choice["token_ids"], choice["logprobs"]["token_logprobs"])
            for answer in answers
            for choice in sorted(answer["choices"], key=lambda choice: int(choice["index"]))
        ]

    def _score(self, tokens: Sequence[int]) -> list[float]:
        body = self._body(tokens) | {"max_tokens": 1, "prompt_logprobs": 0, "temperature": 0.0}
        answer = self._explained(lambda: self.client.post("/v1/completions", body))
        steps = answer["choices"][0]["prompt_logprobs"][1:]  # nothing precedes the first
        return [
            float(step[str(token)]["logprob"])
            for token, step in zip(tokens[1:], steps, strict=True)
        ]

    def _body(self, prompt: Sequence[int]) -> Request:
        model = self.current if self.way == "lora" and self.current else self.model
        return {
            "model": model,
            "prompt": list(prompt),
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "add_special_tokens": False,
        }

    def _check_weights(self) -> None:
        """A server that was restarted draws from the weights it began with."""
        if self.way == "lora":
            return  # it does not know the adapter's name then, and says so
        found = self.client.get("/weight_info")["weight_version"]
        if found != self.current:
            raise SamplerError(
                f"the vLLM server at {self.client.url} has weights {found!r}, not "
                f"{self.current!r}: it was restarted, or another run "
                "uses it. Fix: synchronise again; give every run a server of its own."
            )

    def _explained(self, call: Callable[[], Result]) -> Result:
        """The result of a call; an owned server's log is added to its error."""
        try:
            return call()
        except (KeyError, IndexError, TypeError, ValueError) as error:
            if isinstance(error, AlignError):
                raise
            raise SamplerError(
                f"the server at {self.client.url} answers in a form that Align does not know "
                f"({type(error).__name__}: {error}). Fix: see that it is vLLM 0.28 or later."
            ) from error
        except SamplerError as error:
            if self.server is None or self.server.process is None or "Its log" in str(error):
                raise
            ended = "" if self.server.running else "The server is not running. "
            raise SamplerError(f"{error} {ended}{self.server.tail()}") from error


def on_first_rank(action: Callable[[], str]) -> str:
    """Run on the first rank while the others wait; its result, or error, becomes everybody's.

    Raises:
        AlignError: what the action raised.
    """
    group = torch.distributed
    if not (group.is_available() and group.is_initialized() and group.get_world_size() > 1):
        return action()
    group.barrier()  # nobody draws any more
    outcome: list[str] = ["", ""]  # result, error
    failure: AlignError | None = None
    if group.get_rank() == 0:
        try:
            outcome = [action(), ""]
        except AlignError as error:
            failure, outcome = error, ["", str(error)]
    group.broadcast_object_list(outcome, src=0)
    if failure is not None:
        raise failure
    if outcome[1]:
        raise SamplerError(f"on the first rank: {outcome[1]}")
    return outcome[0]


@contextmanager
def started(server: VLLMServer) -> Iterator[VLLMServer]:
    """A server that the first rank starts and every rank knows; it stops if the rest fails.

    Raises:
        SamplerError: it did not start.
    """

    def start() -> str:
        server.start()
        return server.url

    server.url = on_first_rank(start)
    try:
        yield server
    except BaseException:
        server.stop()
        raise


def serve_policy(
    policy: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    python: Path,
    *,
    sync: Sync = "checkpoint",
    dtype: str = "float32",
    temperature: float = 1.0,
    max_model_len: int | None = None,
    gpu_memory_utilization: float = 0.9,
    kv_cache_gib: float | None = None,
    timeout: float = 600.0,
    port: int | None = None,
    devices: str | None = None,
) -> VLLMServer:
    """Write a policy down and describe a server for it, which is yet to be started.

    Args:
        policy: what will be trained.
        tokenizer: the policy's.
        folder: for the weights it starts with, and the log.
        python: of an environment that has vLLM.
        sync: how weights will travel; with `lora` the server starts with the base model.
        dtype: of the server's weights.
        temperature: of the draws to come.
        max_model_len: context in tokens; None for the model's.
        gpu_memory_utilization: share of a GPU's memory to use.
        kv_cache_gib: memory for keys and values; None: 1 on a CPU, else what the GPU has left.
        timeout: seconds to wait for the start.
        port: where it listens; None for a free one.
        devices: the GPUs it may see, as CUDA_VISIBLE_DEVICES has them; None for all.

    Raises:
        ModelError: the policy cannot be sent this way.
    """
    rank = lora_settings(policy) if sync == "lora" else None
    start = folder / "start"

    def write() -> str:
        save_whole(policy, start, tokenizer=tokenizer, with_adapters=sync != "lora")
        return ""

    on_first_rank(write)
    length = max_model_len or context_of(policy)
    options = ["--dtype", dtype, "--max-model-len", str(length)]
    options += ["--logprobs-mode", logprobs_mode(temperature), "--served-model-name", "policy"]
    options += ["--gpu-memory-utilization", str(gpu_memory_utilization)]
    for name, value in memory_options(kv_cache_gib).items():
        options += [f"--{name.replace('_', '-')}", str(value)]
    if not torch.cuda.is_available():
        options += ["--enforce-eager"]
    if sync == "nccl":
        options += ["--weight-transfer-config", '{"backend": "nccl"}']
    server = VLLMServer(start, folder, python, options, port=port, timeout=timeout, lora_rank=rank)
    if devices is not None:
        server.variables["CUDA_VISIBLE_DEVICES"] = devices
    return server
