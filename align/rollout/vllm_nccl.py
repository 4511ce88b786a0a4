"""Weights over NCCL, from the training process's GPU to a vLLM server's: vLLM's own engine for it.

vLLM's sender does the work; this supplies the weights, talks to the server through our client, and
bounds every wait, since a broken NCCL call never returns. It needs vLLM (0.28 or later) beside
Align and two GPUs: NCCL joins no GPU with itself. On machines without them only its seams are
tested: the handshake, the order of the calls, the time-out.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from align.errors import MissingDependencyError, SamplerError
from align.rollout.vllm_client import Json, VLLMClient, is_local
from align.rollout.vllm_environment import INSTALL, vllm_here
from feedback.ports import free_port


class WeightChannel:
    """A lasting connection for weights; opened at the first `send`."""

    def __init__(self, client: VLLMClient):
        """Prepare.

        Args:
            client: of the server; its time-out holds for each step.

        Raises:
            MissingDependencyError: vLLM cannot be imported here, or there is no GPU.
        """
        if not vllm_here():
            raise MissingDependencyError(
                f"rollout.vllm.sync=nccl needs vLLM beside Align too. Fix: {INSTALL}."
            )
        if not torch.cuda.is_available():
            raise MissingDependencyError(
                "rollout.vllm.sync=nccl needs a GPU here and another for the server. Fix: "
                "rollout.vllm.sync=checkpoint."
            )
        self.control = Control(client)
        self.weights: dict[str, Tensor] = {}
        self._sender: Any = None  # vLLM's, whose type cannot be named here

    def send(self, weights: dict[str, Tensor], name: str) -> None:
        """Send weights; when it returns, the server has them under that name.

        Raises:
            SamplerError: a step failed or took longer than the time-out.
        """
        self.weights, self.control.name = weights, name
        timeout = self.control.client.timeout
        device = torch.cuda.current_device()  # a new thread would have the first one
        if self._sender is None:
            self._sender = bounded(
                lambda: on_device(device, self._open), timeout, "opening the NCCL connection"
            )
        bounded(
            lambda: on_device(device, self._sender.send_weights),
            timeout,
            "sending weights over NCCL",
        )

    def close(self) -> None:
        """Let go of the connection."""
        sender, self._sender = self._sender, None
        if sender is not None:
            bounded(sender.shutdown, 10.0, "closing the NCCL connection")

    def _open(self) -> Any:
        from vllm.distributed.weight_transfer.nccl_engine import (
            NCCLTrainerInitInfo,
            NCCLTrainerWeightTransferEngine,
        )

        workers = int(self.control.client.get("/get_world_size")["world_size"])
        info = NCCLTrainerInitInfo(
            rank=0,
            master_address=own_address(self.control.client.url),
            master_port=free_port(),
            world_size=1 + workers,
        )
        return NCCLTrainerWeightTransferEngine.trainer_init(
            info, client=self.control, source=as_source(lambda: self.weights)
        )


class Control:
    """The server's side of a transfer, in the words of vLLM's `VLLMWeightSyncClient`."""

    def __init__(self, client: VLLMClient):
        self.client, self.name = client, ""

    def init_weight_transfer_engine(self, init_info: Json) -> None:
        """Have the server's workers join."""
        self.client.post("/init_weight_transfer_engine", {"init_info": init_info})

    def shutdown_weight_transfer_engine(self) -> None:
        """Have them leave."""
        self.client.post("/shutdown_weight_transfer_engine")

    def start_weight_update(self) -> None:
        """Have them unpack their weights."""
        self.client.post("/start_weight_update")

    def update_weights(self, update_info: Json | list[Json]) -> None:
        """Have them receive; returns when they have."""
        self.client.post("/update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Have them pack the new weights, and name these."""
        self.client.post("/finish_weight_update", {"weight_version": weight_version or self.name})


def as_source(weights: Callable[[], dict[str, Tensor]]) -> Any:
    """Weights as vLLM's sender reads them: what there will be, and then each of it."""
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    class Weights(WeightSource):  # type: ignore[misc, unused-ignore]
        def metadata(self) -> list[Any]:
            return [ParamMeta(n, w.dtype, tuple(w.shape)) for n, w in weights().items()]

        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            return iter(weights().items())

    return Weights()


def own_address(url: str) -> str:
    """The address under which a server at `url` reaches this machine."""
    if is_local(url):
        return "127.0.0.1"
    parts = urlsplit(url)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((parts.hostname, parts.port or 80))  # sends nothing
        return str(probe.getsockname()[0])


def on_device(device: int, action: Callable[[], Any]) -> Any:
    """The result of an action on a GPU."""
    with torch.cuda.device(device):
        return action()


def bounded(action: Callable[[], Any], seconds: float, what: str) -> Any:
    """The result of an action that may never return; its thread is left behind then.

    Raises:
        SamplerError: it failed, or took longer.
    """
    found: list[Any] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            found.append(action())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise SamplerError(
            f"{what} took longer than {seconds:g} s. Fix: look at the server's log; restart both "
            "sides, since the connection is lost; raise rollout.vllm.timeout if it is only slow."
        )
    if failed:
        if isinstance(failed[0], SamplerError):
            raise failed[0]
        raise SamplerError(f"{what} failed: {failed[0]}.") from failed[0]
    return found[0]
