"""The teacher: weights averaged over rounds, which err less than any round's own.

theta_teacher <- decay * theta_teacher + (1 - decay) * theta_student, the mean teacher of Tarvainen
and Valpola (2017, arXiv 1703.01780), once a round. Students of one member begin with the same head,
so their weights lie in one basin (`reward.averaging` records how near).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from reward.averaging import average_models


def ema_shares(decay: float, students: int) -> list[float]:
    """The share of each student in the teacher after so many, the oldest first; they sum to 1.

    The first student is the teacher at first, so it has decay^(n - 1), and student i after it
    (1 - decay) * decay^(n - 1 - i).

    Args:
        decay: in [0, 1); 0 is the last student alone.
        students: n, 1 or more.

    Raises:
        ValueError: a decay outside [0, 1), or no student.
    """
    if not 0 <= decay < 1 or students < 1:
        raise ValueError(f"decay {decay} over {students} students: [0, 1), and at least 1.")
    later = [(1 - decay) * decay ** (students - 1 - i) for i in range(1, students)]
    return [decay ** (students - 1), *later]


def next_teacher(teacher: Path, student: Path, out: Path, decay: float) -> Path:
    """Write the teacher after one more student; a directory that is there is whole already.

    Args:
        teacher: the model's directory so far.
        student: of the round that was promoted.
        out: where the next teacher goes; it appears whole or not at all.
        decay: share of the old teacher.

    Returns:
        `out`.

    Raises:
        ModelError: the two are no models of one architecture.
    """
    if (out / "config.json").is_file():
        return out
    for stale in out.parent.glob(f".{out.name}.*.tmp"):  # of a process that was killed
        shutil.rmtree(stale, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    average_models([teacher, student], out, weights=[decay, 1 - decay])
    return out
