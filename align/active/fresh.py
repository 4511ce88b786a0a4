"""The policy's own answers to prompts: the pool of `pool.source: prompts`, and fresh ones later."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers

from align.active.pool import Group, shuffled
from align.config.sections import RolloutSection
from align.data.tokens import encode_prompt
from align.engine.models import load_policy
from align.errors import DataError
from align.rollout.open import open_sampler
from align.stages.dryrun import context_of
from align.types import SyncedSampler
from feedback.schema import Text


def draw_answers(
    policy_path: str,
    prompts: Sequence[Text],
    samples: int,
    rollout: RolloutSection,
    folder: Path,
    seed: int,
) -> list[list[str]]:
    """Different answers of a policy to each prompt, those that say nothing left out.

    Args:
        policy_path: directory or hub id.
        prompts: P.
        samples: drawn for each prompt; equal ones count once.
        rollout: how to sample.
        folder: of the run, for an engine's own files.
        seed: the same seed draws the same answers with the transformers engine.

    Returns:
        P lists of at most `samples` answers.

    Raises:
        ModelError: a prompt leaves no room for an answer.
        SamplerError: the engine failed.
    """
    policy, _, tokenizer = load_policy(policy_path, with_reference=False)
    transformers.set_seed(seed)
    sampler = open_sampler(rollout, policy, tokenizer, folder)
    try:
        drawn = sampler(list(prompts), group_size=samples)
    finally:
        if isinstance(sampler, SyncedSampler):
            sampler.close()
    texts = [one if isinstance(one, str) else one[-1]["content"] for one in drawn.completions]
    parts = [texts[start : start + samples] for start in range(0, len(texts), samples)]
    # White space around an answer makes no other one.
    kept = [{t.strip(): t for t in reversed(part) if t.strip()} for part in parts]
    return [list(reversed(one.values())) for one in kept]


def groups_of(
    rows: Sequence[dict[str, Any]],
    answers: Sequence[Sequence[str]],
    source: str,
    stratum: str | None,
) -> list[Group]:
    """Groups of prompts and their answers; prompts with fewer than two are left out.

    Args:
        rows: `prompt` and further columns of each.
        answers: of each.
        source: who wrote them.
        stratum: the column that says a row's stratum.

    Raises:
        DataError: no prompt has two different answers.
    """
    groups = []
    for row, texts in zip(rows, answers, strict=True):
        if len(texts) < 2:
            continue
        columns = {name: value for name, value in row.items() if name != "prompt"}
        made = shuffled(row["prompt"], texts)
        name = str(row.get(stratum, "")) if stratum else ""
        sources = (source,) * len(made["answers"])
        groups.append(Group(row["prompt"], sources=sources, stratum=name, columns=columns, **made))
    if not groups:
        raise DataError(
            f"{source} gives no prompt two different answers, so there is nothing to compare. "
            "Fix: raise rollout.temperature or pool.samples."
        )
    return groups


def beside(groups: Sequence[Group], answers: Sequence[Sequence[str]], source: str) -> list[Group]:
    """The groups with fresh answers beside their old ones; where nothing is new, none."""
    found = []
    for group, texts in zip(groups, answers, strict=True):
        old_words = {text.strip() for text in group.answers}
        new = [text for text in texts if text.strip() not in old_words]
        if new:
            old = group.sources or ("",) * len(group.answers)
            who = dict(zip(group.answers, old, strict=True)) | dict.fromkeys(new, source)
            made = shuffled(group.prompt, [*group.answers, *new])
            sources = tuple(who[text] for text in made["answers"])
            found.append(
                Group(group.prompt, made["answers"], (), sources, group.stratum, group.columns)
            )
    return found


def with_room(
    rows: Sequence[dict[str, Any]], policy_path: str, tokenizer: Any, max_new_tokens: int
) -> list[dict[str, Any]]:
    """The rows whose prompt leaves the policy room for an answer."""
    context = context_of(policy_path)
    if context is None:
        return list(rows)
    room = context - max_new_tokens
    return [row for row in rows if len(encode_prompt(row["prompt"], tokenizer)) <= room]
