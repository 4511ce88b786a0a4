"""From a configuration to what the loop works with: the pool, the people, the learner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from align.active.checks import policy_of
from align.active.choose import check_pool
from align.active.desks import Desk, FileDesk, SimulatedDesk, of_ranks
from align.active.fit import RewardLearner
from align.active.fresh import beside, draw_answers, groups_of, with_room
from align.active.pool import (
    Group,
    PairPool,
    check_labels,
    load_pool,
    of_items,
    read_pairs,
    save_pool,
)
from align.config.active import AnnotatorsSection, PoolSection
from align.config.stages import ActiveStage
from align.data.rows import prompt_key
from align.errors import DataError
from align.prompts import read_prompts
from feedback.acquisition.holdout import Holdout
from feedback.schema import Text
from feedback.simulate import SimulatedAnnotator
from feedback.store import FeedbackStore
from reward.functions import call_reward, load_reward_function
from reward.process import load_reward
from reward.score import encode_answer

Answers = list[Any]


def open_store(config: ActiveStage, run: Path, *, dry_run: bool = False) -> FeedbackStore:
    """The store that answers go to: the one named, or `feedback.db` in the run directory."""
    if config.pool.source == "store":
        return FeedbackStore(config.pool.path, create=False)
    named = None if dry_run else config.annotators.store  # a dry run makes none
    return FeedbackStore(named or f"sqlite:///{run / 'feedback.db'}")


def open_pool(
    config: ActiveStage,
    run: Path,
    store: FeedbackStore,
    tokenizer: Any,
    longest: int | None,
    holdout: Holdout,
) -> tuple[PairPool, int]:
    """The pool as the run began, read from `pool.jsonl` or made and written there.

    Args:
        config: what it is made of.
        run: the run directory.
        store: for `pool.source: store`.
        tokenizer: of the reward model.
        longest: tokens that it reads; longer answers are left out.
        holdout: held-out pairs that a store has answers to are left out: nobody drew them.

    Returns:
        The pool, and how many answers were too long.

    Raises:
        DataError: no pair is left, prompts are of both kinds, or labels that are the truth lack.
        ConfigError: the holdout leaves nothing to measure on or to choose from.
    """
    file = run / "pool.jsonl"
    if file.is_file():
        return PairPool(tuple(load_pool(file))), 0
    pool = _made(config.pool, config, run, store, tokenizer)
    if config.pool.source == "store":
        pool = _undrawn(pool, store, holdout)
    if config.annotators.kind == "simulated" and config.annotators.truth == "labels":
        check_labels(pool, config.pool.path)
    if len({isinstance(group.prompt, str) for group in pool.groups}) > 1:
        raise DataError(
            f"{config.pool.path}: holds text prompts and conversations. Fix: make them alike, "
            "since one model is trained on both."
        )
    pool, dropped = fitting(pool, tokenizer, longest)
    if not pool.pairs:
        raise DataError(f"{config.pool.path}: no pair is left ({dropped} answers are too long).")
    check_pool(pool, holdout)
    save_pool(file, pool.groups)
    return pool, dropped


def fitting(pool: PairPool, tokenizer: Any, longest: int | None) -> tuple[PairPool, int]:
    """The pool without answers of more than `longest` tokens, and how many those were."""
    if longest is None:
        return pool, 0
    groups, dropped = [], 0
    for group in pool.groups:
        given = as_given(group.prompt, group.answers)
        sizes = [len(encode_answer(group.prompt, text, tokenizer)) for text in given]
        kept = [n for n, size in enumerate(sizes) if size <= longest]
        dropped += len(sizes) - len(kept)
        if len(kept) == len(sizes):
            groups.append(group)
        elif len(kept) > 1:
            parts = {
                name: tuple(value[n] for n in kept)
                for name in ("answers", "ranks", "sources")
                if (value := getattr(group, name))
            }
            groups.append(Group(**(vars(group) | parts)))
    return PairPool(tuple(groups)), dropped


def open_desk(
    given: AnnotatorsSection, store: FeedbackStore, run: Path, seed: int, say: Callable[[str], None]
) -> Desk:
    """Who answers.

    Raises:
        ConfigError: no Label Studio server or no token.
        LabelStudioError: the server refuses.
    """
    if given.kind == "file":
        return FileDesk(store, run / "questions")
    if given.kind == "label-studio":
        from align.active.desk_label_studio import LabelStudioDesk
        from align.feedback_cli.common import connect

        client = connect(given.url, Path(given.data))
        return LabelStudioDesk(store, client, given.project, given.overlap, given.emails, say)
    people = [
        SimulatedAnnotator(
            f"person-{number}",
            seed,
            given.temperature,
            given.position_bias,
            given.lapse_rate,
            given.tie_band,
        )
        for number in range(1, given.people + 1)
    ]
    return SimulatedDesk(store, people, utilities_of(given.truth))


def utilities_of(truth: str) -> Callable[[Group], Sequence[float]]:
    """What answers are worth: by the pool's labels, a function, or a reward model."""
    if truth == "labels":
        return of_ranks
    known: dict[tuple[str, tuple[str, ...]], list[float]] = {}
    functions: list[Any] = []

    def score(group: Group) -> list[float]:
        if not functions:  # a reward model is loaded once, when it is needed
            is_function = ":" in truth and not Path(truth).exists()
            functions.append(
                load_reward_function(truth) if is_function else load_reward(truth, normalise=False)
            )
        key = (prompt_key(group.prompt), group.answers)
        if key not in known:
            count = len(group.answers)
            columns = {name: [value] * count for name, value in group.columns.items()}
            given = as_given(group.prompt, group.answers)
            known[key] = call_reward(functions[0], [group.prompt] * count, given, **columns)
        return known[key]

    return score


