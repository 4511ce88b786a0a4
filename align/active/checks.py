"""What can be refused before anything loads, all of it together; and what is not overwritten."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from align.active.choose import Chooser
from align.active.strategies import build_strategy
from align.config.active import AcquisitionSection
from align.config.stages import ActiveStage
from align.data.remote import is_store
from align.errors import ConfigError, Problem, RewardError
from align.rollout.open import check_rollout
from align.stages.model_names import check_frozen
from align.stages.peft_checks import check_peft
from align.stages.preflight import gather, is_classifier, is_local, model_fault
from feedback.acquisition import Annotator, Holdout
from reward.functions import load_reward_function


def check_active(config: ActiveStage) -> Chooser:
    """Refuse what cannot work; the chooser that the configuration asks for.

    Raises:
        ConfigError: with every problem found.
    """
    problems = [
        *_models(config),
        *_pool(config),
        *_people(config),
        *_together(config),
        *check_rollout(config.rollout),
    ]
    chooser = _chooser(config.acquisition, config.run.seed, problems)

    def own() -> None:
        if problems:
            raise ConfigError(problems)

    model = config.model
    gather(
        own,
        lambda: check_peft(config.peft, "reward", model.path),
        lambda: check_frozen(model.freeze, model.path, "reward"),
    )
    assert chooser is not None
    return chooser


def policy_of(config: ActiveStage) -> str:
    """Whose answers the pool is made of, and whose samples set the reward's scale."""
    return config.pool.policy or config.normalisation.policy or config.model.path


def refuse_loss(config: ActiveStage) -> None:
    """Refuse to start over where people were asked: what they answered lies in the run directory.

    Raises:
        ConfigError: `run.overwrite` is set, and the directory holds questions that people got.
    """
    if not config.run.overwrite or config.run.dir is None:
        return
    folder = Path(config.run.dir)
    asked = sorted(folder.glob("rounds/*/asked.json"))
    if not asked:
        return
    try:
        before = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        kind = before["annotators"]["kind"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        kind = "unknown"
    if kind != "simulated":
        what = f"{folder} holds {len(asked)} rounds of questions that people were asked."
        fix = "choose another run.dir, or move that folder away; --resume goes on with it."
        raise ConfigError([Problem("run.overwrite", what, fix)])


def _chooser(section: AcquisitionSection, seed: int, problems: list[Problem]) -> Chooser | None:
    strategy = build_strategy(section.strategy, "acquisition.strategy", problems)
    first = build_strategy(section.first, "acquisition.first", problems, model=False)
    if strategy is None or first is None:
        return None
    people = [
        Annotator(one.name, one.price, one.capacity or float("inf")) for one in section.people
    ]
    names = [one.name for one in people]
    for place, name in enumerate(names):
        if name in names[:place]:
            problems.append(
                Problem(f"acquisition.people.{place}.name", f"{name!r} is there twice.")
            )
    return Chooser(
        strategy,
        first,
        Holdout(section.holdout, seed),
        batch=section.batch,
        holdout_share=section.holdout_share,
        similarity=section.similarity,
        cost=section.cost,
        budget=section.budget,
        people=tuple(people),
        rankings=section.rankings,
    )


def _models(config: ActiveStage) -> Iterator[Problem]:
    writes = config.pool.source == "prompts" or config.pool.fresh_prompts > 0
    policy = policy_of(config)
    named = {"model.path": config.model.path}
    if config.normalisation.policy is not None:
        named["normalisation.policy"] = config.normalisation.policy
    if config.pool.policy is not None:
        named["pool.policy"] = config.pool.policy
    faulty = set()
    for where, path in named.items():
        if fault := model_fault(path):
            faulty.add(path)
            yield Problem(where, f"{path} {fault[0]}", fault[1])
    if config.model.quantization:
        what = f"{config.model.quantization}: a reward model is trained on whole weights."
        yield Problem("model.quantization", what, "leave it out; use peft.")
    scale = config.normalisation.policy or config.model.path
    for where, path, needed in (
        ("normalisation.policy", scale, True),
        ("pool.policy", policy, writes),
    ):
        if needed and path not in faulty and is_classifier(path):
            what = f"{path} is a reward model and cannot write answers."
            yield Problem(where, what, "name the policy.")


def _pool(config: ActiveStage) -> Iterator[Problem]:
    pool = config.pool
    missing = is_local(pool.path) or Path(pool.path).suffix != ""
    if pool.source == "store":
        if not is_store(pool.path):
            what = f"{pool.path!r} is no store's URL."
            yield Problem("pool.path", what, "write sqlite:///feedback.db, say.")
        if config.annotators.store not in (None, pool.path):
            what = "is another store than the one that the questions are from."
            yield Problem("annotators.store", what, "leave it out.")
    elif is_store(pool.path):
        what = f"is a store, and pool.source is {pool.source}."
        yield Problem("pool.path", what, "set pool.source: store.")
    elif missing and not Path(pool.path).exists():
        yield Problem("pool.path", f"{pool.path} does not exist.", "check the path.")
    if "stratify" in _kinds(config.acquisition.strategy) and pool.stratum is None:
        what = "stratify needs strata."
        yield Problem("pool.stratum", what, "name the column that says a row's stratum.")


def _people(config: ActiveStage) -> Iterator[Problem]:
    given = config.annotators
    if given.kind == "simulated":
        yield from _truth(config)
    elif config.curve.random:
        what = "what random choice brings is known only where annotators are simulated."
        yield Problem("curve.random", what, "set it to 0: people answer only what was chosen.")
    if given.emails and given.overlap > 1:
        what = "with emails everybody has a project of their own and answers everything."
        yield Problem("annotators.overlap", what, "leave one of overlap and emails out.")


def _truth(config: ActiveStage) -> Iterator[Problem]:
    truth = config.annotators.truth
    if truth == "labels":
        if config.pool.source != "pairs":
            what = f"a pool of {config.pool.source} has no labels."
            fix = "name a module:function or a reward model that scores answers."
            yield Problem("annotators.truth", what, fix)
        elif config.pool.fresh_prompts:
            what = "the policy's new answers have no labels."
            yield Problem("pool.fresh_prompts", what, "set it to 0, or another annotators.truth.")
    elif ":" in truth and not Path(truth).exists():
        try:
            load_reward_function(truth)
        except RewardError as error:
            yield Problem("annotators.truth", str(error))
    elif fault := model_fault(truth):
        yield Problem("annotators.truth", f"{truth} {fault[0]}", fault[1])


def _together(config: ActiveStage) -> Iterator[Problem]:
    given = config.acquisition
    if given.people and given.budget is None:
        yield Problem("acquisition.people", "nobody's time is bought.", "set acquisition.budget.")
    if given.budget is not None and given.rankings:
        what = "a budget buys pairs, and rankings have no cost beforehand."
        yield Problem("acquisition.rankings", what, "leave one of them out.")
    if given.rankings and config.pool.source == "prompts" and config.pool.samples < 3:
        what = f"{config.pool.samples} answers make no ranking."
        yield Problem("pool.samples", what, "3 to 6 for acquisition.rankings.")
    if config.rollout.environment is not None:
        what = "questions are about one answer, and an environment plays episodes."
        yield Problem("rollout.environment", what, "remove it.")


def _kinds(given: Any) -> set[str]:
    """All kinds that a strategy's YAML names."""
    if isinstance(given, str):
        return {given}
    if isinstance(given, Mapping):
        inner = [given.get("of"), *(given.get("parts") or [])]
        return {str(given.get("kind"))}.union(*map(_kinds, inner))
    return set()
