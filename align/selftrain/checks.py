"""What can be refused before anything loads, all of it together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from align.config.selftrain import POLICY
from align.config.stages import SelftrainStage, TrainingStage
from align.data.read import READERS, file_suffix, missing
from align.data.remote import is_store
from align.errors import ConfigError, Problem
from align.processes import processes
from align.rollout.open import check_rollout
from align.selftrain.fit import PolicyLearner, RewardEnsemble
from align.stages.dpo import check_losses
from align.stages.guard_checks import check_guards
from align.stages.model_names import check_frozen
from align.stages.package_checks import check_packages
from align.stages.peft_checks import check_peft
from align.stages.preflight import gather, is_classifier, is_local, model_fault
from align.stages.rewards import check_rewards

CHOSEN = "which rows train is what the loop decides"
BESIDE = "beside.jsonl"  # the rows of `harvest.beside`, without held-out prompts
ONLY = {  # of `harvest`: the methods that read a key
    "hint": ("star",),
    "quantiles": ("rest",),
    "gap": ("dpo",),
    "threshold": ("raft", "star"),
    "most": ("raft", "star", "rest"),
}


def check_selftrain(config: SelftrainStage) -> None:
    """Refuse what cannot work.

    Raises:
        ConfigError: with every problem found.
        RewardError: a reward function cannot be imported, or its `kwargs` do not fit.
        MissingDependencyError: a package that settings need is not installed.
    """
    policy = config.loop.method in POLICY
    problems = [*_models(config), *_data(config), *(_policy if policy else _preferences)(config)]

    def own() -> None:
        if problems:
            raise ConfigError(problems)

    stage = inner_stage(config)
    checks: list[Any] = [
        own,
        lambda: check_peft(config.peft, stage, config.model.path),
        lambda: check_frozen(config.model.freeze, config.model.path, stage),
        lambda: check_guards(first_training(config, Path(config.run.dir or ""))),
    ]
    if policy and config.reward:
        checks.append(lambda: check_rewards(config.reward))
    if stage == "dpo" and "loss_type" in config.trainer:
        given = config.trainer["loss_type"]
        checks.append(lambda: check_losses([given] if isinstance(given, str) else given))
    gather(*checks)
    check_packages(config.trainer, config.tracking.report_to)


def inner_stage(config: SelftrainStage) -> str:
    """The stage that trains a round."""
    return {"dpo": "dpo", "preferences": "reward"}.get(config.loop.method, "sft")


def policy_learner(config: SelftrainStage, run: Path) -> PolicyLearner:
    """What trains a policy: `align sft` or `align dpo` with the loop's settings.

    Args:
        config: of the loop.
        run: its directory, where the rows of `harvest.beside` lie.
    """
    names = {"model", "trainer", "peft", "guards", "tracking"}
    settings = config.model_dump(mode="json", include=names)
    beside = [{"path": str(run / BESIDE)}] if config.harvest.beside else []
    return PolicyLearner(inner_stage(config), settings, beside)


def reward_ensemble(config: SelftrainStage) -> RewardEnsemble:
    """What trains reward models: `align reward` with the loop's settings."""
    names = {"model", "trainer", "peft", "guards", "normalisation", "tracking"}
    settings = config.model_dump(mode="json", include=names)
    policy = config.normalisation.policy or config.model.path
    settings["normalisation"] |= {"policy": policy}
    return RewardEnsemble(settings, config.pseudo.members, config.run.seed)


def first_training(config: SelftrainStage, run: Path) -> TrainingStage:
    """The configuration of the first training, to have its trainer's arguments checked."""
    place, data = run / "rounds" / "001" / "fit", run / "rounds" / "001" / "train.jsonl"
    if config.loop.method in POLICY:
        return policy_learner(config, run).config(config.model.path, data, place, config.run.seed)
    return reward_ensemble(config).config(data, place, 0)


def _models(config: SelftrainStage) -> Iterator[Problem]:
    if processes() > 1:
        what = f"{processes()} processes were started, and a loop draws, keeps and decides in one."
        yield Problem("selftrain", what, "start it without `accelerate launch` or `torchrun`.")
    named = {"model.path": config.model.path}
    if config.loop.base is not None:
        named["loop.base"] = config.loop.base
    if config.normalisation.policy is not None:
        named["normalisation.policy"] = config.normalisation.policy
    for where, path in named.items():
        if fault := model_fault(path):
            yield Problem(where, f"{path} {fault[0]}", fault[1])
        elif is_classifier(path):
            what = f"{path} is a reward model, and a policy is expected."
            yield Problem(where, what, "name the policy it was trained from.")
    if config.loop.base is not None and config.loop.begins != "base":
        what = "is where `loop.start: base` begins, and rounds begin with the last."
        yield Problem("loop.base", what, "set loop.start=base, or remove it.")


