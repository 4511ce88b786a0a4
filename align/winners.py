"""`align generate --best-of`: of each prompt's answers the best by a reward, as SFT data.

Rejection sampling: with a least score, prompts whose best answer is too poor are left out; with a
share, only the best winners stay. Leaves out training on them: `align sft`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.errors import ConfigError, Problem, RunError
from align.rollout.base import like
from align.rollout.best_of import accepted
from align.run import read_jsonl
from align.types import RewardFn
from reward.functions import call_reward, load_reward_function
from reward.process import load_reward

if TYPE_CHECKING:  # it imports this module
    from align.generate import Generation


@dataclass(frozen=True)
class Winners:
    """Picks the best of each prompt's generations."""

    reward: RewardFn
    least: float | None = None  # a winner below it is left out

    def pick(
        self, batch: Sequence[Generation], columns: Sequence[Mapping[str, Any]] | None
    ) -> list[tuple[Generation, dict[str, Any]]]:
        """The winners among whole groups of generations, each with its score and rivals.

        Raises:
            RewardError: the reward function raised, or returned anything but finite floats.
        """
        extra = [columns[item.index] if columns else {} for item in batch]
        named = {key: [row.get(key) for row in extra] for key in (extra[0] if extra else {})}
        prompts = [item.prompt for item in batch]
        answers = [like(item.prompt, item.completion) for item in batch]
        scores = call_reward(self.reward, prompts, answers, **named)
        groups: dict[int, list[int]] = {}
        for row, item in enumerate(batch):
            groups.setdefault(item.index, []).append(row)
        best = [max(rows, key=lambda row: (scores[row], -row)) for rows in groups.values()]
        if self.least is not None:
            best = [best[at] for at in accepted([scores[row] for row in best], self.least)]
        sizes = {index: len(rows) for index, rows in groups.items()}
        return [
            (batch[row], {"score": scores[row], "best_of": sizes[batch[row].index]}) for row in best
        ]


def open_winners(
    reward: str | None,
    best_of: int,
    samples: int,
    least: float | None,
    keep: float | None,
    output: Path | None,
) -> Winners | None:
    """What `--best-of` and its companions ask for; None where they ask for nothing.

    Args:
        reward: a reward model's directory (or hub id), or `module:function`.
        best_of: answers drawn of each prompt.
        samples: what `--samples` says, which must not contradict it.
        least: of a winner's score.
        keep: share of the winners that stays.
        output: the file that they are written to.

    Raises:
        ConfigError: options that need one another, or a number out of range.
        RewardError: the function cannot be imported.
        ModelError: the reward model cannot be loaded.
    """
    if reward is None:
        given = {"--best-of": best_of > 1, "--min-score": least is not None}
        given["--keep"] = keep is not None
        problems = [
            Problem(name, "needs a reward to choose by.", "add --reward MODEL or module:function.")
            for name, asked in given.items()
            if asked
        ]
        if problems:
            raise ConfigError(problems)
        return None
    problems = []
    if best_of < 1:
        problems.append(Problem("--best-of", f"is {best_of}; it must be at least 1."))
    if samples > 1:
        what = f"is {samples}, but of several answers --reward keeps one."
        problems.append(Problem("--samples", what, "use --best-of for how many are drawn."))
    if keep is not None and not 0 < keep <= 1:
        problems.append(Problem("--keep", f"is {keep}; it must be above 0 and at most 1."))
    if keep is not None and output is None:
        problems.append(Problem("--keep", "compares all winners.", "write them: --output FILE."))
    if problems:
        raise ConfigError(problems)
    is_function = ":" in reward and not Path(reward).exists()
    judge = load_reward_function(reward) if is_function else load_reward(reward)
    return Winners(judge, least)


def keep_best(file: Path, share: float) -> int:
    """Leave only the best share of a written file's winners; how many stay.

    The file is replaced in one go, so a crash leaves all of them.

    Raises:
        RunError: the file cannot be written.
    """
    rows = read_jsonl(file)
    kept = [rows[row] for row in accepted([row["score"] for row in rows], fraction=share)]
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        temporary.write_text("".join(lines), encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(
            f"cannot write {file}: {error.strerror}. Fix: free some space; all winners are still "
            "in the file."
        ) from error
    return len(kept)
