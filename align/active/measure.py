"""What the labels brought: accuracy on the holdout, and the curve beside that of random choice.

Accuracy is of the whole pool that the run began with, estimated on the holdout's answered pairs
with their propensities (`feedback.acquisition.accuracy`); pairs of one prompt go together.
What random choice would have brought is known only where all answers can be had: then a model is
trained on as many labels drawn at random, and both answer every held-out pair.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from align.active.pool import PairPool
from align.active.said import credit
from align.evaluate.significance import difference_interval
from feedback.acquisition import Holdout, estimate_accuracy

Array = np.ndarray


def holdout_accuracy(
    pool: PairPool,
    p: Mapping[str, float],
    shares: Mapping[str, float],
    drawn: Collection[str],
    holdout: Holdout,
) -> dict[str, Any] | None:
    """Accuracy over the pool with its interval; None where no drawn pair is answered.

    Args:
        pool: as the run began.
        p: by held-out pair, the model's P(the first answer is better).
        shares: by pair, the share of people's votes for the first answer.
        drawn: pairs that the holdout drew, of all rounds.
        holdout: what drew them.
    """
    names = [name for name in pool.place if name in drawn and name in shares and name in p]
    if not names:
        return None
    candidates = pool.names()
    chances = holdout.propensities(candidates, names)
    places = [pool.place[name] for name in names]
    right = credit(_of(shares, names), _of(p, names))
    clusters = [pool.keys[i] for i in places]
    return estimate_accuracy(right, chances[places], clusters=clusters).as_dict()


def against_random(
    pool: PairPool,
    truth: Mapping[str, float],
    chosen: Mapping[str, float],
    arms: Sequence[Mapping[str, float]],
) -> dict[str, Any]:
    """Both kinds of choice on every held-out pair whose answer is known.

    Args:
        pool: the pairs.
        truth: by held-out pair, the share for its first answer.
        chosen: by pair, what the loop's model says.
        arms: the same of each model trained on random labels.

    Returns:
        `chosen`, `random` (the arms' own), `difference` with a 95% interval over prompts (not over
        seeds), and `n`.
    """
    names = [name for name in truth if name in chosen and all(name in arm for arm in arms)]
    known = _of(truth, names)
    own = credit(known, _of(chosen, names))
    others = [credit(known, _of(arm, names)) for arm in arms]
    found: dict[str, Any] = {"chosen": float(own.mean()), "n": len(names)}
    found["random"] = [float(other.mean()) for other in others]
    if others:
        gain = own - np.mean(others, axis=0)
        keys = [pool.keys[pool.place[name]] for name in names]
        interval = difference_interval(*_by_prompt(gain, keys))
        found["difference"] = {k: v for k, v in interval.as_dict().items() if k != "n"}
    return found


def random_rows(names: Sequence[str], count: int, seed: int, arm: int) -> list[str]:
    """The first `count` of these ids in a random order that only seed and arm decide: nested."""
    order = np.random.default_rng([seed, 7919, arm]).permutation(len(names))
    return [names[int(i)] for i in order[:count]]


def metrics_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """What metrics.jsonl has of a round, the step being the number of answered questions."""
    values: dict[str, Any] = {"active/rows": found["rows"], "active/minutes": found["minutes"]}
    if found["accuracy"]:
        values["holdout/accuracy"] = found["accuracy"]["value"]
    if found["most"] is not None:
        values["active/most_to_learn"] = found["most"]
    if found["curve"]:
        values["holdout/accuracy_known"] = found["curve"]["chosen"]
        if found["curve"]["random"]:
            values["holdout/accuracy_random"] = float(np.mean(found["curve"]["random"]))
    return values


def in_words(found: Mapping[str, Any]) -> str:
    """A round's figures in one line."""
    said = f"round {found['round']}: {found['answered']} answers"
    if one := found["accuracy"]:
        said += (
            f", accuracy {one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}], n = {one['n']}"
        )
    if found["curve"] and found["curve"]["random"]:
        said += f", at random {np.mean(found['curve']['random']):.3f}"
    return said


def _of(values: Mapping[str, float], names: Sequence[str]) -> Array:
    return np.array([values[name] for name in names], dtype=np.float64)


def _by_prompt(values: Array, keys: Sequence[str]) -> tuple[Array, Array]:
    """Sums and counts of each prompt's values, both (P,): prompts are the units."""
    codes = {name: place for place, name in enumerate(dict.fromkeys(keys))}
    labels = [codes[name] for name in keys]
    return np.bincount(labels, weights=values), np.bincount(labels).astype(np.float64)