def _data(config: SelftrainStage) -> Iterator[Problem]:
    given = config.data
    for name in ("augment", "balance", "curriculum", "sampler", "fold"):
        if getattr(given, name):
            yield Problem(f"data.{name}", f"is set, but {CHOSEN}.", "leave it out.")
    if given.batches != "random":
        yield Problem("data.batches", f"is {given.batches}, but {CHOSEN}.", "leave it out.")
    if not given.validation and not given.validation_fraction:
        what = "nothing is held out, and rounds are promoted by what is."
        yield Problem("data.validation_fraction", what, "set a fraction, or data.validation.")
    for index, source in enumerate(config.harvest.beside or []):
        yield from _absent(f"harvest.beside.{index}.path", source.path)


def _policy(config: SelftrainStage) -> Iterator[Problem]:
    method, harvest, rollout = config.loop.method, config.harvest, config.rollout
    if not config.reward:
        yield Problem("reward", f"{method} keeps answers by their reward.", "name one or more.")
    for name in ("pseudo", "audit", "normalisation"):
        if name in config.model_fields_set:
            what = f"is of loop.method: preferences, and the method is {method}."
            yield Problem(name, what, "remove it.")
    for key, methods in ONLY.items():
        if key in harvest.model_fields_set and method not in methods:
            what = f"is of {' and '.join(methods)}, and loop.method is {method}."
            yield Problem(f"harvest.{key}", what, "remove it.")
    if harvest.samples < 2 and (
        method == "dpo" or (method == "raft" and harvest.threshold is None)
    ):
        what = f"{method} chooses among several answers to a question, and 1 is drawn."
        yield Problem("harvest.samples", what, "set 2 or more.")
    for index, section in enumerate(config.reward):
        moving = "schedule" if section.schedule else section.normalise
        if isinstance(moving, str):
            what = f"{moving!r} makes an answer's reward depend on what was drawn beside it."
            fix = "thresholds need one scale: leave it out."
            yield Problem(f"reward.{index}", what, fix)
    if rollout.environment is not None:
        what = "rows are one answer to a question, and an environment plays episodes."
        yield Problem("rollout.environment", what, "remove it.")
    yield from check_rollout(rollout)


def _preferences(config: SelftrainStage) -> Iterator[Problem]:
    pseudo = config.pseudo
    if config.reward:
        what = "labels are given by the reward models that the loop trains."
        yield Problem("reward", what, "remove it.")
    for name in ("harvest", "rollout"):
        if name in config.model_fields_set:
            yield Problem(
                name, "is of a policy's methods, and the method is preferences.", "remove it."
            )
    for name in ("samples", "temperature"):
        if name in config.gate.model_fields_set:
            what = "is of answers, and a reward model is measured on people's pairs."
            yield Problem(f"gate.{name}", what, "remove it.")
    if config.loop.start == "last":
        what = "is `last`, but the teacher's weights are averaged over students of one start."
        yield Problem("loop.start", what, "leave it out: each round begins with the base.")
    if config.loop.base is not None:
        yield Problem("loop.base", "is of a policy's methods.", "name the start in model.path.")
    if config.model.quantization:
        what = f"{config.model.quantization}: a reward model is trained on whole weights."
        yield Problem("model.quantization", what, "leave it out; use peft.")
    if pseudo.path is None:
        what = "names no pairs that nobody compared."
        yield Problem("pseudo.path", what, "name a file with response_a and response_b.")
    else:
        yield from _absent("pseudo.path", pseudo.path)
    if (
        pseudo.stratum is None
        and {"balance"} & pseudo.model_fields_set
        and "class" in pseudo.balance
    ):
        what = "balances classes, but no column says what class a pair is of."
        yield Problem("pseudo.balance", what, "set pseudo.stratum, or leave class out.")
    store = config.audit.store
    if store is not None and not is_store(store):
        yield Problem(
            "audit.store", f"{store!r} is no store's URL.", "write sqlite:///feedback.db."
        )
    if config.audit.wait and not config.audit.share:
        yield Problem("audit.wait", "nothing is audited.", "set audit.share above 0.")


def _absent(where: str, path: str) -> Iterator[Problem]:
    """A file that is named and not there."""
    place = Path(path)
    if is_store(path) or place.exists():
        return
    if file_suffix(place) in READERS:
        yield Problem(where, missing(place))
    elif is_local(path):
        yield Problem(where, f"{path} does not exist.", "check the path.")
