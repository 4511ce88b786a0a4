"""Self-training: `align selftrain`. Draw or label, keep what is good, train, measure, promote."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from typing import Any

from align.config.selftrain import POLICY
from align.config.stages import SelftrainStage
from align.run import Run, fingerprint, write_json
from align.selftrain.checks import check_selftrain, first_training
from align.selftrain.loop import Rounds, go
from align.selftrain.open import open_policy, open_preferences
from align.selftrain.preferences import PreferenceRounds
from align.selftrain.rounds import measured, promoted_before, round_at, rounds_of
from align.selftrain.story import tell_story
from align.stages.common import console, open_tokenizer, seed_everything, trainer_args
from align.stages.rewards import models_of


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
        kind = open_policy(config, run, tokenizer, dry_run)
    else:
        kind = open_preferences(config, run, tokenizer, args.max_length, dry_run)
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

    try:
        ending = go(run.path, kind, config.loop.rounds, config.loop.patience, told)
        _finish(run, kind, ending)
    finally:
        if isinstance(kind, PreferenceRounds):
            kind.store.close()


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
