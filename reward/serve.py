"""A server for rewards: `align reward serve`. FastAPI before a batcher for each reward.

`POST /score` scores, `GET /health` tells. Every error is JSON `{"error": {"type", "message"}}`.
A client that hangs up takes its request with it.
Leaves out TLS and limits on bodies: put a proxy before it where clients are not trusted.
"""

import asyncio
import hmac
import socket
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from feedback.schema import Text
from reward.batching import Batcher, Overdue, Overloaded
from reward.errors import MissingDependencyError, RewardError, RewardTimeoutError

try:
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.requests import ClientDisconnect
except ModuleNotFoundError as error:
    raise MissingDependencyError(
        f"the reward server needs {error.name}, which is not installed. Fix: "
        "pip install 'align-rlhf[rewards]'"
    ) from error

T = TypeVar("T")


class ScoreRequest(BaseModel):
    """What `POST /score` takes."""

    model_config = ConfigDict(extra="forbid")

    prompts: list[Text]
    completions: list[Text]
    columns: dict[str, list[Any]] = Field(default_factory=dict)
    reward: str | None = None  # which one; may be left out where there is one

    @model_validator(mode="after")
    def _even(self) -> "ScoreRequest":
        rows = len(self.completions)
        lengths = {"prompts": len(self.prompts)} | {k: len(v) for k, v in self.columns.items()}
        for name, length in lengths.items():
            if length != rows:
                raise ValueError(f"{rows} completions came with {length} {name}")
        taken = sorted({"prompts", "completions", "log_metric"} & self.columns.keys())
        if taken:
            raise ValueError(f"no column may be named {taken[0]!r}")
        return self


class ScoreResponse(BaseModel):
    """What it answers; null where a reward does not apply."""

    rewards: list[float | None]
    metrics: dict[str, float] = Field(default_factory=dict)


def create_app(batchers: Mapping[str, Batcher], token: str | None = None) -> FastAPI:
    """The application.

    Args:
        batchers: the rewards, by name.
        token: what `Authorization: Bearer` must hold; None: anybody may ask.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(batcher.run()) for batcher in batchers.values()]
        yield
        for task in tasks:
            task.cancel()

    app = FastAPI(title="Align rewards", lifespan=lifespan, docs_url=None, redoc_url=None)

    @app.middleware("http")
    async def check_token(request: Request, go_on: Any) -> Any:
        given = request.headers.get("authorization", "").encode()
        known = hmac.compare_digest(given, f"Bearer {token}".encode())
        if token is None or known or request.url.path == "/health":
            return await go_on(request)
        return failure(401, "Unauthorized", "the token is missing or wrong.")

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = [
            f"{'.'.join(str(part) for part in item['loc'][1:]) or 'body'}: {item['msg']}"
            for item in error.errors()[:5]
        ]
        return failure(422, "ValidationError", "; ".join(problems))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return failure(500, type(error).__name__, str(error))

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "rewards": {name: state(b) for name, b in batchers.items()}}

    @app.post("/score", response_model=ScoreResponse)
    async def score(body: ScoreRequest, request: Request) -> Any:
        name = body.reward or (next(iter(batchers)) if len(batchers) == 1 else "")
        if name not in batchers:
            what = f"no reward {name!r}" if name else "say which `reward`"
            return failure(404, "UnknownReward", f"{what}; there are {', '.join(batchers)}.")
        batcher = batchers[name]
        if len(body.completions) > batcher.max_queue:
            what = f"{len(body.completions)} completions at once; at most {batcher.max_queue}."
            return failure(413, "TooLarge", what)
        work = batcher.score(body.prompts, body.completions, body.columns)
        try:
            rewards, metrics = await while_there(request, work)
        except ClientDisconnect:
            return failure(499, "ClientDisconnect", "the client has left.")  # for the logs
        except (Overloaded, Overdue) as error:
            status = 429 if isinstance(error, Overloaded) else 503
            headers = {"Retry-After": f"{error.retry_after:.0f}"}
            return failure(status, type(error).__name__, str(error), headers)
        except RewardTimeoutError as error:
            return failure(504, "RewardTimeoutError", str(error))
        except RewardError as error:
            return failure(500, "RewardError", str(error))
        return ScoreResponse(rewards=rewards, metrics=metrics)

    return app


async def while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` comes to; it is cancelled when the client hangs up.

    No server cancels a handler when it loses the connection, so this listens for the loss.

    Raises:
        ClientDisconnect: the client has hung up.
    """

    async def lost() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, listening = asyncio.create_task(work), asyncio.create_task(lost())
    try:
        await asyncio.wait((working, listening), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            listening.result()  # a fault of its own is not taken for a loss
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        listening.cancel()


def state(batcher: Batcher) -> dict[str, float]:
    """What /health says of a reward."""
    since = batcher.overdue_since
    return {
        "queued": batcher.queued,
        "max_queue": batcher.max_queue,
        "batches": batcher.batches,
        "scored": batcher.scored,
        "dropped": batcher.dropped,
        "overdue": 0.0 if since is None else time.monotonic() - since,
        "seconds_each": batcher.seconds_each,
    }


def failure(
    status: int, kind: str, message: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error as JSON."""
    content = {"error": {"type": kind, "message": message}}
    return JSONResponse(content, status_code=status, headers=dict(headers or {}))


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Serve until interrupted."""
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)
    uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A socket that waits for clients.

    Args:
        host: a name or address; 0.0.0.0 for all.
        port: 0 for any that is free.

    Raises:
        RewardError: the address cannot be used.
    """
    try:
        return socket.create_server((host, port), family=family(host))
    except (OSError, OverflowError) as error:  # the latter: no such port
        cause = getattr(error, "strerror", None) or error
        raise RewardError(
            f"cannot listen on {host}:{port} ({cause}). Fix: choose another port."
        ) from error


def family(host: str) -> socket.AddressFamily:
    """IPv6 for an address with colons."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET
