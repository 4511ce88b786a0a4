"""A model behind an OpenAI-compatible URL: one conversation in, one reply out, within bounds.

The API key comes from an environment variable and appears in no message, error or log.
"""

from __future__ import annotations

import asyncio
import os
from types import TracebackType
from typing import Any

import httpx

from feedback.schema import Text
from reward.errors import RewardError, RewardTimeoutError
from reward.remote import message_of, retry_after

Messages = list[dict[str, str]]
AGAIN = (408, 409, 429, 500, 502, 503, 504)


class Chat:
    """Asks a model; used as an asynchronous context, in which connections are kept."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key_env: str | None = None,
        timeout: float = 60.0,
        retries: int = 3,
        **sampling: Any,
    ):
        """Set up; nothing is sent.

        Args:
            url: up to and including /v1, such as http://127.0.0.1:8000/v1.
            model: its name there.
            api_key_env: environment variable that holds the key; None: no key is sent.
            timeout: seconds of one attempt.
            retries: further attempts after a fault that may pass.
            **sampling: what else the request holds, such as temperature and max_tokens.

        Raises:
            RewardError: the URL is none, or the variable is not set.
        """
        if not url.startswith(("http://", "https://")):
            raise RewardError(f"judge {url!r}: expected a URL such as http://host:8000/v1.")
        if api_key_env is not None and not os.environ.get(api_key_env):
            raise RewardError(
                f"judge {url}: the environment variable {api_key_env} is not set. Fix: export it; "
                "keys are read from nowhere else."
            )
        self.url, self.model, self.api_key_env = url.rstrip("/"), model, api_key_env
        self.timeout, self.retries, self.sampling = timeout, retries, sampling
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Chat:
        key = os.environ.get(self.api_key_env) if self.api_key_env else None
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.AsyncClient(headers=headers, timeout=self.timeout)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._client is not None
        await self._client.aclose()

    async def ask(self, messages: Messages) -> str:
        """The model's reply.

        Raises:
            RewardError: the server refuses, or gives no reply in all attempts.
        """
        assert self._client is not None, "Chat is an asynchronous context"
        body = {"model": self.model, "messages": messages, **self.sampling}
        problem, pause = "", 0.0
        for attempt in range(self.retries + 1):
            await asyncio.sleep(pause)
            pause = min(30.0, 0.5 * 2**attempt)
            try:
                sent = self._client.post(f"{self.url}/chat/completions", json=body)
                answer = await asyncio.wait_for(sent, self.timeout)
            except (TimeoutError, httpx.TimeoutException):
                problem = f"no reply within {self.timeout:g} s."
                continue
            except httpx.TransportError as error:
                problem = self._clean(f"{type(error).__name__}: {error}")
                continue
            if answer.status_code == 200:
                return self._reply(answer)
            problem = self._clean(f"{answer.status_code}: {message_of(answer)}")
            if answer.status_code not in AGAIN:
                raise RewardError(f"judge {self.model!r} at {self.url} refused: {problem}")
            if "retry-after" in answer.headers:
                pause = retry_after(answer)
        raise RewardTimeoutError(
            f"judge {self.model!r} at {self.url} gave no reply in {self.retries + 1} attempts; the "
            f"last: {problem} Fix: see that the server runs, or raise timeout or retries."
        )

    def _reply(self, answer: httpx.Response) -> str:
        try:
            return str(answer.json()["choices"][0]["message"]["content"] or "")
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise RewardError(
                f"judge {self.model!r} at {self.url}: the answer is no chat completion "
                f"({type(error).__name__}: {error}). Fix: give the URL up to /v1."
            ) from error

    def _clean(self, text: str) -> str:
        """A server's words without our key, which some servers repeat."""
        key = os.environ.get(self.api_key_env) if self.api_key_env else None
        return text.replace(key, "***") if key else text


def last_line(reply: str) -> str:
    """A reply's last line that is not blank, in lower case and without emphasis."""
    lines = [line for line in reply.splitlines() if line.strip()]
    return lines[-1].replace("*", "").replace("`", "").strip().lower() if lines else ""


def conversation(prompt: Text) -> str:
    """A prompt as the judge reads it."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{turn.get('role')}: {turn.get('content') or ''}" for turn in prompt)
