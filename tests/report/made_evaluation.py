"""evaluation.json as `align evaluate` writes it, its figures computed by `align.evaluate`."""

from __future__ import annotations

import copy
import random
from functools import cache
from typing import Any

import numpy as np

from align.evaluate.evaluate import Evaluation
from align.evaluate.reward_model import RewardModelReport, evaluate_reward_model
from align.evaluate.text import text_metrics
from align.evaluate.winrate import win_rate_from_scores

JUDGES = ("gold", "reward_model")
QUESTIONS = [
    ("reset my router", "hold the reset button for ten seconds and wait for the green light"),
    ("change my delivery address", "open Orders, choose the parcel and press Change address"),
    ("cancel my subscription", "go to Account, then Billing, and press Cancel; it ends this month"),
    ("get an invoice for my company", "open Orders, choose the order and press Invoice with VAT"),
    ("return a broken kettle", "print the label from Returns and hand the parcel in at any shop"),
    ("find out why my card was declined", "ask your bank; we see only that it said no"),
]


def make_evaluation(models: dict[str, str], seed: int, prompts: int) -> dict[str, Any]:
    """evaluation.json for models that lie at these paths."""
    found = copy.deepcopy(evaluated(tuple(models), seed, prompts))
    for name, path in models.items():
        found["models"][name]["path"] = path
    return found


@cache
def evaluated(models: tuple[str, ...], seed: int, prompts: int) -> dict[str, Any]:
    """evaluation.json, its win rates and reward-model figures computed by `align.evaluate`."""
    draw = np.random.default_rng(seed)
    ability = {"sft": 0.0, "dpo": 0.62, "ppo": 0.78}
    rates = []
    for judge in JUDGES:
        scores = {name: draw.normal(mean, 0.7, (prompts, 1)) for name, mean in ability.items()}
        rates += [
            win_rate_from_scores(scores[name], scores["sft"], a=name, b="sft", judge=judge)
            for name in ("dpo", "ppo")
        ]
    rng = random.Random(seed)
    found = Evaluation(
        baseline="sft",
        models={
            name: {"path": None, **_model_figures(index, rng)} for index, name in enumerate(models)
        },
        win_rates=rates,
        reward_model=make_reward_report(rng),
        samples=[make_sample(index, rng) for index in range(24)],
        prompts=prompts,
        samples_per_prompt=1,
        seed=seed,
        level=0.95,
        warnings=[] if prompts >= 100 else [f"ppo against sft: {prompts} prompts settle little."],
    )
    return found.as_dict()


def _model_figures(index: int, rng: random.Random) -> dict[str, float]:
    tokens = [30 + 3 * index + rng.randint(-9, 9) for _ in range(60)]
    words = ["please", "hold", "the", "button", "open", "orders", "and", "press", "help", "wait"]
    texts = [" ".join(rng.choices(words[: 9 - 2 * index], k=12)) for _ in tokens]
    kl = 0.0 if index == 0 else 2.2 * index + rng.random()
    return text_metrics(texts, tokens, [rng.random() < 0.98 for _ in tokens]) | {
        "entropy_token": 1.4 - 0.3 * index + rng.gauss(0, 0.01),
        "sampler_gap": 1e-6,
        "kl_k1_token": kl / 30,
        "kl_k3_token": kl / 29,
        "kl_k1_sequence": kl,
        "kl_k3_sequence": kl * 1.04,
        "kl_low": kl - 0.2 if kl else 0.0,
        "kl_high": kl + 0.2,
        "score_mean": 0.2 + 0.6 * index,
        "score_low": 0.1 + 0.6 * index,
        "score_high": 0.3 + 0.6 * index,
    }


def make_reward_report(rng: random.Random) -> RewardModelReport:
    """A reward model that is right about four times in five."""
    pairs = []
    for index in range(350):
        gain = rng.gauss(1.1, 1.3)
        sizes = (rng.randint(3, 13), rng.randint(3, 12))
        chosen, rejected = (" ".join(["word"] * size) for size in sizes)
        row = {"prompt": f"prompt {index}", "chosen": chosen, "rejected": rejected}
        pairs.append(row | {"gain": gain})
    calls = iter(range(10_000))

    def score(prompts: list[str], completions: list[str], gain: list[float]) -> list[float]:
        # Asked for the chosen answers first, then for the rejected ones.
        return list(gain) if next(calls) % 2 == 0 else [0.0 for _ in completions]

    return evaluate_reward_model(pairs, score)


def make_sample(index: int, rng: random.Random) -> dict[str, Any]:
    """One prompt with everybody's answer; every other prompt is a conversation."""
    wish, answer = QUESTIONS[index % len(QUESTIONS)]
    question = f"How do I {wish}? (case {index + 1})"
    talk = [
        {"role": "system", "content": "You answer for a help desk. Be brief and polite."},
        {"role": "user", "content": "Hello, I need some help."},
        {"role": "assistant", "content": "Of course. What is it about?"},
        {"role": "user", "content": question},
    ]
    scores = {"base": -1.6, "sft": 0.2, "dpo": 0.9, "ppo": 1.1}
    return {
        "prompt": talk if index % 2 else question,
        "completions": {
            "base": "router router the the please the green green",
            "sft": f"You can {answer.split(',')[0]}.",
            "dpo": f"Happy to help! Please {answer}. Is there anything else?",
            "ppo": f"Thank you for writing. Please {answer}. Tell us if it does not work.",
        },
        "scores": {name: value + rng.gauss(0, 0.4) for name, value in scores.items()},
    }
