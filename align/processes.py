"""What a launcher (accelerate, torchrun) says of a run's processes, before any of them trains."""

from __future__ import annotations

import os


def processes() -> int:
    """How many there are; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_index() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def first_process() -> bool:
    """Whether this is the only process, or the first of several."""
    return process_index() == 0
