"""Self-training: `align selftrain`. Draw or label, keep what is good, train, measure, promote."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from align.active.open import fitting
from align.active.pool import PairPool, read_pairs
from align.config.selftrain import POLICY
from align.config.stages import SelftrainStage
from align.data.rows import prompt_key
from align.data.split import position_of
from align.errors import DataError
from align.run import Run, fingerprint, write_json
from align.selftrain.checks import (
    check_selftrain,
    first_training,
    policy_learner,
    reward_ensemble,
)
from align.selftrain.draw import Asked, Drawer
from align.selftrain.gate import Gate
from align.selftrain.harvest import with_hint
from align.selftrain.loop import Rounds, go
from align.selftrain.policy import PolicyRounds
from align.selftrain.preferences import PreferenceRounds
from align.selftrain.rounds import measured, promoted_before, round_at, rounds_of
from align.selftrain.story import tell_story
from align.stages.common import console, load_data, open_tokenizer, seed_everything, trainer_args
from align.stages.dryrun import context_of
from align.stages.on_policy import load_prompts
from align.stages.rewards import common_context, models_of, open_rewards
from feedback.store import FeedbackStore
from reward.preferences import is_tie

LEAST = 8  # held-out prompts of each part; fewer decide nothing


def run(config: SelftrainStage, run: Run, *, resume: bool = False, dry_run: bool = False) -> None:
    """Go round until a rule holds, or until people are to check labels.

    Args:
        config: the stage's configuration.
        run: the run directory, which holds all that a later process goes on from.
        resume: taken from the directory itself: every phase that is done is passed over.
        dry_run: check configuration and data; draw, label and train nothing.

    Raises:
        AlignError: bad input of any kind, before a model loads wherever that is possible.
    """
    seed_everything(config.run.seed)
    check_selftrain(config)
    args = trainer_args(first_training(config, run.path), run)
    tokenizer = open_tokenizer(config.model)
    if config.loop.method in POLICY:
        kind = _policy(config, run, tokenizer, dry_run)
    else:
        kind = _preferences(config, run, tokenizer, args.max_length, dry_run)
    if dry_run or kind is None:
        console.print("dry run of selftrain: configuration and data are fine; nothing trained.")
        run.finish(dry_run=True)
        return
    run.add_parent("model", config.model.path, fingerprint=fingerprint(config.model.path))
    for section in config.reward:
        for path in models_of(section):
            run.add_parent("reward", path, fingerprint=fingerprint(path))

    def told(state: Mapping[str, Any]) -> None:
        write_json(run.path / "selftrain.json", tell_story(run.path, _settings(config), state))

    ending = go(run.path, kind, config.loop.rounds, config.loop.patience, told)
    _finish(run, kind, ending)


def _policy(
    config: SelftrainStage, run: Run, tokenizer: PreTrainedTokenizerBase, dry_run: bool
) -> Rounds | None:
    """The rounds of a policy; None in a dry run."""
    context = common_context(context_of(config.model.path), config.reward)
    data = load_prompts(config, run, tokenizer, context)  # type: ignore[arg-type]
    questions, held = _asked(data.train), _asked(data.validation)
    _check_held(len(held), "questions")
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
        policy_learner(config),
        seed=config.run.seed,
        say=_say,
        log=run.log,
    )


def _preferences(
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
    return Gate(given.rule, given.tolerance, given.level, config.loop.rounds)


def _settings(config: SelftrainStage) -> dict[str, Any]:
    """What the page says of the method."""
    loop, gate = config.loop, config.gate
    told: dict[str, Any] = {
        "method": loop.method,
        "rounds": loop.rounds,
        "start": loop.begins,
        "gate": gate.rule,
        "tolerance": gate.tolerance if gate.rule == "not_worse" else None,
        "level": gate.level,
    }
    if loop.method in POLICY:
        return told | {"kind": "policy", "samples": config.harvest.samples}
    given = config.pseudo
    return told | {"kind": "preferences", "members": given.members, "audit": config.audit.share}


def _finish(run: Run, kind: Rounds, ending: str) -> None:
    """Record how it stands; once it has stopped, put the model in use where others look for it."""
    story = json.loads((run.path / "selftrain.json").read_text(encoding="utf-8"))
    found = measured(run.path)
    used = promoted_before(run.path, len(rounds_of(run.path)) + 1)
    first, last = found[0]["value"], next(one for one in found if one["round"] == used)["value"]
    results: dict[str, Any] = {"rounds": len(found) - 1, "in_use": used}
    results |= {"start": first, "end": last}
    if ending == "waiting":
        run.ending = "waiting"
        run.finish(waiting=story["next"], **results)
        _say(f"Then run the same command with --resume (run.dir={run.path}).")
        return
    models = kind.students(used) if isinstance(kind, PreferenceRounds) else []
    if not models and used:
        models = [round_at(run.path, used).fit / "model"]
    if models:
        results["models"] = [str(model) for model in models]
        copy = run.model.with_name("model.tmp")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(models[0], copy)
        shutil.rmtree(run.model, ignore_errors=True)
        copy.rename(run.model)
    run.finish(waiting=None, stopped=story["why"], **results)
    _say(
        f"stopped by {'; '.join(story['why'])}; in use: "
        + (f"round {used}" if used else "the start")
    )


def _say(line: str) -> None:
    console.print(line, highlight=False, markup=False)
