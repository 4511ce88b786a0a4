"""A language model as judge, over any OpenAI-compatible URL (vLLM, llama.cpp, a provider).

    vllm serve MODEL                                   # or any other such server
    python examples/rewards/judge_reward.py http://127.0.0.1:8000/v1 MODEL [API_KEY_ENV]

In YAML; completions of one prompt are compared with each other, in both orders:

    reward:
      - function: "reward.judge:PairwiseJudge"
        kwargs: {url: "http://127.0.0.1:8000/v1", model: MODEL, api_key_env: JUDGE_KEY}
        timeout: 300
"""

import sys

from reward.functions import call_reward
from reward.judge import PairwiseJudge, ScoringJudge

QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]
ANSWERS = [
    "Air scatters blue light, which has short waves, more than red light.",
    "Because it is.",
]


def main(url: str, model: str, api_key_env: str | None = None) -> dict[str, list[float]]:
    prompts, noted = [QUESTION] * len(ANSWERS), dict[str, float]()
    judges = {
        "score": ScoringJudge(url, model, api_key_env=api_key_env),
        "pairwise": PairwiseJudge(url, model, api_key_env=api_key_env),
    }
    found = {
        kind: call_reward(judge, prompts, ANSWERS, log_metric=noted.__setitem__)
        for kind, judge in judges.items()
    }
    for kind, rewards in found.items():
        print(f"{kind}: {rewards}")
    print(noted)  # verdicts that could not be read, and minds changed with the order
    return found


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
