"""From a configuration to the rounds that it asks for: data read, split and checked."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from align.active.open import fitting
from align.active.pool import PairPool, read_pairs
from align.config.sections import DataSection
from align.config.stages import SelftrainStage
from align.data import load_splits
from align.data.rows import prompt_key
from align.data.split import position_of
from align.errors import DataError
from align.run import Run, fingerprint
from align.selftrain.checks import BESIDE, policy_learner, reward_ensemble
from align.selftrain.draw import Asked, Drawer
from align.selftrain.gate import Gate
from align.selftrain.harvest import with_hint
from align.selftrain.loop import Rounds
from align.selftrain.policy import PolicyRounds
from align.selftrain.preferences import PreferenceRounds
from align.selftrain.rounds import write_rows
from align.stages.common import console, load_data
from align.stages.dryrun import context_of
from align.stages.on_policy import load_prompts
from align.stages.rewards import common_context, open_rewards
from feedback.store import FeedbackStore
from reward.preferences import is_tie

LEAST = 8  # held-out prompts of each part; fewer decide nothing


def open_policy(
    config: SelftrainStage, run: Run, tokenizer: PreTrainedTokenizerBase, dry_run: bool
) -> Rounds | None:
    """The rounds of a policy; None in a dry run."""
    context = common_context(context_of(config.model.path), config.reward)
    data = load_prompts(config, run, tokenizer, context)  # type: ignore[arg-type]
    questions, held = _asked(data.train), _asked(data.validation)
    _check_held(len(held), "questions")
    if config.harvest.beside:
        rows = _beside(config, run, questions[0], [*held, *_asked(data.test)])
        write_rows(run.path / BESIDE, rows)
    if config.harvest.hint is not None:
        with_hint(questions[0].prompt, config.harvest.hint, questions[0].columns)
    console.print(f"{len(questions):,} questions; {len(held):,} are held out", highlight=False)
    if dry_run:
        return None
    return PolicyRounds(
        run.path,
        config.model.path,
        config.loop,
        config.harvest,
        config.gate,
        _gate(config),
        questions,
        held,
        Drawer(config.model, config.rollout, run.path),
        open_rewards(config.reward),
        policy_learner(config, run.path),
        seed=config.run.seed,
        say=_say,
        log=run.log,
    )


def _beside(
    config: SelftrainStage, run: Run, question: Asked, held: list[Asked]
) -> list[dict[str, Any]]:
    """The rows that train in every round, without those whose prompt is held out.

    Raises:
        DataError: they cannot be read, have no prompt, or are no conversations where the questions
            are, or the other way round.
    """
    given = DataSection(
        train=config.harvest.beside or [], validation_fraction=0.0, deduplicate="none"
    )
    kind = "preference" if config.loop.method == "dpo" else "sft"
    rows = [_without_nothing(row) for row in load_splits(given, kind).train.to_list()]  # type: ignore[arg-type]
    if "prompt" not in rows[0]:
        raise DataError(
            f"{given.train[0].path}: holds plain text. Fix: rows of prompt and completion are "
            "expected in harvest.beside, as what a round keeps."
        )
    if isinstance(rows[0]["prompt"], str) != isinstance(question.prompt, str):
        forms = ("plain text", "conversations")
        theirs, ours = forms if isinstance(rows[0]["prompt"], str) else forms[::-1]
        raise DataError(
            f"{given.train[0].path}: holds {theirs}, and the questions are {ours}. Fix: make them "
            "alike, since one model is trained on both."
        )
    out = {prompt_key(one.prompt) for one in held}
    kept = [row for row in rows if prompt_key(row["prompt"]) not in out]
    if not kept:
        raise DataError(
            f"{given.train[0].path}: all {len(rows)} rows are of held-out questions. Fix: name "
            "others in harvest.beside, or leave it out."
        )
    if len(kept) < len(rows):
        run.warn(f"{len(rows) - len(kept)} rows of harvest.beside are held out, and left out.")
    for source in given.train:
        run.add_parent("data", source.path, fingerprint=fingerprint(source.path))
    return kept


def open_preferences(
    config: SelftrainStage,
    run: Run,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    dry_run: bool,
) -> Rounds | None:
    """The rounds of a reward model; None in a dry run."""
    context = context_of(config.model.path)
    data = load_data(
        config,  # type: ignore[arg-type]
        "preference",
        run,
        tokenizer,
        max_length=max_length,
        context=context,
    )
    human = [_without_nothing(row) for row in data.train.to_list()]
    held = [row for row in (data.validation or []) if not is_tie(row)]
    share, seed = config.pseudo.calibration, config.data.split_seed
    places = [position_of(prompt_key(row["prompt"]), seed, b"calibrate") for row in held]
    known = [row for row, place in zip(held, places, strict=True) if place < share]
    gate = [row for row, place in zip(held, places, strict=True) if place >= share]
    for rows, what in ((known, "prompts of the temperature"), (gate, "prompts of the gate")):
        _check_held(len({prompt_key(row["prompt"]) for row in rows}), what)
    pool, left_out = _pool(config, human, held)
    limits = [length for length in (max_length, context) if length]
    pool, overlong = fitting(pool, tokenizer, min(limits, default=None))
    if not pool.pairs:
        raise DataError(
            f"{config.pseudo.path}: no pair is left to label ({left_out} prompts are held out or "
            f"pairs labelled, {overlong} answers too long). Fix: name pairs that nobody compared."
        )
    console.print(
        f"{len(human):,} pairs of people; {len(known):,} set the temperature and {len(gate):,} "
        f"decide; {len(pool.pairs):,} pairs to label",
        highlight=False,
    )
    if dry_run:
        return None
    run.add_parent(
        "data", str(config.pseudo.path), fingerprint=fingerprint(str(config.pseudo.path))
    )
    return PreferenceRounds(
        run.path,
        config.loop,
        config.pseudo,
        config.audit,
        _gate(config),
        human,
        known,
        gate,
        pool,
        FeedbackStore(config.audit.store or f"sqlite:///{run.path / 'feedback.db'}"),
        reward_ensemble(config),
        seed=config.run.seed,
        say=_say,
        log=run.log,
    )


def _pool(
    config: SelftrainStage, human: list[dict[str, Any]], held: list[dict[str, Any]]
) -> tuple[PairPool, int]:
    """The pairs that may be labelled: no held-out prompt, and no pair that people compared."""
    given = config.pseudo
    whole = read_pairs(str(given.path), given.columns, given.limit, given.stratum)
    out = {prompt_key(row["prompt"]) for row in held}
    seen = {_pair(row["prompt"], row["chosen"], row["rejected"]) for row in human}
    groups = []
    for group in whole.groups:
        two = group.answers if len(group.answers) == 2 else None
        if prompt_key(group.prompt) in out or (two and _pair(group.prompt, *two) in seen):
            continue
        groups.append(group)
    return PairPool(tuple(groups)), len(whole.groups) - len(groups)


def _pair(prompt: Any, first: Any, second: Any) -> tuple[str, frozenset[str]]:
    texts = [one if isinstance(one, str) else one[-1]["content"] for one in (first, second)]
    return prompt_key(prompt), frozenset(text.strip() for text in texts)


def _asked(rows: Any) -> list[Asked]:
    return [Asked(row.pop("prompt"), row) for row in (rows.to_list() if rows is not None else [])]


def _without_nothing(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}


def _check_held(count: int, what: str) -> None:
    if count < LEAST:
        raise DataError(
            f"{count} held-out {what}; at least {LEAST} are expected, and some hundreds to see a "
            "gain of a few points. Fix: raise data.validation_fraction, or name data.validation."
        )


def _gate(config: SelftrainStage) -> Gate:
    given = config.gate
    shares = config.loop.method == "preferences"  # a pair is judged rightly, or it is not
    return Gate(given.rule, given.tolerance, given.level, config.loop.rounds, shares=shares)


def _say(line: str) -> None:
    console.print(line, highlight=False, markup=False)
