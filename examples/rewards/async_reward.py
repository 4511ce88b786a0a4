"""An asynchronous reward: many slow look-ups at once, beside whatever other rewards there are.

    python examples/rewards/async_reward.py

In YAML, with a time-out and two more attempts:

    reward:
      - function: "async_reward:spelled_right"
        kwargs: {words: [cat, sat, mat]}
        timeout: 30
        retries: 2
"""

import asyncio


async def look_up(word, words, gate):
    """Stands for a slow service, such as a database or a web request; eight at a time."""
    async with gate:
        await asyncio.sleep(0.05)
        return word.strip(".,!?").lower() in words


async def spelled_right(prompts, completions, words=("the", "cat", "sat"), **columns):
    """The share of a completion's words that are known; None (does not apply) without any."""
    gate, known = asyncio.Semaphore(8), {word.lower() for word in words}
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    checks = [asyncio.gather(*(look_up(w, known, gate) for w in text.split())) for text in texts]
    answers = await asyncio.gather(*checks)
    return [sum(found) / len(found) if found else None for found in answers]


def main():
    from reward.call import RewardCall, call_together

    completions = ["The cat sat.", "Teh cta sat!", ""]
    arguments = {"prompts": ["Go on:"] * 3, "completions": completions}
    (outcome,) = call_together([RewardCall("spelling", spelled_right, arguments, timeout=10)])
    for completion, reward in zip(completions, outcome.values, strict=True):
        print(f"{reward!s:>5.5}  {completion!r}")
    return outcome.values


if __name__ == "__main__":
    main()
