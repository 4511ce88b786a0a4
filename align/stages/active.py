"""The active loop: `align active`. Ask what teaches most, train, measure, and ask again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from typing import Any

from align.active.checks import check_active
from align.active.choose import Chooser
from align.active.desks import Desk
from align.active.fit import RewardLearner
from align.active.loop import Fresh, Loop
from align.active.open import (
    open_desk,
    open_fresh,
    open_learner,
    open_pool,
    open_store,
    truth_of,
)
from align.active.pool import PairPool
from align.active.rounds import rounds_of
from align.active.said import read_said
from align.active.stop import Rules
from align.active.story import tell_story
from align.config.stages import ActiveStage
from align.run import Run, fingerprint, write_json
from align.stages.common import console, open_tokenizer, seed_everything, trainer_args
from align.stages.dryrun import context_of
from feedback.store import FeedbackStore


def run(
    config: ActiveStage,
    run: Run,
    *,
    resume: bool = False,
    dry_run: bool = False,
    wait: bool = False,
) -> None:
    """Go round until a stopping rule holds, or until people are to be waited for.

    Args:
        config: the stage's configuration.
        run: the run directory, which holds all that a later process goes on from.
        resume: taken from the directory itself: every phase that is done is passed over.
        dry_run: check, make no model and ask nobody.
        wait: look for answers every `annotators.poll` seconds instead of returning.

    Raises:
        AlignError: bad input of any kind, before a model loads wherever that is possible.
    """
    seed_everything(config.run.seed)
    chooser = check_active(config)
    args = trainer_args(config, run)  # type: ignore[arg-type]
    tokenizer = open_tokenizer(config.model)
    limits = [args.max_length, context_of(config.model.path)]
    longest = min((limit for limit in limits if limit), default=None)
    if dry_run and config.pool.source == "prompts":
        console.print("dry run of active: configuration is fine; nothing sampled or asked.")
        run.finish(dry_run=True)
        return
    with open_store(config, run.path, dry_run=dry_run) as store:
        desk = open_desk(config.annotators, store, run.path, config.run.seed, _say)
        pool, dropped = open_pool(config, run.path, store, tokenizer, longest, chooser.holdout)
        if dropped:
            run.warn(
                f"{dropped} answers are longer than {longest} tokens and left out of the pool."
            )
        console.print(_size(pool, chooser.held(pool)), highlight=False)
        if dry_run:
            console.print("dry run of active: configuration and pool are fine; nothing asked.")
            run.finish(dry_run=True, pairs=len(pool.pairs))
            return
        run.add_parent("model", config.model.path, fingerprint=fingerprint(config.model.path))
        run.add_parent("data", config.pool.path, fingerprint=fingerprint(config.pool.path))
        learner = open_learner(config)
        fresh = open_fresh(config, run.path, tokenizer, longest)
        loop = _loop(config, run, store, pool, chooser, learner, desk, fresh)
        ending = loop.run(wait=config.annotators.poll if wait else None)
        _finish(loop, run, learner, ending)


def _loop(
    config: ActiveStage,
    run: Run,
    store: FeedbackStore,
    pool: PairPool,
    chooser: Chooser,
    learner: RewardLearner,
    desk: Desk,
    fresh: Fresh,
) -> Loop:
    """The loop that the configuration asks for."""
    settings = {
        "strategy": config.acquisition.strategy,
        "first": config.acquisition.first,
        "posterior": config.posterior.kind,
        "annotators": config.annotators.kind,
        "pairs": len(pool.pairs),
        "prompts": len(set(pool.keys)),
        "held_out_prompts": len(_held_prompts(pool, chooser.held(pool))),
    }

    def told(state: Mapping[str, Any]) -> None:
        whole = loop.pool_at(len(rounds_of(run.path)) + 1)
        story = tell_story(run.path, whole, read_said(store, whole), settings, state)
        write_json(run.path / "active.json", story)

    loop = Loop(
        run.path,
        pool,
        store,
        learner,
        chooser,
        desk,
        rules=Rules(**config.stopping.model_dump()),
        seed=config.run.seed,
        warm=config.posterior.retrain == "warm",
        keep=config.posterior.keep,
        truth=truth_of(desk, config.run.seed),
        arms=config.curve.random,
        fresh=fresh,
        fresh_prompts=config.pool.fresh_prompts,
        enough=config.annotators.enough,
        say=_say,
        log=run.log,
        told=told,
    )
    return loop


def _finish(loop: Loop, run: Run, learner: RewardLearner, ending: str) -> None:
    """Record how it stands; once it has stopped, put the last model where the next stage looks."""
    story = json.loads((run.path / "active.json").read_text(encoding="utf-8"))
    last = [one for one in rounds_of(run.path) if (one.fit / "train.jsonl").is_file()]
    asked = sum(one["asked"] > 0 for one in story["rounds"])
    results: dict[str, Any] = {"rounds": asked, **story["cost"]}
    measured = [one["accuracy"] for one in story["rounds"] if one.get("accuracy")]
    if measured:
        results["holdout"] = measured[-1]
    if ending == "waiting":
        run.ending = "waiting"
        run.finish(waiting=story["next"], **results)
        again = f"Then run the same command with --resume (run.dir={run.path})."
        console.print(f"{story['next']}. {again}", highlight=False, markup=False)
        return
    if last:
        models = learner.models(last[-1].fit)
        if not run.model.is_dir():
            copy = run.model.with_name("model.tmp")
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(models[0], copy)
            copy.rename(run.model)
            learner.save_posterior(last[-1].fit, run.model)
        results["models"] = [str(model) for model in models]
    run.finish(waiting=None, stopped=story["why"], **results)
    console.print(f"stopped by {'; '.join(story['why'])}", highlight=False, markup=False)


def _held_prompts(pool: PairPool, held: set[str]) -> set[str]:
    return {key for key, pair in zip(pool.keys, pool.pairs, strict=True) if pair.id in held}


def _size(pool: PairPool, held: set[str]) -> str:
    prompts = len(_held_prompts(pool, held))
    return (
        f"pool: {len(pool.pairs):,} pairs of {len(set(pool.keys)):,} prompts; {prompts:,} prompts "
        "are held out, to measure accuracy"
    )


def _say(line: str) -> None:
    console.print(line, highlight=False, markup=False)
