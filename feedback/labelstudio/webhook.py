"""A webhook receiver: the server says that something happened, and the poller looks sooner.

Label Studio sends a hook once and never again, and anybody on the network can send one, so a hook
is a hint: it carries a secret, nothing in it is believed but the project's number, and all it does
is nudge. Labels come by `pull`, which finds them with or without hooks.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from feedback.errors import LabelStudioError, MissingDependencyError
from feedback.labelstudio.client import INSTALL, LabelStudioClient

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

HEADER = "X-Align-Secret"
LIMIT = 8 * 1024 * 1024  # bytes; a hook carries the whole task, so two long answers must fit
REMEMBERED = 1024  # hooks, to know a repeated one
START_SECONDS = 10.0
GATHER_SECONDS = 1.0
ACTIONS = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED")


def receiver(secret: str, nudge: Callable[[int], None], *, limit: int = LIMIT) -> FastAPI:
    """An application that answers `POST /` with 204 and calls `nudge(project)`.

    A repeated hook is answered like the first and nudges nobody. Without the secret the answer is
    401, past the limit 413, and 400 where no project can be read from it.

    Args:
        secret: what the header `X-Align-Secret` must hold.
        nudge: called with the project's number; returns at once.
        limit: the greatest body, in bytes.

    Raises:
        MissingDependencyError: fastapi is not installed.
    """
    try:
        from fastapi import FastAPI, Request, Response
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"webhooks: {error.name} is not installed. Fix: {INSTALL}"
        ) from error
    known: dict[bytes, None] = {}

    async def receive(request: Request) -> Response:
        given = request.headers.get(HEADER, "")
        if not hmac.compare_digest(given.encode(), secret.encode()):
            return Response(status_code=401)
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > limit:
                return Response(status_code=413)
        try:
            project = json.loads(body)["project"]["id"]
        except (ValueError, TypeError, KeyError):
            project = None
        if not isinstance(project, int) or isinstance(project, bool):
            return Response(status_code=400)
        mark = hashlib.sha256(body).digest()
        if mark not in known:
            known[mark] = None
            if len(known) > REMEMBERED:
                del known[next(iter(known))]
            nudge(project)
        return Response(status_code=204)

    # Postponed annotations would be looked up in the module, where fastapi is not imported.
    receive.__annotations__ = {"request": Request, "return": Response}
    app = FastAPI(openapi_url=None)
    app.post("/", status_code=204, response_model=None)(receive)
    return app


class WebhookListener:
    """Listens for a server's hooks about some projects, for as long as the context lasts."""

    def __init__(self, client: LabelStudioClient, projects: Iterable[int], address: str):
        """Prepare; nothing listens yet.

        Args:
            client: of the server that is to send hooks.
            projects: their numbers.
            address: URL at which the server reaches this process, with a port, such as
                http://127.0.0.1:9000; a loopback address listens on this machine only.

        Raises:
            LabelStudioError: the address is no URL with a port.
        """
        try:
            parts = urlsplit(address)
            self.host, self.port = parts.hostname, parts.port
        except ValueError:
            self.host = self.port = None
        if not address.startswith("http") or not self.host or not self.port:
            raise LabelStudioError(
                f"webhook address {address!r}: expected a URL with a port. Fix: write "
                "http://127.0.0.1:9000, or the address at which the server reaches this machine."
            )
        self.client, self.projects, self.address = client, list(projects), address.rstrip("/")
        self._nudged, self._hooks = threading.Event(), list[int]()

    def __enter__(self) -> WebhookListener:
        """Listen, then tell the server where.

        Raises:
            LabelStudioError: the port is taken, or the server refuses the address.
        """
        import uvicorn

        secret = secrets.token_hex(20)
        app = receiver(secret, lambda project: self._nudged.set())
        local = self.host in ("localhost", "127.0.0.1", "::1")
        listener = socket.socket()
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1" if local else "", self.port or 0))
        except OSError as error:
            listener.close()
            raise LabelStudioError(
                f"webhook address {self.address}: port {self.port} cannot be used "
                f"({error.strerror}). Fix: choose another."
            ) from error
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        try:
            for project in self.projects:
                self.client.delete_webhooks(project, f"{self.address}/")  # of a run that was killed
                self._hooks.append(
                    self.client.create_webhook(
                        project, f"{self.address}/", headers={HEADER: secret}, actions=ACTIONS
                    )
                )
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def wait(self, seconds: float) -> bool:
        """Until a hook arrives, or so many seconds; whether one did."""
        nudged = self._nudged.wait(seconds)
        if nudged:
            time.sleep(GATHER_SECONDS)  # a busy team sends many; one look finds them all
        self._nudged.clear()
        return nudged

    def _close(self) -> None:
        for hook in self._hooks:
            try:
                self.client.delete_webhook(hook)
            except LabelStudioError:  # gone with its project, or the server is: nothing listens
                continue
        self._server.should_exit = True
        self._thread.join(START_SECONDS)
