"""A Label Studio server of one's own: installed once, started with a generated login.

The server wants package versions of its own, so it lives in its own virtual environment in the
user's cache. Its data folder holds an SQLite database and `login.json` (readable by its owner
only); name and token reach the server through its environment, so they are in no log and no process
list. Leaves out what a public server needs: TLS, PostgreSQL, backups.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from feedback.errors import LabelStudioError

VERSION = "1.23.2"
START_SECONDS = 240.0


@dataclass(frozen=True)
class Login:
    """Who may use a server that `serve` started."""

    url: str
    email: str
    password: str
    token: str


def environment_folder() -> Path:
    """Where the server's virtual environment is, or will be."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "align" / f"label-studio-{VERSION}"


def ensure_environment(say: Callable[[str], None] = lambda line: None) -> Path:
    """Install Label Studio into its environment unless it is there; returns its executable.

    Raises:
        LabelStudioError: the installation failed; nothing half-made stays behind.
    """
    folder = environment_folder()
    program = folder / "bin" / "label-studio"
    if (folder / "installed").is_file() and program.is_file():
        return program
    say(f"installing Label Studio {VERSION} into {folder} (once; a few minutes)")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    steps = [
        [sys.executable, "-m", "venv", str(folder)],
        [str(folder / "bin" / "pip"), "install", "-q", f"label-studio=={VERSION}"],
    ]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            raise LabelStudioError(
                f"installing Label Studio failed: {done.stderr.strip()[-400:]}. Fix: check the "
                f"network, or install label-studio=={VERSION} into {folder} by hand."
            )
    (folder / "installed").write_text(VERSION, encoding="utf-8")
    return program


class LabelStudioServer:
    """A running server; a context manager, or `start` and `stop`."""

    def __init__(
        self,
        folder: Path,
        port: int = 8080,
        host: str = "127.0.0.1",
        *,
        local_webhooks: bool = False,
    ):
        """Prepare a server whose data live in `folder`.

        Args:
            folder: database, login and log.
            port: where it listens.
            host: on which address.
            local_webhooks: let it send webhooks to private addresses. Whoever may edit a project
                could then have it call services of this network.
        """
        self.folder, self.port, self.host = Path(folder), port, host
        self.local_webhooks = local_webhooks
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LabelStudioServer:
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
    def login(self) -> Login:
        """The login of this folder's server, made on first use and kept."""
        path = self.folder / "login.json"
        url = f"http://{self.host}:{self.port}"
        if path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            return Login(**(kept | {"url": url}))
        login = Login(url, "admin@align.local", secrets.token_urlsafe(12), secrets.token_hex(20))
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(asdict(login), stream)
        return login

    def start(self, say: Callable[[str], None] = lambda line: None) -> Login:
        """Start the server and wait until it answers; returns the login.

        Raises:
            LabelStudioError: the port is taken, the installation failed, the server ended or did
                not answer in time; the message holds the end of its log.
        """
        program = ensure_environment(say)
        self._check_port()
        login = self.login
        environment = os.environ | {
            "LABEL_STUDIO_BASE_DATA_DIR": str(self.folder.resolve()),
            "LABEL_STUDIO_USERNAME": login.email,
            "LABEL_STUDIO_PASSWORD": login.password,
            "LABEL_STUDIO_USER_TOKEN": login.token,
            "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
            "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
            "COLLECT_ANALYTICS": "false",
            "SENTRY_DSN": "",
            "FRONTEND_SENTRY_DSN": "",
            "SSRF_PROTECTION_ENABLED": "false" if self.local_webhooks else "true",
        }
        # Only the server's own environment: ours would shadow its packages.
        environment = {k: v for k, v in environment.items() if not k.startswith("PYTHON")}
        log = self.folder / "server.log"
        say(f"starting Label Studio on {login.url} (log: {log})")
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                [
                    str(program),
                    "start",
                    "--no-browser",
                    "--internal-host",
                    self.host,
                    "--port",
                    str(self.port),
                ],
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while not healthy(login.url):
            if self.process.poll() is not None or time.monotonic() > deadline:
                ended = self.process.poll() is not None
                self.stop()
                tail = log.read_text(encoding="utf-8", errors="replace")[-600:]
                what = "ended" if ended else f"did not answer in {START_SECONDS:.0f} s"
                raise LabelStudioError(f"Label Studio {what}. Its log ends:\n{tail}")
            time.sleep(0.5)
        return login

    def stop(self, *, hard: bool = False) -> None:
        """End the server and its children; `hard` is kill -9."""
        if self.process is None:
            return
        for sort in [signal.SIGKILL] if hard else [signal.SIGTERM, signal.SIGKILL]:
            try:
                os.killpg(self.process.pid, sort)
                self.process.wait(timeout=10)
                break
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        self.process = None

    def wait(self) -> None:
        """Until the server ends."""
        if self.process is not None:
            self.process.wait()

    def _check_port(self) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host, self.port))
            except OSError as error:
                raise LabelStudioError(
                    f"port {self.port} on {self.host} cannot be used ({error.strerror}). Fix: "
                    "choose another with --port, or stop what listens there."
                ) from error


def healthy(url: str) -> bool:
    """Whether a Label Studio server answers there."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=3) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError, ValueError):
        return False
