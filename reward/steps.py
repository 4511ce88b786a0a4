"""Answers in steps, as text: a step is a line that holds something."""

from __future__ import annotations

from collections.abc import Sequence

SEPARATOR = "\n"


def join_steps(steps: Sequence[str]) -> str:
    """The answer that is made of these steps, one a line."""
    return SEPARATOR.join(steps)


def split_steps(answer: str) -> list[str]:
    """The steps of an answer; at least one, however empty."""
    return [line for line in answer.split(SEPARATOR) if line.strip()] or [answer]
