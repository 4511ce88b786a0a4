"""A reward for programs: unit tests, run in sandboxes that the programs cannot leave (Linux).

    python examples/rewards/code_reward.py

In YAML; each row of the data has its tests in a column:

    reward:
      - function: "reward.verify.code:CodeReward"
        kwargs: {tests: tests, partial: true, seconds: 10}
"""

from reward.functions import call_reward
from reward.verify.code import CodeReward

TESTS = ["assert median([3, 1, 2]) == 2", "assert median([4, 1, 3, 2]) == 2.5"]
COMPLETIONS = {
    "right": """Sort, then take the middle:
```python
def median(xs):
    xs, half = sorted(xs), len(xs) // 2
    return xs[half] if len(xs) % 2 else (xs[half - 1] + xs[half]) / 2
```""",
    "half right": "```python\ndef median(xs):\n    return sorted(xs)[len(xs) // 2]\n```",
    "endless": "```python\ndef median(xs):\n    while True: pass\n```",
    "cheating": "```python\nimport os\nos._exit(0)  # before any test can fail\n```",
}


def main() -> dict[str, float]:
    reward = CodeReward(partial=True, seconds=5)
    count = len(COMPLETIONS)
    prompts = ["Write median(xs)."] * count
    scores = call_reward(reward, prompts, list(COMPLETIONS.values()), tests=[TESTS] * count)
    found = dict(zip(COMPLETIONS, scores, strict=True))
    for name, score in found.items():
        print(f"{score:.1f}  {name}")
    return found


if __name__ == "__main__":
    main()
