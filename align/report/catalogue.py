"""What the logged metrics mean: a title, a sentence, where the chart belongs.

Metrics that are not listed are drawn too, under their own name.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """How one metric is shown; `guide` is a value worth a dashed line (chance, no change)."""

    title: str
    about: str = ""
    guide: float | None = None


KNOWN: dict[str, Metric] = {
    "loss": Metric("Loss"),
    "grad_norm": Metric("Gradient norm", "Before clipping."),
    "learning_rate": Metric("Learning rate"),
    "entropy": Metric("Entropy", "Of the next-token distribution, in nats."),
    "mean_token_accuracy": Metric("Token accuracy", "Share of tokens predicted right."),
    "num_tokens": Metric("Tokens seen"),
    "accuracy": Metric("Accuracy", "Share of pairs ranked as the annotators did.", 0.5),
    "margin": Metric("Margin", "Score of chosen minus score of rejected.", 0.0),
    "mean_reward": Metric("Mean score"),
    "min_reward": Metric("Lowest score"),
    "max_reward": Metric("Highest score"),
    "rewards/margins": Metric("Implicit reward margin", "Chosen minus rejected.", 0.0),
    "rewards/accuracies": Metric(
        "Preference accuracy", "Share of pairs where chosen is preferred.", 0.5
    ),
    "rewards/chosen": Metric("Implicit reward, chosen", "", 0.0),
    "rewards/rejected": Metric("Implicit reward, rejected", "", 0.0),
    "logps/chosen": Metric("Log-probability, chosen", "Falling means likelihood is lost."),
    "logps/rejected": Metric("Log-probability, rejected"),
    "logits/chosen": Metric("Mean logit, chosen"),
    "logits/rejected": Metric("Mean logit, rejected"),
    "reward/mean": Metric("Reward", "Mean score of the rollouts."),
    "reward/unscaled": Metric(
        "Reward before scaling", "Weighted sum without normalisation and schedules."
    ),
    "reward/std": Metric("Reward spread", "Standard deviation over rollouts."),
    "reward/zero_std_groups": Metric(
        "Groups without a difference", "Share of groups whose answers score alike: no lesson.", 0.0
    ),
    "reward/kl_shaped": Metric("KL-shaped reward", "Score less the KL penalty: what PPO raises."),
    "reward/disagreement": Metric("Disagreement", "Spread of an ensemble's members."),
    "reward/lower_bound": Metric("Lower bound", "Of an ensemble: mean less spread."),
    "kl/reference": Metric("KL to the reference", "Nats per answer, estimator k1.", 0.0),
    "kl/k1": Metric("KL, estimator k1", "", 0.0),
    "kl/k3": Metric("KL, estimator k3", "Never negative.", 0.0),
    "kl/coef": Metric("KL coefficient"),
    "policy/loss": Metric("Policy loss"),
    "policy/entropy": Metric("Policy entropy", "Falling to 0 means the policy has collapsed."),
    "policy/clip_fraction": Metric("Clip fraction", "Share of tokens whose ratio was clipped."),
    "policy/approx_kl": Metric("KL to the old policy", "", 0.0),
    "policy/ratio_mean": Metric("Mean ratio", "New over old probability.", 1.0),
    "policy/ratio_max": Metric("Largest ratio", "New over old probability.", 1.0),
    "policy/ratio_min": Metric("Smallest ratio", "New over old probability.", 1.0),
    "value/loss": Metric("Value loss"),
    "value/explained_variance": Metric("Explained variance", "1 is a perfect critic.", 0.0),
    "rollout/eos_rate": Metric("Finished answers", "Share that ended by themselves.", 1.0),
    "rollout/length_mean": Metric("Answer length", "Tokens."),
    "rollout/length_max": Metric("Longest answer", "Tokens."),
    "rollout/repetition": Metric("Repetition", "Share of repeated 4-grams in an answer."),
    "rollout/age": Metric("Age of rollouts", "Updates between sampling and training weights.", 0.0),
    "correction/ratio_mean": Metric(
        "Mean correction", "Trainer's over sampler's probability.", 1.0
    ),
    "correction/clipped": Metric("Corrections clipped"),
    "correction/dropped": Metric("Corrections dropped"),
    "rollout/sampler_gap_mean": Metric(
        "Sampler's mean gap", "Nats a token between sampler and policy, on average.", 0.0
    ),
    "rollout/sampler_gap": Metric(
        "Sampler gap", "Log-probability, sampler against trainer; near 0 when they agree.", 0.0
    ),
    "value/mean": Metric("Mean value", "What the critic expects."),
    "speed/tokens_per_second": Metric("Trained tokens per second", "Real ones, without padding."),
    "speed/mfu": Metric("Share of the peak", "Arithmetic of real tokens; a lower bound."),
    "speed/generation_seconds": Metric("Seconds of generation", "Since the last point."),
    "speed/scoring_seconds": Metric("Seconds of scoring", "Rewards, values, log-probabilities."),
    "speed/training_seconds": Metric("Seconds of training", "Since the last point."),
    "speed/real_share": Metric("Real share of a batch", "The rest is padding."),
    "speed/computed_share": Metric("Computed share of a batch", "Of its tokens, padding included."),
    "tokens_per_second": Metric("Tokens per second"),
    "memory_gib": Metric("Peak memory (GiB)"),
    "guard/ewc": Metric("EWC penalty"),
    "guard/mas": Metric("MAS penalty"),
    "guard/si": Metric("SI penalty"),
    "guard/l2sp": Metric("L2-SP penalty"),
    "guard/l1sp": Metric("L1-SP penalty"),
    "guard/replay": Metric("Replay loss", "On earlier rows, times its strength."),
    "guard/distill": Metric("Distance from before", "Divergence of outputs, times its strength."),
    "guard/clear": Metric("Cloning loss", "On earlier rollouts."),
    "guard/agem": Metric("Gradients against the memory", "Their cosine, where it is below 0.", 0.0),
    "guard/isolate": Metric("Frozen share"),
    "guard/unfreeze": Metric("Groups of layers in training"),
    "guard/strength": Metric("Strength", "As the budget moves it."),
    "guard/budget_used": Metric("Budget used", "1 is all of what may be lost.", 1.0),
}

# Shown first and large; everything else follows under its namespace.
MAIN: dict[str, tuple[str, ...]] = {
    "sft": ("loss", "mean_token_accuracy", "grad_norm"),
    "reward": ("loss", "accuracy", "margin"),
    "dpo": (
        "loss",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
        "grad_norm",
    ),
    "kto": (
        "loss",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "kl",
        "grad_norm",
    ),
    "ppo": (
        "reward/mean",
        "reward/kl_shaped",
        "kl/reference",
        "policy/entropy",
        "rollout/length_mean",
        "rollout/eos_rate",
    ),
}
MAIN["online_dpo"] = (
    "reward/mean",
    "kl/reference",
    "rewards/margins",
    "rewards/accuracies",
    "pairs/used",
    "rollout/length_mean",
)
MAIN["grpo"] = MAIN["rloo"] = (
    "reward/mean",
    "reward/zero_std_groups",
    "kl/reference",
    "policy/entropy",
    "rollout/length_mean",
    "rollout/eos_rate",
)
DEFAULT_MAIN = ("loss", "reward", "reward/mean", "kl", "kl/reference", "accuracy")

NAMESPACES: dict[str, str] = {
    "": "Optimisation",
    "reward": "Reward",
    "rewards": "Implicit rewards",
    "logps": "Log-probabilities",
    "logits": "Logits",
    "gold": "Gold reward (held out)",
    "kl": "KL divergence",
    "policy": "Policy",
    "value": "Critic",
    "rollout": "Rollouts",
    "correction": "Correction of the sampler",
    "guard": "Guards",
    "speed": "Speed",
    "memory": "Memory",
    "system": "System",
}

# Of evaluated models: shown first, in this order; the rest follows folded away.
MODEL_METRICS: dict[str, str] = {
    "score_mean": "Mean score",
    "kl_k1_sequence": "KL to the reference (nats per answer)",
    "kl_reference": "KL to the reference",
    "entropy_token": "Entropy (nats per token)",
    "length_mean": "Answer length (tokens)",
    "finished_rate": "Finished answers",
    "distinct_2": "Distinct word pairs",
    "repetition_4": "Repeated 4-word runs",
    "perplexity": "Perplexity",
    "retention_nats": "Loss on what must be kept (nats per token)",
    "forgotten_nats": "Forgotten (nats per token)",
}
SHARES = {"finished_rate", "distinct_1", "distinct_2", "distinct_3", "repetition_4"} | {
    "duplicate_rate",
    "empty_rate",
}


def describe(key: str) -> Metric:
    """A metric's title; unlisted ones go by the last part of their key."""
    if key in KNOWN:
        return KNOWN[key]
    return Metric(key.rsplit("/", 1)[-1].replace("_", " ").strip().capitalize() or key)


def namespace(key: str) -> str:
    """The part before the first slash, empty for the trainer's own metrics."""
    return key.split("/", 1)[0] if "/" in key else ""


def main_metrics(stage: str) -> tuple[str, ...]:
    """The metrics shown first."""
    return MAIN.get(stage, DEFAULT_MAIN)


def model_metric_title(key: str) -> str:
    """How a figure of one evaluated model is called."""
    return MODEL_METRICS.get(key, key.replace("_", " ").replace("/", " ").strip().capitalize())
