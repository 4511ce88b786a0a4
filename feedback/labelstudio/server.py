"""A Label Studio server of one's own: installed once, started with a generated login.

The server wants package versions of its own, so it lives in its own virtual environment in the
user's cache. Its data folder, which nobody else may read, holds an SQLite database and
`login.json`; name and token reach the server through its environment, so they are in no log and no
process list. Leaves out what a public server needs: TLS, PostgreSQL, backups.
"""

from __future__ import annotations

import json
import os
import secrets
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

from feedback import environments, leash
from feedback.errors import LabelStudioError
from feedback.groups import end_group

VERSION = "1.23.2"
NAME = f"label-studio-{VERSION}"
START_SECONDS = 240.0
SETTINGS = Path(__file__).parent / "django"  # the server's settings module


@dataclass(frozen=True)
class Login:
    """Who may use a server that `serve` started."""

    url: str
    email: str
    password: str
    token: str


def ensure_environment(say: Callable[[str], None] = lambda line: None) -> Path:
    """Install Label Studio into its environment unless it is there; returns its executable.

    Raises:
        LabelStudioError: the installation failed; nothing half-made stays behind.
    """
    wanted = f"label-studio=={VERSION}"
    steps = [["-m", "pip", "install", "-q", wanted]]
    try:
        python = environments.ensure_environment(NAME, VERSION, steps, say)
    except environments.InstallError as error:
        raise LabelStudioError(
            f"installing Label Studio failed: {error}\nFix: check the network, and that pip finds "
            f"{wanted}."
        ) from None
    return python.with_name("label-studio")


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
            host: on which address; 0.0.0.0 is all of this machine's.
            local_webhooks: let it send webhooks to private addresses. Whoever may edit a project
                could then have it call services of this network.
        """
        self.folder, self.port, self.host = Path(folder), port, host
        self.local_webhooks = local_webhooks
        self.process: subprocess.Popen[bytes] | None = None
        self.stopped = False

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
    def url(self) -> str:
        """Where programs and people on this machine open it."""
        return f"http://{'127.0.0.1' if self.host == '0.0.0.0' else self.host}:{self.port}"

    @property
    def login(self) -> Login:
        """The login of this folder's server, made on first use and kept.

        The folder is its owner's alone: `login.json` and the database in it hold the token.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        path = self.folder / "login.json"
        if path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            return Login(**(kept | {"url": self.url}))
        login = Login(
            self.url, "admin@align.local", secrets.token_urlsafe(12), secrets.token_hex(20)
        )
        self._record(login)
        return login

    def _record(self, login: Login) -> None:
        """Write the login down for the other commands, whole or not at all."""
        path = self.folder / "login.json"
        temporary = path.with_name("login.json.tmp")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(asdict(login), stream)
        os.replace(temporary, path)

    def start(self, say: Callable[[str], None] = lambda line: None) -> Login:
        """Start the server and wait until it answers; returns the login.

        The address is written down for the other commands, since it may differ from the last one.
        Whatever interrupts the start, no server stays behind.

        Raises:
            LabelStudioError: the port is taken, the installation failed, the server ended or did
                not answer in time; the message holds the end of its log.
        """
        program = ensure_environment(say)
        self._check_port()
        login = self.login
        self._record(login)
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
        environment |= {
            "PYTHONPATH": str(SETTINGS.resolve()),
            "PYTHONDONTWRITEBYTECODE": "1",  # our package may be where nobody may write
            "DJANGO_SETTINGS_MODULE": "align_label_studio",
        }
        say(f"starting Label Studio on {login.url} (log: {self.log})")
        command = [sys.executable, str(leash.__file__), str(program), "start", "--no-browser"]
        command += ["--internal-host", self.host, "--port", str(self.port)]
        self.stopped = False
        try:
            with self.log.open("ab") as stream:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,  # the leash
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
            self._await(self.process, login.url)
        except BaseException:
            self.stop()
            raise
        return login

    def _await(self, process: subprocess.Popen[bytes], url: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not healthy(url):
            if process.poll() is not None:
                raise LabelStudioError(f"Label Studio ended. {self._tail()}")
            if time.monotonic() > deadline:
                raise LabelStudioError(
                    f"Label Studio did not answer in {START_SECONDS:.0f} s. {self._tail()}"
                )
            time.sleep(0.5)

    @property
    def log(self) -> Path:
        """What the server prints."""
        return self.folder / "server.log"

    def _tail(self) -> str:
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return f"Its log ({self.log}) ends:\n{text[-600:]}"

    def stop(self, *, hard: bool = False) -> None:
        """End the server and its children; `hard` is kill -9. Its port is free afterwards."""
        self.stopped = True
        if self.process is not None:
            end_group(self.process, hard=hard)
        self.process = None

    def wait(self) -> None:
        """Until the server is stopped.

        Raises:
            LabelStudioError: it ended by itself; the message holds the end of its log.
        """
        if self.process is None:
            return
        code = self.process.wait()
        if not self.stopped:
            raise LabelStudioError(f"Label Studio ended by itself ({code}). {self._tail()}")

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
