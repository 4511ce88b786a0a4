"""Talks HTTP to a vLLM server: token ids out, token ids and log-probabilities back.

Every call has one deadline for all of its requests, and every failure becomes a `SamplerError` with
the server's own words. Nothing is repeated: a repeated request would hide a server that is ill.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from align.errors import SamplerError

Result = TypeVar("Result")
Json = dict[str, Any]  # a JSON object, whose shape vLLM decides


@dataclass
class VLLMClient:
    """A server's HTTP interface.

    Args:
        url: where the server listens.
        timeout: seconds for one call, however many requests it makes.
        concurrency: requests in flight at once.
    """

    url: str
    timeout: float = 600.0
    concurrency: int = 64

    def get(self, path: str, *, timeout: float | None = None) -> Json:
        """The answer to one GET."""
        return run(self._all([("GET", path, None)], timeout))[0]

    def post(self, path: str, body: Json | None = None) -> Json:
        """The answer to one POST."""
        return run(self._all([("POST", path, body)]))[0]

    def post_all(self, path: str, bodies: Sequence[Json]) -> list[Json]:
        """The answers to many POSTs, in the order of their bodies.

        Raises:
            SamplerError: one of them failed; the others are given up.
        """
        return run(self._all([("POST", path, body) for body in bodies]))

    def models(self) -> list[Json]:
        """What the server serves: its model first, then adapters; each has `id`."""
        return list(self.get("/v1/models")["data"])

    def healthy(self, timeout: float = 3.0) -> bool:
        """Whether the server answers."""
        try:
            self.get("/health", timeout=timeout)
        except SamplerError:
            return False
        return True

    async def _all(
        self, requests: Sequence[tuple[str, str, Json | None]], timeout: float | None = None
    ) -> list[Json]:
        seconds = self.timeout if timeout is None else timeout
        gate = asyncio.Semaphore(self.concurrency)
        try:
            async with (
                asyncio.timeout(seconds),
                httpx.AsyncClient(
                    base_url=self.url,
                    timeout=None,  # the deadline above is the only one
                    limits=httpx.Limits(max_connections=self.concurrency),
                    headers=self._headers(),
                    trust_env=not is_local(self.url),  # no proxy for this machine
                    verify=self.url.startswith("https"),  # reading certificates takes time
                ) as client,
                asyncio.TaskGroup() as group,
            ):
                tasks = [group.create_task(self._one(client, gate, *one)) for one in requests]
        except TimeoutError as error:
            raise SamplerError(
                f"the vLLM server at {self.url} did not answer {requests[0][1]} within "
                f"{seconds:g} s. Fix: look at its log; restart it if it hangs; raise "
                "rollout.vllm.timeout if it is only slow."
            ) from error
        except BaseExceptionGroup as failures:
            raise first(failures) from None
        return [task.result() for task in tasks]

    async def _one(
        self,
        client: httpx.AsyncClient,
        gate: asyncio.Semaphore,
        method: str,
        path: str,
        body: Json | None,
    ) -> Json:
        try:
            async with gate:
                answer = await client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise SamplerError(
                f"the vLLM server at {self.url} cannot be reached or broke off at {path}: "
                f"{str(error) or type(error).__name__}. Fix: see whether it still runs."
            ) from error
        if answer.status_code >= 400:
            raise SamplerError(
                f"the vLLM server at {self.url} refused {path} ({answer.status_code}): "
                f"{said(answer)}"
            )
        if "json" not in answer.headers.get("content-type", ""):
            return {"text": answer.text}  # adapters are answered so
        found: Json = answer.json()
        return found

    @staticmethod
    def _headers() -> dict[str, str]:
        # The variable that `vllm serve` reads its own key from.
        key = os.environ.get("VLLM_API_KEY")
        return {"Authorization": f"Bearer {key}"} if key else {}


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """The result of a coroutine, inside a running event loop (a notebook's) too."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first single failure of a group."""
    found: BaseException = failures
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


def said(answer: httpx.Response) -> str:
    """The server's own message, without the JSON around it."""
    try:
        body = answer.json()
    except ValueError:
        return answer.text[:600] or "no message"
    if isinstance(body, dict):
        inner = body.get("error", body)
        text = inner.get("message") or inner.get("detail") if isinstance(inner, dict) else inner
        return str(text or body)[:600]
    return str(body)[:600]


def is_local(url: str) -> bool:
    """Whether a URL names this machine."""
    return urlsplit(url).hostname in {"localhost", "127.0.0.1", "::1"}