def truth_of(desk: Desk, seed: int) -> Callable[[PairPool, Sequence[str]], dict[str, float]] | None:
    """Answers to any pair, where annotators are simulated: the share of them for the first."""
    if not isinstance(desk, SimulatedDesk):
        return None
    from align.active.desks import Question

    def shares(pool: PairPool, names: Sequence[str]) -> dict[str, float]:
        found = {}
        for name in names:
            pair = pool.pairs[pool.place[name]]
            group = pool.groups[pair.group]
            question = Question(group.item((pair.first, pair.second), "", seed), group, 0.0)
            labels = [getattr(desk.answer(question, one), "label", "tie") for one in desk.people]
            found[name] = sum({"a": 1.0, "tie": 0.5}.get(label, 0.0) for label in labels)
            found[name] /= len(labels)
        return found

    return shares


def open_learner(config: ActiveStage) -> RewardLearner:
    """What trains: `align reward` with the loop's model, trainer and adapter."""
    settings = config.model_dump(
        mode="json", include={"model", "trainer", "peft", "normalisation", "tracking"}
    )
    # A model that starts from the last round's cannot say whose samples set its scale.
    policy = config.normalisation.policy or config.model.path
    settings["normalisation"] |= {"policy": policy}
    given = config.posterior
    return RewardLearner(settings, given.kind, given.count, given.draws, given.precision)


def open_fresh(
    config: ActiveStage, run: Path, tokenizer: Any, longest: int | None
) -> Callable[[Sequence[Group], int], list[Group]]:
    """New answers to some prompts, by the policy: another draw each round."""

    def draw(groups: Sequence[Group], number: int) -> list[Group]:
        pool, policy = config.pool, policy_of(config)
        prompts: list[Text] = [group.prompt for group in groups]
        seed = config.run.seed + 1000 * number
        texts = draw_answers(policy, prompts, pool.fresh_samples, config.rollout, run, seed)
        made = PairPool(tuple(beside(groups, texts, policy)))
        return list(fitting(made, tokenizer, longest)[0].groups)

    return draw


def as_given(prompt: Text, answers: Sequence[str]) -> Answers:
    """Answers as functions get them: text beside text, else [an assistant's message]."""
    if isinstance(prompt, str):
        return list(answers)
    return [[{"role": "assistant", "content": text}] for text in answers]


def _made(
    section: PoolSection, config: ActiveStage, run: Path, store: FeedbackStore, tokenizer: Any
) -> PairPool:
    if section.source == "pairs":
        aside = run / "quarantine.jsonl" if section.bad_rows == "quarantine" else None
        return read_pairs(section.path, section.columns, section.limit, section.stratum, aside)
    if section.source == "store":
        return of_items(store.items("pair")[: section.limit], section.stratum)
    prompts, columns = read_prompts(file=section.path)
    rows = [{"prompt": p} | more for p, more in zip(prompts, columns, strict=True)]
    rows = list({prompt_key(row["prompt"]): row for row in reversed(rows)}.values())[::-1]
    policy = policy_of(config)
    limit = section.limit or len(rows)
    rows = with_room(rows, policy, tokenizer, config.rollout.max_new_tokens)[:limit]
    asked: list[Text] = [row["prompt"] for row in rows]
    seed = config.run.seed
    answers = draw_answers(policy, asked, section.samples, config.rollout, run, seed)
    return PairPool(tuple(groups_of(rows, answers, policy, section.stratum)))


def _undrawn(pool: PairPool, store: FeedbackStore, holdout: Holdout) -> PairPool:
    answered = {one.item.id for one in store.standing()}
    held = holdout.held(pool.names())
    lost = {
        pair.group
        for pair, out in zip(pool.pairs, held, strict=True)
        if out and pair.id in answered
    }
    return PairPool(tuple(g for n, g in enumerate(pool.groups) if n not in lost))
