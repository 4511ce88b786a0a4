"""The whole loop on the generated world: pretrain, SFT, feedback, reward model, DPO, PPO, report.

Every stage is the one the CLI runs, with a configuration file of its own (`configs/` beside this
file), so the quickstart is also the worked example. Only the annotators see the gold scorer before
the evaluation. A judge (`align.quickstart.judges`) fills the store with judgements, nothing else.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from align.config import STAGES, load_config
from align.engine.models import load_policy
from align.errors import ConfigError, Problem
from align.evaluate.reward_model import evaluate_reward_model
from align.evaluate.significance import seeds_interval
from align.quickstart.judges import JUDGES, Judge, human_judge, human_labels
from align.quickstart.person import LEAST_LABELS, belongs_to_person, held_out
from align.quickstart.pretrain import make_base_model
from align.quickstart.retention import GUARDS, guard_override, write_texts
from align.quickstart.world import World
from align.report import build_report
from align.rollout.transformers import TransformersSampler
from align.run import open_run, write_json
from align.stages.common import console
from feedback.agreement import majority_agreement, pairwise_agreement, position_bias
from feedback.schema import Comparison
from feedback.store import FeedbackStore
from reward.model import RewardModel
from reward.preferences import preference_rows

CONFIGS = Path(str(files("align.quickstart") / "configs"))
PAIRS = 4200  # prompts whose two sampled answers people compare
DEMONSTRATIONS = 1500
TEST_PROMPTS = 300


def run_quickstart(
    output: Path,
    *,
    seeds: Sequence[int] = (0,),
    judge: str = "simulated",
    labels: int | None = None,
    guard: str | None = None,
) -> Path:
    """Run everything and write `summary.json` beside the report; returns the report's path.

    Args:
        output: a folder; each seed has its own inside.
        seeds: one whole loop each, world and annotators included.
        judge: who compares answers: simulated, label-studio or human.
        labels: how many a human judge is to give; the default is `judges.ENOUGH`.
        guard: trains every policy a second time with it (`align.quickstart.retention.GUARDS`).

    Raises:
        ConfigError: no such judge or guard, no seed, a number of labels that cannot be, or a folder
            with labels or a server of a person.
    """
    problems = []
    if judge not in JUDGES:
        known = ", ".join(JUDGES)
        problems.append(Problem("--judge", f"{judge!r} is not available.", f"use {known}."))
    if guard is not None and guard not in GUARDS:
        what = f"{guard!r} is not available."
        problems.append(Problem("--guard", what, f"use {', '.join(GUARDS)}."))
    if not seeds:
        problems.append(Problem("--seeds", "is empty.", "give at least one number."))
    if len(set(seeds)) < len(seeds):
        problems.append(Problem("--seeds", "names a seed twice.", "give each once."))
    if labels is not None and (judge != "human" or not LEAST_LABELS <= labels <= PAIRS):
        what = f"is {labels}, and the judge is {judge!r}."
        fix = f"give {LEAST_LABELS} to {PAIRS}, with --judge human."
        problems.append(Problem("--labels", what, fix))
    stores = [output / f"seed-{seed}" / "data" / "feedback.db" for seed in seeds]
    kept = [store for store in stores if store.is_file() and human_labels(store)]
    if kept and judge != "human":
        what = f"{kept[0]} holds labels that a person made, and this run would replace them."
        problems.append(Problem("--output", what, "choose another folder."))
    served = [output / f"seed-{seed}" for seed in seeds]
    served = [folder for folder in served if belongs_to_person(folder)]
    if served and not kept and judge != "human":
        what = f"{served[0]} holds a server that a person labels at, and this run would replace it."
        problems.append(Problem("--output", what, "choose another folder."))
    if problems:
        raise ConfigError(problems)
    ask = JUDGES[judge]
    if labels is not None:
        ask = partial(human_judge, enough=labels)
    started = time.perf_counter()
    summaries, runs = [], []
    for seed in seeds:
        folder = output / f"seed-{seed}"
        summaries.append(run_seed(folder, seed, ask, guard))
        guarded = [f"{name}-{guard}" for name in ("sft", "dpo", "ppo") if guard]
        stages = ("sft", "reward", "dpo", "ppo", *guarded, "evaluate")
        runs += [folder / name for name in stages]
    summary = summarise(summaries)
    summary["seconds"] = round(time.perf_counter() - started, 1)
    write_json(output / "summary.json", summary)
    saved = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    page = build_report(
        runs,
        output / "report.html",
        title="Align quickstart",
        summary=saved,
        feedback=f"sqlite:///{stores[0]}",
    )
    for line in describe(summary):
        console.print(line, highlight=False)
    return page


def run_seed(folder: Path, seed: int, judge: Judge, guard: str | None = None) -> dict[str, Any]:
    """One whole loop; returns its summary."""
    seconds: dict[str, float] = {}
    world = World(seed)
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    base, sft = folder / "base", folder / "sft" / "model"
    with phase("pretrain", seconds):
        make_base_model(base, world, seed)
    with phase("sft", seconds):
        demonstrations = write_jsonl(data / "sft.jsonl", world.demonstrations(DEMONSTRATIONS))
        stage("sft", folder, seed, [f"model.path={base}", f"data.train={demonstrations}"])
    url = f"sqlite:///{data / 'feedback.db'}"
    with phase("feedback", seconds):
        # Labels that were not pulled yet are at the server, which the store must still know.
        if not human_labels(data / "feedback.db") and not belongs_to_person(folder):
            (data / "feedback.db").unlink(missing_ok=True)
        with FeedbackStore(url) as store:
            issue_pairs(store, sft, world, seed)
            judge(store, world, folder)
            comparisons = store.comparisons()
    validation = [c for c in comparisons if held_out(c.prompt)]
    judged = write_jsonl(data / "holdout.jsonl", preference_rows(validation, aggregate=False))
    policy = [f"model.path={sft}"]
    prompts = write_jsonl(data / "prompts.jsonl", world.prompts(PAIRS))
    asked = [f"data.train={prompts}", f"reward=[{{path: {folder / 'reward' / 'model'}}}]"]
    with phase("reward", seconds):
        stage("reward", folder, seed, [*policy, f"data.train={url}"])
    with phase("dpo", seconds):
        stage("dpo", folder, seed, [*policy, f"data.train={url}"])
    with phase("ppo", seconds):
        stage("ppo", folder, seed, [*policy, *asked])
    earlier, known = write_texts(data, world)
    models = {"sft": sft, "base": base} | {n: folder / n / "model" for n in ("dpo", "ppo")}
    if guard:
        with phase(guard, seconds):
            held = [guard_override(guard, earlier)]
            start = folder / f"sft-{guard}" / "model"
            given = [f"model.path={base}", f"data.train={demonstrations}"]
            stage("sft", folder, seed, [*given, *held], f"sft-{guard}")
            policy = [f"model.path={start}", *held]
            stage("dpo", folder, seed, [*policy, f"data.train={url}"], f"dpo-{guard}")
            stage("ppo", folder, seed, [*policy, *asked], f"ppo-{guard}")
        models |= {f"{n}-{guard}": folder / f"{n}-{guard}" / "model" for n in ("sft", "dpo", "ppo")}
    with phase("evaluate", seconds):
        test = write_jsonl(data / "test.jsonl", world.prompts(TEST_PROMPTS, "test"))
        listed = ", ".join(f"{name}: {path}" for name, path in models.items())
        retention = f"evaluate.retention={{data: {known}, before: base}}"
        given = [f"evaluate.models={{{listed}}}", f"data.train={test}", retention]
        stage("evaluate", folder, seed, given)
    evaluation = json.loads((folder / "evaluate" / "evaluation.json").read_text(encoding="utf-8"))
    return {
        "seed": seed,
        "win_rates": evaluation["win_rates"],
        "models": evaluation["models"],
        "reward_model": judge_reward_model(folder / "reward" / "model", judged, validation),
        "annotators": {
            "comparisons": len(comparisons),
            "consistency": vars(pairwise_agreement(comparisons)),
            "with_majority": {k: vars(v) for k, v in majority_agreement(comparisons).items()},
            "position_bias": {k: vars(v) for k, v in position_bias(comparisons).items()},
        },
        "seconds": seconds,
    }


def stage(
    name: str, folder: Path, seed: int, overrides: list[str], run_name: str | None = None
) -> None:
    """Run one stage with its quickstart configuration, as `align NAME` would."""
    given = [
        f"run.dir={folder / (run_name or name)}",
        f"run.seed={seed}",
        "run.overwrite=true",
        *overrides,
    ]
    config = load_config(STAGES[name], CONFIGS / f"{name}.yaml", given)
    with open_run(config, command=["align", name, *given]) as run:
        importlib.import_module(f"align.stages.{name}").run(config, run)


def issue_pairs(
    store: FeedbackStore, policy_path: Path, world: World, seed: int, count: int | None = None
) -> None:
    """Sample two answers to each of `count` training prompts (default: `PAIRS`).

    Those that differ and say something are issued.
    """
    policy, _, tokenizer = load_policy(policy_path, with_reference=False)
    sampler = TransformersSampler(policy, tokenizer, max_new_tokens=64, batch_size=256, seed=seed)
    rows = world.prompts(PAIRS if count is None else count)
    rollout = sampler([row["prompt"] for row in rows], group_size=2)
    answers = [completion[-1]["content"] for completion in rollout.completions]  # type: ignore[index]
    for index, row in enumerate(rows):
        first, second = answers[2 * index : 2 * index + 2]
        if first != second and first.strip() and second.strip():
            store.add_pair(
                row["prompt"], first, second, "sft", "sft", {"facts": row["facts"]}, seed=seed
            )


def judge_reward_model(path: Path, rows: Path, validation: list[Comparison]) -> dict[str, Any]:
    """The reward model on single judgements of held-out pairs, beside people's own consistency."""
    model = RewardModel.load(path, normalise=False)
    report = evaluate_reward_model(
        [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()],
        lambda prompts, completions, **columns: model.score(prompts, completions),
    )
    consistency = pairwise_agreement(validation)
    return report.as_dict() | {"annotator_consistency": vars(consistency)}


