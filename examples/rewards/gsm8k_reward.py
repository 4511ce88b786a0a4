"""A verifiable reward for GSM8K: the right final answer, and a little for the right form.

    python examples/rewards/gsm8k_reward.py SOLUTIONS.jsonl.gz

SOLUTIONS holds rows with `question`, `ground_truth` and models' solutions that people marked
(github.com/openai/grade-school-math, example_model_solutions.jsonl). Prints how often the reward
agrees with them. To train on it, see gsm8k_ppo.yaml beside this file.
"""

import gzip
import json
import sys

from reward.functions import call_reward
from reward.verify.formats import RegexReward
from reward.verify.math_answer import MathReward

correct = MathReward(name="correct")  # the answer: boxed, after ####, or else the last number
ends_well = RegexReward(r".*\n(####|A:)\s*-?[\d,./]+\s*", name="ends_well")


def main(path: str, most: int = 200) -> float:
    agreed = total = 0
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for _, line in zip(range(most), file, strict=False)]
    for row in rows:
        marked = [v for k, v in row.items() if isinstance(v, dict) and "is_correct" in v]
        texts = [solution["solution"] for solution in marked]
        prompts, truth = [row["question"]] * len(texts), row["ground_truth"].split("A:")[-1]
        rewards = call_reward(correct, prompts, texts, answer=[truth] * len(texts))
        form = call_reward(ends_well, prompts, texts)
        agreed += sum(r == v["is_correct"] for r, v in zip(rewards, marked, strict=True))
        total += len(texts)
        if row is rows[0]:
            print(f"first question: correct {rewards}, form {form}")
    print(f"agrees with people on {agreed} of {total} solutions")
    return agreed / total


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
