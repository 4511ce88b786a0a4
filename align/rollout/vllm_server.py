"""A vLLM server of one's own: started with time-outs and a log, and never left behind.

It listens on this machine only: the development endpoints that bring new weights have no login.
Leaves out tensor and pipeline parallelism across machines: start such a server by hand and name it
in `rollout.vllm.url`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from align.errors import SamplerError
from align.rollout.vllm_client import VLLMClient
from feedback import leash
from feedback.groups import end_group
from feedback.ports import free_port

TAIL = 1500  # characters of the log in a message


@dataclass
class VLLMServer:
    """What `vllm serve` runs, as a child process; a context manager, or `start` and `stop`.

    Args:
        model: a checkpoint's directory or a hub id.
        folder: where the log goes.
        python: of an environment that has vLLM.
        options: further arguments of `vllm serve`.
        port: where it listens; None chooses a free one at every start.
        timeout: seconds to wait for the start.
        lora_rank: greatest rank of the adapters to come; None allows no adapter.
        variables: further environment variables.
    """

    model: str | Path
    folder: Path
    python: Path
    options: list[str] = field(default_factory=list)
    port: int | None = None
    timeout: float = 600.0
    lora_rank: int | None = None
    variables: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    url: str = field(default="", init=False)

    def __enter__(self) -> VLLMServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def log(self) -> Path:
        """What the server prints."""
        return self.folder / "vllm-server.log"

    def start(self, say: Callable[[str], None] = lambda line: None) -> None:
        """Start, and wait until it answers; whatever interrupts that, no server stays behind.

        Raises:
            SamplerError: it ended or did not answer in time; the message holds the end of its log.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        port = self.port or free_port()
        self.url = f"http://127.0.0.1:{port}"
        say(f"starting vLLM on {self.url} (log: {self.log})")
        command = [sys.executable, str(leash.__file__), str(self.python)]
        # What `vllm serve` runs. The command itself does not start from a CPU build: it asks for
        # the version of a package named vllm.
        command += ["-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--generation-config", "vllm"]
        command += ["--uvicorn-log-level", "warning"]
        if self.lora_rank is not None:
            # vLLM allows these ranks only.
            rank = next((r for r in (8, 16, 32, 64, 128, 256, 320, 512) if r >= self.lora_rank), 0)
            command += ["--enable-lora", "--max-lora-rank", str(rank), "--max-loras", "2"]
        try:
            with self.log.open("ab") as stream:
                self.process = subprocess.Popen(
                    [*command, *self.options],
                    stdin=subprocess.PIPE,  # the leash
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    env=self._environment(),
                    start_new_session=True,
                )
            self._await(self.process)
        except BaseException:
            self.stop()
            raise

    def _environment(self) -> dict[str, str]:
        # PYTHONPATH and the like are ours: they would shadow the packages of another environment.
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        # torchrun's and accelerate's variables would make the engine wait for our other ranks.
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            kept.pop(name, None)
        kept |= {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        if self.lora_rank is not None:
            kept["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
        return kept | self.variables

    def _await(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self.timeout
        client = VLLMClient(self.url)
        while not client.healthy():
            if process.poll() is not None:
                raise SamplerError(f"the vLLM server ended ({process.returncode}). {self.tail()}")
            if time.monotonic() > deadline:
                raise SamplerError(
                    f"the vLLM server did not answer within {self.timeout:g} s of its start. "
                    f"{self.tail()}"
                )
            time.sleep(0.5)

    @property
    def running(self) -> bool:
        """Whether the process is there; it may hang all the same."""
        return self.process is not None and self.process.poll() is None

    def tail(self) -> str:
        """The end of the log, for a message."""
        if not self.log.is_file():
            return "It has no log."
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return f"Its log ({self.log}) ends:\n{text[-TAIL:]}"

    def restart(self, say: Callable[[str], None] = lambda line: None) -> None:
        """Stop what is left of the server, and start it anew with the weights it began with.

        Raises:
            SamplerError: see `start`.
        """
        self.stop()
        self.start(say)

    def stop(self, *, hard: bool = False) -> None:
        """End the server with all its processes; `hard` is kill -9. Harmless to repeat."""
        process, self.process = self.process, None
        if process is None:
            return
        end_group(process, hard=hard)
        if process.stdin is not None:
            process.stdin.close()
