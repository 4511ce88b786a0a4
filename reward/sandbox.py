"""Programs that nobody trusts, run where they can do no harm (Linux).

Each runs in namespaces of its own (`reward.sandbox_child` says what holds it), under a wall-clock
limit that this process keeps. Where the kernel does not allow that, nothing is run: there is no
weaker mode. Leaves out the kernel's own faults: for hostile code at scale use a virtual machine.
"""

from __future__ import annotations

import functools
import json
import os
import random
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO

from reward.errors import RewardError

CHILD = Path(__file__).with_name("sandbox_child.py")
SHARED = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/nix/store", "/etc/ld.so.cache")
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/box",
    "TMPDIR": "/tmp",
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What a program may use up."""

    seconds: float = 10.0  # by the clock on the wall, starting it included
    cpu: int = 10  # seconds of a process
    memory: int = 512 * MEGABYTE  # address space of a process, in bytes
    processes: int = 8  # and threads, at once
    file: int = 16 * MEGABYTE  # bytes of one file; all of them together fit into twice that
    output: int = MEGABYTE  # bytes printed before the program is stopped


@dataclass
class Finished:
    """How a program ended."""

    ended: str  # "exit", "signal", "timeout" or "output"
    code: int  # exit status, or number of the signal
    output: str  # what it printed on standard output, up to the limit
    errors: str  # on standard error
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether it ended by itself with status 0."""
        return self.ended == "exit" and self.code == 0


@dataclass
class Job:
    """A program in its sandbox, with what it has printed so far."""

    process: subprocess.Popen[bytes]
    folder: Path
    limits: Limits
    streams: dict[str, IO[bytes]]  # "status", and "output" and "errors" where they are read
    read: dict[str, bytearray] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    stopped: str = ""  # why it was, if it was

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        for stream in self.streams.values():
            stream.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self, why: str = "") -> None:
        """End everything inside; harmless to repeat."""
        self.stopped = self.stopped or why
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def finished(self) -> Finished:
        """How it ended.

        Raises:
            RewardError: it could not be locked in.
        """
        said = json.loads(self.read.get("status", b"").partition(b"\n")[0] or b"{}")
        if "setup" in said:
            raise RewardError(refusal(said["setup"]))
        text = {k: bytes(v).decode(errors="replace") for k, v in self.read.items()}
        code = said.get("code", -int(signal.SIGKILL))
        ended = self.stopped or ("signal" if code < 0 else "exit")
        seconds = time.monotonic() - self.started
        return Finished(ended, abs(code), text.get("output", ""), text.get("errors", ""), seconds)


def start(
    command: Sequence[str],
    files: Mapping[str, str],
    limits: Limits,
    *,
    packages: bool = False,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.PIPE,
    stderr: int | IO[bytes] = subprocess.PIPE,
) -> Job:
    """Start Python with some arguments in a sandbox.

    Args:
        command: the interpreter's arguments; the working directory is `/box`.
        files: name: text, put into `/box`.
        limits: what it may use.
        packages: whether it may import what is installed beside Align.
        stdin: as for `subprocess`.
        stdout: likewise.
        stderr: likewise.

    Raises:
        RewardError: this is no Linux.
    """
    if sys.platform != "linux":
        raise RewardError(refusal(f"sandboxes need Linux, and this is {sys.platform}"))
    python, flags = interpreter(packages)
    folder = Path(tempfile.mkdtemp(prefix="align-sandbox-"))
    (folder / "root").mkdir()
    spec = {
        "root": str(folder / "root"),
        "binds": binds(packages),
        "files": dict(files),
        "disk": 2 * limits.file,
        "limits": {
            "cpu": limits.cpu,
            "memory": limits.memory,
            "processes": limits.processes,
            "file": limits.file,
        },
        # A user that nobody is, so that its processes are counted apart.
        "user": random.SystemRandom().randrange(1_000_000_000, 2_000_000_000),
        "command": [python, *flags, *command],
        "environment": ENVIRONMENT,
    }
    (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    reader, writer = os.pipe()
    try:
        process = subprocess.Popen(
            [python, "-I", "-S", str(CHILD), str(writer), str(folder / "spec.json")],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd="/",
            env={},
            pass_fds=(writer,),
            start_new_session=True,
        )
    except BaseException:
        os.close(reader)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(writer)
    streams: dict[str, IO[bytes]] = {"status": os.fdopen(reader, "rb")}
    if process.stdout is not None:
        streams["output"] = process.stdout
    if process.stderr is not None:
        streams["errors"] = process.stderr
    return Job(process, folder, limits, streams)


def watch(jobs: Sequence[Job], main: Job) -> None:
    """Read what jobs print until `main` has ended, or one breaks a limit; then end them all.

    Args:
        jobs: programs that run together.
        main: the one whose end is awaited.
    """
    deadline = main.started + main.limits.seconds
    waiting = {main.streams[name] for name in main.streams}
    with selectors.DefaultSelector() as selector:
        for job in jobs:
            for name, stream in job.streams.items():
                selector.register(stream, selectors.EVENT_READ, (job, name))
        while waiting:
            left = deadline - time.monotonic()
            if left <= 0:
                for job in jobs:
                    job.kill("timeout")
                break
            for key, _ in selector.select(left):
                job, name = key.data
                piece = os.read(key.fd, 65536)
                kept = job.read.setdefault(name, bytearray())
                kept += piece[: job.limits.output - len(kept) + 1]
                if not piece:
                    selector.unregister(key.fileobj)
                    waiting.discard(key.fileobj)
                elif len(kept) > job.limits.output:
                    job.kill("output")
                    selector.unregister(key.fileobj)
                    waiting.discard(key.fileobj)
    for job in jobs:
        job.kill()


def run_python(
    source: str, stdin: str = "", limits: Limits | None = None, *, packages: bool = False
) -> Finished:
    """Run a program and keep what it prints.

    Args:
        source: Python.
        stdin: what it reads from standard input.
        limits: what it may use.
        packages: whether it may import what is installed beside Align.

    Raises:
        RewardError: this machine cannot lock it in.
    """
    with tempfile.TemporaryFile() as given:
        given.write(stdin.encode())
        given.seek(0)
        files = {"main.py": source}
        command = ["/box/main.py"]
        with start(command, files, limits or Limits(), packages=packages, stdin=given) as job:
            watch([job], job)
            return job.finished()


@functools.cache
def check_sandbox() -> None:
    """Run nothing much, to see that this machine can lock programs in.

    Raises:
        RewardError: it cannot; the message says what would let it.
    """
    done = run_python("print('ready')", limits=Limits(seconds=60))
    if done.output != "ready\n":
        raise RewardError(refusal(f"a first program failed: {done.errors.strip() or done}"))


def interpreter(packages: bool) -> tuple[str, list[str]]:
    """The Python that runs inside, and its flags: isolated, and bare unless packages are wanted."""
    if packages:
        return sys.executable, ["-I", "-B"]
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable)), ["-I", "-S", "-B"]


def binds(packages: bool) -> list[str]:
    """What is seen inside, read-only: system libraries and the interpreter's own files.

    Links stay links, and what they lead to is seen too.
    """
    wanted = [*SHARED, sys.base_prefix]
    if packages:
        wanted += [sys.prefix, os.path.dirname(sys.executable)]
    wanted += [os.path.realpath(path) for path in wanted]
    found: list[str] = []
    for path in sorted({os.path.abspath(path) for path in wanted if os.path.lexists(path)}):
        if not any(path.startswith(f"{other}/") for other in found):
            found.append(path)
    return found


def refusal(cause: str) -> str:
    """Why nothing was run, and what would help."""
    return (
        f"generated code cannot be locked in here ({cause}), so none was run. Fix: Linux 5.12 or "
        "later with user namespaces (sysctl kernel.unprivileged_userns_clone=1, "
        "user.max_user_namespaces > 0, kernel.apparmor_restrict_unprivileged_userns=0), or root "
        "with CAP_SYS_ADMIN (docker run --cap-add SYS_ADMIN --security-opt seccomp=unconfined)."
    )
