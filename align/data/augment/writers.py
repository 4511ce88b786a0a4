"""Models that write: behind an OpenAI-compatible URL, or in a directory. One reply per question.

A reply depends on its own question and seed alone, never on its neighbours in a batch, as far as
that is ours to say: a server may batch as it likes, and need not honour `seed`.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Sequence
from typing import Any

from align.errors import DataError, RewardError
from feedback.schema import Messages
from reward.call import in_loop
from reward.chat import Chat

Writer = Callable[[Sequence[Messages], Sequence[int]], list[str]]  # questions and their seeds
SEEDS = 2**31  # servers take seeds below this


def url_writer(
    url: str,
    model: str,
    *,
    api_key_env: str | None = None,
    temperature: float = 0.7,
    max_tokens: int = 512,
    timeout: float = 60.0,
    retries: int = 3,
    concurrency: int = 16,
) -> Writer:
    """A writer behind a URL, through the client that judges are asked with.

    Args:
        url: up to and including /v1.
        model: its name there.
        api_key_env: environment variable that holds the key.
        temperature: of the replies.
        max_tokens: of a reply.
        timeout: seconds of one attempt.
        retries: further attempts after a fault that may pass.
        concurrency: questions at a time.

    Raises:
        DataError: the URL is none or the key is not set; later, the server refuses or fails.
    """
    sampling: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens}

    def make() -> Chat:
        return Chat(
            url, model, api_key_env=api_key_env, timeout=timeout, retries=retries, **sampling
        )

    try:
        make()  # finds a wrong URL and a missing key now
    except RewardError as error:
        raise _renamed(error) from error

    async def ask(questions: Sequence[Messages], seeds: Sequence[int]) -> list[str]:
        gate = asyncio.Semaphore(concurrency)
        async with make() as chat:

            async def one(messages: Messages, seed: int) -> str:
                own = copy.copy(chat)  # the same connections, another seed
                own.sampling = {**chat.sampling, "seed": seed % SEEDS}
                async with gate:
                    return await own.ask(messages)

            return list(await asyncio.gather(*map(one, questions, seeds)))

    def write(questions: Sequence[Messages], seeds: Sequence[int]) -> list[str]:
        waves = -(-len(questions) // concurrency)
        limit = waves * (retries + 1) * (timeout + 30.0) + 30.0  # 30 s is the longest pause
        try:
            return list(in_loop(lambda: ask(questions, seeds), limit))
        except RewardError as error:
            raise _renamed(error) from error
        except TimeoutError as error:
            raise DataError(
                f"writer {model!r} at {url} did not finish {len(questions)} texts within "
                f"{limit:g} s. Fix: raise `timeout` or `concurrency`."
            ) from error

    return write


def model_writer(
    path: str, *, temperature: float = 0.7, max_tokens: int = 512, dtype: str = "auto"
) -> Writer:
    """A writer in a directory (or on the hub), loaded when it is first asked.

    Texts are written one after the other, so that none depends on what shares its batch; for many,
    put the model behind a URL. A tokenizer without a chat template gets the turns as plain text.

    Raises:
        ModelError: when first asked: it cannot be loaded, or a question does not fit its context.
    """
    loaded: list[Any] = []

    def write(questions: Sequence[Messages], seeds: Sequence[int]) -> list[str]:
        from align.engine.models import load_policy
        from align.generate import Decoding, generate

        if not loaded:
            policy, _, tokenizer = load_policy(path, dtype=dtype, with_reference=False)
            loaded.extend([policy, tokenizer])
        policy, tokenizer = loaded
        replies = []
        for messages, seed in zip(questions, seeds, strict=True):
            plain = "\n\n".join(turn["content"] for turn in messages) + "\n"
            prompt = messages if tokenizer.chat_template else plain
            decoding = Decoding(
                max_new_tokens=max_tokens,
                temperature=temperature,
                seed=seed % SEEDS,
                batch_size=1,
            )
            ((reply,),) = generate(policy, tokenizer, [prompt], decoding)
            replies.append(reply.completion)
        return replies

    return write


def _renamed(error: RewardError) -> DataError:
    """The client is the judges'; here it asks a writer."""
    return DataError(str(error).replace("judge", "writer", 1))
