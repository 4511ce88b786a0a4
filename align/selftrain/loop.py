"""The loop that both kinds share: play a round, tell how it stands, end when a rule holds.

A round is played by whoever knows its kind (`policy.PolicyRounds`, `preferences.PreferenceRounds`)
and leaves `measure.json`; until then it may be killed at any moment and is played again, each of
its phases passed over where its file is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from align.selftrain.gate import ended
from align.selftrain.rounds import Json, Round, history, round_at

Told = Callable[[Mapping[str, Any]], None]


class Rounds(Protocol):
    """Plays rounds of one kind."""

    def start(self, here: Round) -> Json:
        """Measure what is in use before any round; writes and returns `measure.json`."""

    def play(self, here: Round) -> Json | None:
        """One round up to its `measure.json`, which is returned; None: people are waited for."""

    def tidy(self, here: Round) -> None:
        """Let go of what no later round reads."""


def go(folder: Path, kind: Rounds, rounds: int, patience: int, told: Told) -> str:
    """Go on until a rule holds, or until people are waited for.

    Args:
        folder: of the run.
        kind: plays the rounds.
        rounds: the most there are.
        patience: rounds in a row without promotion that end it.
        told: called after each round with `status`, `why` and `next`.

    Returns:
        "stopped" or "waiting".

    Raises:
        AlignError: of a training, a sampler or a file; what was done until then stays.
    """
    first = round_at(folder, 0)
    if first.read("measure") is None:
        kind.start(first)
    number = 1
    while True:
        before = round_at(folder, number - 1).read("measure") or {}
        why = [*ended(history(folder)[: number - 1], rounds, patience), *before.get("stop", [])]
        if why:
            told({"status": "stopped", "why": why, "next": ""})
            return "stopped"
        told({"status": "unfinished", "why": [], "next": ""})
        here = round_at(folder, number)
        if here.read("measure") is None and kind.play(here) is None:
            waiting = (here.read("waiting") or {}).get("next", "")
            told({"status": "waiting", "why": [], "next": waiting})
            return "waiting"
        kind.tidy(here)
        number += 1
