"""A reward that a server computes (`align reward serve`): an asynchronous reward function.

Waits when the server is full, tries again when it is out of reach, and gives up in a known time.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx

from feedback.schema import Text
from reward.errors import RewardError, RewardTimeoutError

TOKEN = "ALIGN_REWARD_TOKEN"  # the environment variable, of server and client
AGAIN = (429, 502, 503, 504)  # the server is full, restarting, or was too slow
LONGEST_PAUSE = 30.0


class RemoteReward:
    """A `RewardFn` over HTTP."""

    def __init__(
        self,
        url: str,
        *,
        reward: str | None = None,
        columns: Sequence[str] = (),
        timeout: float = 60.0,
        retries: int = 4,
        batch_size: int = 64,
        concurrency: int = 8,
        token_env: str = TOKEN,
        name: str | None = None,
    ):
        """Set up; the server is asked when the first completions are scored.

        Args:
            url: of the server, such as http://127.0.0.1:8500.
            reward: which of the server's rewards; may be left out where it has one.
            columns: dataset columns that it needs; no others are sent.
            timeout: seconds of one attempt.
            retries: further attempts; a server that is full, or waits for a call that overran
                its time-out, is waited for until timeout * (retries + 1) have passed.
            batch_size: completions per request.
            concurrency: requests at a time.
            token_env: environment variable with the server's token, if it wants one.
            name: in metrics and errors; default: the reward's, or "remote".

        Raises:
            RewardError: the URL is none.
        """
        if not url.startswith(("http://", "https://")):
            raise RewardError(f"reward server {url!r}: expected a URL such as http://host:8500.")
        self.url, self.reward, self.columns = url.rstrip("/"), reward, list(columns)
        self.timeout, self.retries = timeout, retries
        self.batch_size, self.concurrency, self.token_env = batch_size, concurrency, token_env
        self.__name__ = name or reward or "remote"

    async def __call__(
        self,
        prompts: list[Text],
        completions: list[Text],
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One float (or None) per completion.

        Raises:
            RewardError: the server refused, failed, or stayed out of reach.
        """
        missing = [name for name in self.columns if name not in columns]
        if missing:
            raise RewardError(f"{self._who()} needs the column {missing[0]!r}, which is not there.")
        parts = [slice(a, a + self.batch_size) for a in range(0, len(completions), self.batch_size)]
        deadline = time.monotonic() + self.timeout * (self.retries + 1)
        gate = asyncio.Semaphore(self.concurrency)
        token = os.environ.get(self.token_env)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with httpx.AsyncClient(headers=headers, timeout=self.timeout) as client:

            async def one(part: slice) -> dict[str, Any]:
                body = {
                    "prompts": prompts[part],
                    "completions": completions[part],
                    "columns": {name: columns[name][part] for name in self.columns},
                    "reward": self.reward,
                }
                async with gate:
                    return await self._ask(client, body, deadline)

            answers = await asyncio.gather(*(one(part) for part in parts))
        if log_metric is not None:
            for answer in answers:
                for key, value in answer.get("metrics", {}).items():
                    log_metric(key, value)
        return [reward for answer in answers for reward in answer["rewards"]]

    async def _ask(
        self, client: httpx.AsyncClient, body: dict[str, Any], deadline: float
    ) -> dict[str, Any]:
        """One request, again where that may help."""
        failures, problem = 0, "no answer"
        while True:
            pause = min(LONGEST_PAUSE, 0.25 * 2**failures)
            try:
                # httpx limits each read; this limits them all.
                sent = client.post(f"{self.url}/score", json=body)
                answer = await asyncio.wait_for(sent, self.timeout)
            except (TimeoutError, httpx.TimeoutException):
                failures, problem = failures + 1, f"no answer within {self.timeout:g} s"
            except httpx.TransportError as error:
                failures, problem = failures + 1, f"{type(error).__name__}: {error}"
            else:
                if answer.status_code == 200:
                    return self._read(answer, len(body["completions"]))
                problem = f"{answer.status_code}: {message_of(answer)}"
                if answer.status_code not in AGAIN:
                    raise RewardError(f"{self._who()} answered {problem}")
                asked = answer.status_code == 429 or "retry-after" in answer.headers
                pause = retry_after(answer) if asked else pause
                # To be asked to wait is no fault; it is done while the time lasts.
                late = time.monotonic() + pause > deadline
                failures += self.retries + 1 if asked and late else not asked
            if failures > self.retries:
                raise RewardTimeoutError(
                    f"{self._who()} gave no rewards in {self.retries + 1} attempts; the last: "
                    f"{problem} Fix: see that it runs ({self.url}/health), or raise `timeout`."
                )
            await asyncio.sleep(pause)

    def _read(self, answer: httpx.Response, rows: int) -> dict[str, Any]:
        try:
            found: dict[str, Any] = answer.json()
            if len(found["rewards"]) != rows:
                raise ValueError(f"{len(found['rewards'])} rewards for {rows} completions")
        except (ValueError, KeyError, TypeError) as error:
            raise RewardError(
                f"{self._who()} answered what is no list of rewards: {error}. Fix: check that the "
                "URL is of `align reward serve`."
            ) from error
        return found

    def _who(self) -> str:
        return f"reward server {self.url}" + (f" ({self.reward})" if self.reward else "")


def retry_after(answer: httpx.Response) -> float:
    """Seconds that a full server asks for; 1 where it says nothing that can be read."""
    try:
        return min(LONGEST_PAUSE, max(0.05, float(answer.headers["retry-after"])))
    except (KeyError, ValueError):
        return 1.0


def message_of(answer: httpx.Response, most: int = 500) -> str:
    """The cause that an error answer gives."""
    try:
        error = answer.json()["error"]
        text = error["message"] if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError):
        text = answer.text
    return text[:most]
