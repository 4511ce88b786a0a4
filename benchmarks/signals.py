"""How often alarms are false, and how often they are found, on made-up histories.

    python -m benchmarks.signals --json signals.json

Each history is one PPO run of 300 updates: pure noise around constants; a healthy run, in which
everything moves as it should; and healthy runs with one thing planted that an alarm is for, from
the middle on. The noise is correlated from update to update by 0, 0.5 or 0.8 (lag 1): prompts are
drawn anew, so that real runs are near 0, but a slowly wandering policy is not.

Leaves out whether the alarms mean anything in real training: `benchmarks.overoptimisation`.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from align.evaluate.significance import wilson_interval
from align.signals import Limits, Watch

UPDATES = 300
CORRELATIONS = (0.0, 0.5, 0.8)
History = dict[str, np.ndarray]


def noise(generator: np.random.Generator, count: int, correlation: float) -> np.ndarray:
    """(count,) noise of variance 1 whose neighbours are correlated: AR(1)."""
    fresh = generator.normal(size=count)
    found = np.empty(count)
    found[0] = fresh[0]
    for at in range(1, count):
        found[at] = correlation * found[at - 1] + (1 - correlation**2) ** 0.5 * fresh[at]
    return found


def steady(seed: int, count: int = UPDATES, correlation: float = 0.0) -> History:
    """Nothing happens: every metric is noise around a constant."""
    generator = np.random.default_rng([seed, 0])

    def around(level: float, spread: float) -> np.ndarray:
        return level + spread * noise(generator, count, correlation)

    return {
        "reward/mean": around(0, 0.1),
        "reward/std": around(1, 0.05),
        "reward/disagreement": around(0.3, 0.03),
        "gold/quality": around(0, 0.1),
        "kl/reference": around(6, 0.5),
        "policy/entropy": around(1.5, 0.05),
        "value/explained_variance": around(0.5, 0.1),
        "rollout/eos_rate": around(0.9, 0.02),
        "rollout/length_mean": around(40, 2),
        "rollout/repetition": around(0.05, 0.01),
        "rollout/age": np.zeros(count),
        "correction/clipped": around(0.02, 0.01),
        "correction/ratio_mean": around(1, 0.01),
    }


def healthy(seed: int, count: int = UPDATES, correlation: float = 0.0) -> History:
    """A run that learns: rewards rise and level off, KL grows, entropy and length move a little."""
    history = steady(seed, count, correlation)
    done = np.arange(count) / count
    learnt = 1 - np.exp(-4 * done)
    history["reward/mean"] += 1.75 * learnt
    history["reward/std"] -= 0.3 * done
    history["reward/disagreement"] += 0.08 * learnt
    history["gold/quality"] += learnt
    history["kl/reference"] = 8 * done**1.4 + 0.15 * np.abs(history["kl/reference"] - 6)
    history["policy/entropy"] -= 0.6 * done
    history["value/explained_variance"] += 0.4 * learnt - 0.3
    history["rollout/eos_rate"] += 0.06 * done
    history["rollout/length_mean"] += 8 * done
    history["rollout/repetition"] += 0.02 * done
    return history


def late(count: int) -> np.ndarray:
    """(count,) 0 up to the middle, then rising to 1."""
    return np.clip(2 * np.arange(count) / count - 1, 0, 1)


def _hacked(history: History, since: np.ndarray) -> None:
    history["reward/mean"] += 1.5 * since
    history["gold/quality"] -= 1.5 * since


def _hacked_unseen(history: History, since: np.ndarray) -> None:
    """Without a gold reward: the proxy rises with the ensemble's disagreement and repetition."""
    del history["gold/quality"]
    history["reward/mean"] += 1.5 * since
    history["reward/disagreement"] += 0.6 * since
    history["rollout/repetition"] += 0.4 * since


def _runaway(history: History, since: np.ndarray) -> None:
    history["kl/reference"] *= np.exp(4 * since)


def _scaled(key: str, factor: float) -> Callable[[History, np.ndarray], None]:
    def plant(history: History, since: np.ndarray) -> None:
        history[key] = history[key] * (1 + (factor - 1) * np.minimum(2 * since, 1))

    return plant


def _dead(history: History, since: np.ndarray) -> None:
    history["value/explained_variance"] -= np.where(since > 0, 1.0, 0.0)


def _stale(history: History, since: np.ndarray) -> None:
    history["rollout/age"] = np.where(since > 0, 5.0, 0.0)


PLANTED: dict[str, tuple[str, Callable[[History, np.ndarray], None]]] = {
    "gold falls": ("reward_hacking", _hacked),
    "disagreement and repetition rise": ("reward_hacking", _hacked_unseen),
    "KL grows exponentially": ("kl_runaway", _runaway),
    "entropy falls to a twentieth": ("entropy_collapse", _scaled("policy/entropy", 0.05)),
    "the critic dies": ("dead_critic", _dead),
    "rollouts are five updates old": ("stale_rollouts", _stale),
    "one answer in ten ends": ("eos_collapse", _scaled("rollout/eos_rate", 0.1)),
    "answers grow threefold": ("length_explosion", _scaled("rollout/length_mean", 3.0)),
    "answers shrink to a tenth": ("length_collapse", _scaled("rollout/length_mean", 0.1)),
    "all scores are equal": ("degenerate_groups", _scaled("reward/std", 0.0)),
}


def alarms_of(history: History, limits: Limits | None = None) -> list[tuple[str, int]]:
    """Name and update of each alarm that a history raises."""
    watch = Watch(limits or Limits())
    for update in range(len(next(iter(history.values())))):
        watch.observe(update, {key: float(values[update]) for key, values in history.items()})
    return [(alarm.name, alarm.step) for alarm in watch.alarms]


def false_alarms(
    make: Callable[[int, int, float], History], runs: int, count: int, correlation: float
) -> dict[str, Any]:
    """The share of runs with any alarm, and how often each was raised."""
    names: Counter[str] = Counter()
    hit = 0
    for seed in range(runs):
        raised = {name for name, _ in alarms_of(make(seed, count, correlation))}
        names.update(raised)
        hit += bool(raised)
    return wilson_interval(hit, runs).as_dict() | {"by_name": dict(names)}


def detection(planted: str, runs: int, count: int, correlation: float) -> dict[str, Any]:
    """The share of runs in which what was planted is found, and the median delay in updates."""
    wanted, plant = PLANTED[planted]
    delays = []
    for seed in range(runs):
        history = healthy(seed, count, correlation)
        plant(history, late(count))
        steps = [step for name, step in alarms_of(history) if name == wanted and step > count // 2]
        if steps:
            delays.append(steps[0] - count // 2)
    found = wilson_interval(len(delays), runs).as_dict() | {"alarm": wanted}
    return found | {"median_delay": float(np.median(delays)) if delays else None}


def main() -> None:
    """Run, print and write the rates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="where the rates go")
    parser.add_argument("--runs", type=int, default=300, help="histories of each kind")
    parser.add_argument("--planted-runs", type=int, default=100, help="of each planted kind")
    given = parser.parse_args()
    report: dict[str, Any] = {"updates": UPDATES, "runs": given.runs, "false": {}, "found": {}}
    for correlation in CORRELATIONS:
        for make in (steady, healthy):
            found = false_alarms(make, given.runs, UPDATES, correlation)
            report["false"][f"{make.__name__} {correlation}"] = found
            print(f"false alarms, {make.__name__}, correlation {correlation}: {found}", flush=True)
    for planted in PLANTED:
        found = detection(planted, given.planted_runs, UPDATES, 0.0)
        report["found"][planted] = found
        print(f"{planted}: {found}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
