"""Reward models on real preferences: Align's beside TRL's RewardTrainer and a length-only rule.

    python -m benchmarks.reward_models --json reward_models.json

Three sets, split by prompt anew for every seed: hh_harmless (pairs), gsm8k_solutions (a correct
solution against a wrong one; and all four as a ranking with ties) and pandalm_votes (three votes a
pair). A small Llama, tokenizer and weights made from the training prompts' texts alone, is the
start of every arm: TRL's RewardTrainer as its documentation shows it, `align reward` with the same
batch size, learning rate and epochs, and `align reward` with an objective that TRL lacks (four
heads, rankings, soft labels). Measured on held-out pairs: accuracy, log-loss and calibration error;
and whether doubt finds the pairs that a model gets wrong (AUROC): a small margin, and of the four
heads their spread, and their spread over the margin (how likely its sign is wrong).
Calibration: a temperature fitted on one half of the held-out prompts, measured on the other.

Differences to TRL are paired by seed. A run that the file of figures holds is not repeated. Leaves
out anything that a pretrained model would add: these figures say that two trainers agree, not how
good reward models are.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sklearn.metrics import roc_auc_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from align.data.rows import plain_text, prompt_key
from align.errors import DataError
from align.evaluate.significance import seeds_interval
from align.run import write_json
from benchmarks.paired import machine, versions
from benchmarks.preference_sets import (
    DATA,
    LONGEST,
    SETS,
    Row,
    arms_of,
    fitting,
    held_out,
    start_model,
)
from benchmarks.small_runs import reward_model, write_rows
from reward.calibrate import Temperature
from reward.calibration_check import check_calibration
from reward.metrics import accuracy, calibration_error, fit_length_rule, length_margins, log_loss
from reward.model import RewardModel

Json = dict[str, Any]
SETTINGS = ("warm_up", "epochs", "learning_rate")  # what every run must share


def by_trl(start: Path, rows: Sequence[Row], folder: Path, seed: int, given: Any) -> RewardModel:
    """TRL's RewardTrainer as its documentation shows it."""
    tokenizer = AutoTokenizer.from_pretrained(start)
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(start, num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
    args = RewardConfig(
        output_dir=str(folder),
        num_train_epochs=given.epochs,
        learning_rate=given.learning_rate,
        per_device_train_batch_size=16,
        max_length=LONGEST,
        warmup_steps=10,
        seed=seed,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    data = Dataset.from_list(list(rows))
    trainer = RewardTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    return RewardModel(model.eval(), tokenizer)


def by_align(
    start: Path, data: Path, folder: Path, seed: int, given: Any, more: Sequence[str]
) -> RewardModel:
    """A reward model by `align reward`."""
    overrides = [
        "data.deduplicate=none",
        f"trainer.num_train_epochs={given.epochs}",
        f"trainer.learning_rate={given.learning_rate}",
        f"trainer.max_length={LONGEST}",
        *more,
    ]
    trained = reward_model(start, data, folder, seed, overrides)
    return RewardModel.load(trained, normalise=False)


def measure(model: RewardModel, rows: Sequence[Row], seed: int) -> Json:
    """Held-out figures of one model."""
    prompts = [row["prompt"] for row in rows]
    sides = [[row[side] for row in rows] for side in ("chosen", "rejected")]
    heads = [model.heads_scores(prompts, side) for side in sides]
    each = (heads[0] - heads[1]).double().numpy()  # (K, n)
    margins = each.mean(axis=0)
    keys = [prompt_key(prompt) for prompt in prompts]
    share = accuracy(margins, keys)
    found: Json = {
        "accuracy": share.value,
        "log_loss": log_loss(margins),
        "ece": calibration_error(margins, seed=seed).ece,
        "n": len(rows),
    }
    with suppress(DataError):  # no temperature helps margins that point nowhere
        calibration, check = check_calibration(margins, groups=keys, seed=seed)
        assert isinstance(calibration, Temperature)
        found |= {"ece_before": check.before.ece.value, "ece_after": check.after.ece.value}
        found |= {"ece_of_calibrated": check.after.expected, "temperature": calibration.temperature}
    wrong = margins <= 0
    if 0 < wrong.sum() < len(wrong):
        doubts = {"margin_auroc": -np.abs(margins)}
        if len(each) > 1:
            spread = each.std(axis=0)
            doubts |= {"disagreement_auroc": spread, "sign_auroc": spread / np.abs(margins)}
        found |= {name: float(roc_auc_score(wrong, doubt)) for name, doubt in doubts.items()}
    return found


def run_set(name: str, seed: int, given: Any) -> Json:
    """All arms of one set and seed."""
    arms = arms_of(name, given.data)
    judged = [row for row in arms["trl"][0] if held_out(row, seed)]
    found: Json = {"seed": seed, "set": name, "arms": {}}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        known = [row for row in arms["trl"][0] if not held_out(row, seed)]
        start = start_model(folder, known, seed, given.warm_up)
        tokenizer = AutoTokenizer.from_pretrained(start)
        known, judged = fitting(known, tokenizer), fitting(judged, tokenizer)
        lengths = [
            [[len(plain_text(row[side])) for row in part] for side in ("chosen", "rejected")]
            for part in (known, judged)
        ]
        rule = fit_length_rule(*lengths[0])
        found["length_only"] = accuracy(length_margins(*lengths[1], rule)).value
        for arm, (rows, more) in arms.items():
            if given.arms and arm not in given.arms:
                continue
            mine = fitting([row for row in rows if not held_out(row, seed)], tokenizer)
            started = time.perf_counter()
            if arm == "trl":
                model = by_trl(start, mine, folder / "trl", seed, given)
            else:
                place = folder / arm.replace(", ", "-").replace(" ", "-")
                data = write_rows(folder / f"{place.name}.jsonl", mine)
                model = by_align(start, data, place, seed, given, more)
            found["arms"][arm] = measure(model, judged, seed)
            found["arms"][arm]["seconds"] = round(time.perf_counter() - started, 1)
            print(f"{name} seed {seed} {arm}: {json.dumps(found['arms'][arm])}", flush=True)
    return found


def summarise(runs: Sequence[Json]) -> Json:
    """Means over seeds with intervals, and paired differences to TRL."""
    table: Json = {}
    for name in dict.fromkeys(run["set"] for run in runs):
        mine = [run for run in runs if run["set"] == name]
        table[name] = {"length_only": over([run["length_only"] for run in mine])}
        for arm in mine[0]["arms"]:
            figures = mine[0]["arms"][arm]
            table[name][arm] = {
                key: over([run["arms"][arm][key] for run in mine])
                for key in figures
                if all(key in run["arms"][arm] for run in mine)
            }
            for key in ("accuracy", "log_loss") if "trl" in mine[0]["arms"] else ():
                table[name][arm][f"{key} minus trl"] = over(
                    [run["arms"][arm][key] - run["arms"]["trl"][key] for run in mine]
                )
    return table


def over(values: Sequence[float]) -> Json:
    """Mean and interval over seeds; of one seed, its value."""
    if len(values) < 2:
        return {"value": float(np.mean(values))}
    return seeds_interval(values).as_dict()


def main() -> None:
    """Run, print and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the three sets")
    parser.add_argument("--sets", default=",".join(SETS), help="with commas")
    parser.add_argument("--seeds", default="0,1,2", help="with commas")
    parser.add_argument("--arms", nargs="*", help="default: all")
    parser.add_argument("--warm-up", type=int, default=100, help="steps of SFT before")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings = {key: str(value) for key, value in vars(given).items() if key in SETTINGS}
    runs = earlier_runs(given.json, settings)
    for name in given.sets.split(","):
        for seed in map(int, given.seeds.split(",")):
            if (name, seed) not in {(run["set"], run["seed"]) for run in runs}:
                runs.append(run_set(name, seed, given))
                if given.json:
                    report = {"summary": summarise(runs), "runs": runs, "settings": settings}
                    report |= {"device": machine()}
                    report |= {"versions": versions(["torch", "transformers", "trl"])}
                    write_json(given.json, report)
    print(json.dumps(summarise(runs), indent=1))


def earlier_runs(path: Path | None, settings: Json) -> list[Json]:
    """What the file of figures holds already.

    Raises:
        SystemExit: its settings are others.
    """
    if path is None or not path.is_file():
        return []
    earlier = json.loads(path.read_text(encoding="utf-8"))
    if earlier["settings"] != settings:
        raise SystemExit(
            f"{path}: its runs were made with {earlier['settings']}, not with {settings}. Fix: "
            "take another --json, or the same settings."
        )
    runs: list[Json] = earlier["runs"]
    return runs


if __name__ == "__main__":
    main()