def summarise(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds with t-intervals, and every seed's own figures."""
    rates: dict[str, list[float]] = {}
    for summary in summaries:
        for entry in summary["win_rates"]:
            rates.setdefault(f"{entry['a']} vs {entry['b']}", []).append(entry["rate"])
    lost: dict[str, list[float]] = {}
    for summary in summaries:
        for name, figures in summary["models"].items():
            if "forgotten_nats" in figures:
                lost.setdefault(name, []).append(figures["forgotten_nats"])
    accuracy = [s["reward_model"]["accuracy"] for s in summaries]
    agree = [s["reward_model"]["annotator_consistency"]["rate"] for s in summaries]
    return {
        "seeds": [summary["seed"] for summary in summaries],
        "win_rates": {name: over_seeds(values, share=True) for name, values in rates.items()},
        "forgotten_nats": {name: over_seeds(values) for name, values in lost.items()},
        "reward_model_accuracy": over_seeds(accuracy, share=True),
        "annotator_consistency": over_seeds(agree, share=True),
        "runs": summaries,
    }


def over_seeds(values: list[float], *, share: bool = False) -> dict[str, Any]:
    """Mean of one number over seeds; with two seeds or more, its 95% t-interval.

    That of a `share` is cut off at 0 and 1.
    """
    mean = sum(values) / len(values)
    if len(values) < 2:
        return {"mean": mean, "low": None, "high": None, "values": values}
    interval = seeds_interval(values, share=share)
    return {"mean": interval.value, "low": interval.low, "high": interval.high, "values": values}


def describe(summary: dict[str, Any]) -> Iterator[str]:
    """The summary in a few lines; a single seed's intervals are over prompts."""
    for run in summary["runs"]:
        for entry in run["win_rates"]:
            interval = f"[{entry['low']:.3f}, {entry['high']:.3f}]"
            yield (
                f"seed {run['seed']}: {entry['a']} wins {entry['rate']:.3f} {interval} against "
                f"{entry['b']} by the gold scorer, n = {entry['n']}"
            )
        for name, figures in run["models"].items():
            if "forgotten_nats" in figures and name != "base":
                interval = f"[{figures['forgotten_low']:+.3f}, {figures['forgotten_high']:+.3f}]"
                yield (
                    f"seed {run['seed']}: {name} forgot {figures['forgotten_nats']:+.3f} {interval}"
                    " nats a token of the base model's text"
                )
        model = run["reward_model"]
        yield (
            f"seed {run['seed']}: the reward model agrees with a held-out judgement "
            f"{model['accuracy']:.3f} of the time, one annotator with another "
            f"{model['annotator_consistency']['rate']:.3f}"
        )


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write rows and return the path."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


@contextmanager
def phase(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Time a phase and say so."""
    console.rule(name)
    started = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - started, 1)
    console.print(f"{name}: {seconds[name]} s", highlight=False)
