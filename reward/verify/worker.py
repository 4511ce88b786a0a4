"""A process that checks answers, ended and started anew when a check takes too long.

Algebra, patterns and recursive schemas can take for ever on a text that a model chose, and nothing
can interrupt them in a thread of this process. What runs there: `reward.verify.worker_side`.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from reward.errors import RewardError

SIDE = Path(__file__).with_name("worker_side.py")
START_SECONDS = 120.0  # importing sympy on a busy machine


class Worker:
    """One such process; nothing starts before the first question."""

    def __init__(self, check: Literal["algebra", "schema"], seconds: float):
        """Say what it checks, and the seconds that one answer may take (its start excluded)."""
        self.check, self.seconds = check, seconds
        self.process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()  # asked by one thread at a time

    def ask(self, *question: Any) -> Any:
        """Its answer, JSON to JSON; None if that takes too long or ends the process.

        Raises:
            RewardError: the process does not start.
        """
        with self._lock:
            process = self.process or self._start()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps(question).encode() + b"\n")
                process.stdin.flush()
            except OSError:
                self.close()
                return None
            line = self._line(process, self.seconds)
            if not line:
                self.close()
                return None
            return json.loads(line)

    def _start(self) -> subprocess.Popen[bytes]:
        self.process = process = subprocess.Popen(
            [sys.executable, "-P", str(SIDE), self.check, str(self.seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if self._line(process, START_SECONDS) != b'"ready"':
            self.close()
            package = {"algebra": "math_verify", "schema": "jsonschema"}[self.check]
            raise RewardError(f"{package} does not start: import it by hand to see why.")
        return process

    def _line(self, process: subprocess.Popen[bytes], seconds: float) -> bytes:
        """Its next line; empty if none comes in time."""
        assert process.stdout is not None
        line, deadline = b"", time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return b""
                piece = os.read(process.stdout.fileno(), 4096)
                if not piece:
                    return b""
                line += piece
        return line.strip()

    def close(self) -> None:
        """End the process; the next question starts another."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                assert pipe is not None
                pipe.close()
            self.process = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
