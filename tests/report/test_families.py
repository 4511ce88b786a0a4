"""Which runs are seeds of one thing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from align.report.collect import collect
from align.report.evidence import seed_label
from align.report.families import display_name, make_families, short_path, trace
from align.report.notices import find_notices
from align.report.pipeline import draw_pipeline
from align.report.reward import reward_evidence


def change_config(run: Path, key: str, value: object) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["trainer"][key] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def test_seeds_of_one_pipeline_fold_together(pipeline, tmp_path):
    for seed in (3, 1, 2):
        pipeline(seed=seed)
    families = make_families(collect([tmp_path / "runs"]))
    assert [family.label for family in families] == [
        "SFT",
        "Reward model",
        "DPO",
        "PPO",
        "Evaluation",
    ]
    assert all(family.seeds == [1, 2, 3] for family in families)


def test_a_changed_setting_makes_another_family_named_by_it(pipeline, tmp_path):
    pipeline(seed=1)
    change_config(pipeline(seed=2)["dpo"], "beta", 0.5)
    families = make_families(collect([tmp_path / "runs"]))
    labels = [family.label for family in families if family.stage == "dpo"]
    assert labels == ["DPO · beta default", "DPO · beta 0.5"]


def test_folds_are_one_family_and_no_seeds(pipeline, tmp_path):
    made = pipeline(seed=7)["reward"]
    for repeat in range(2):
        for fold in range(3):
            place = tmp_path / "runs" / "folds" / f"repeat-{repeat}" / f"fold-{fold}"
            shutil.copytree(made, place)
            right = {"accuracy": [1.0, 1.0, 0.7][fold], "n": 9, "log_loss": 0.1 + repeat + fold}
            record = json.loads((place / "run.json").read_text())
            record |= {"seed": 7 + repeat, "results": {"validation": right}}
            (place / "run.json").write_text(json.dumps(record))
            config = yaml.safe_load((place / "config.yaml").read_text())
            config["data"] = config.get("data", {}) | {
                "fold": f"{fold}/3",
                "split_seed": repeat,
            }
            (place / "config.yaml").write_text(yaml.safe_dump(config))
    config = yaml.safe_load((made / "config.yaml").read_text())
    config["data"] = config.get("data", {}) | {"fold": None, "split_seed": 0}
    (made / "config.yaml").write_text(yaml.safe_dump(config))
    runs = collect([made, tmp_path / "runs" / "folds"])
    families = make_families(runs)
    rewards = [family for family in families if family.stage == "reward"]
    assert [family.label for family in rewards] == ["Reward model", "Reward model · 3 folds"]
    folds = rewards[1]
    assert (folds.folds, len(folds.one_per_seed)) == (3, 6)
    assert seed_label(folds.runs[0]) == "seed 7, fold 0/3"
    said = [one.message for one in find_notices(runs, families, trace(families), [])]
    assert not any("are not independent" in message or "Two seeds" in message for message in said)
    assert sum("6 runs of a cross-validation, not 6 seeds" in message for message in said) == 1
    (evidence,) = [one for one in reward_evidence(families, []) if "folds" in one.label]
    accuracy = evidence.figures["accuracy"]
    assert (evidence.seeds, accuracy.over, len(accuracy.dots)) == (6, "folds", 6)
    assert accuracy.high == 1  # Student's t goes on to 1.06


def test_a_setting_of_nothing_is_named(pipeline, tmp_path):
    change_config(pipeline(seed=1)["dpo"], "note", None)
    change_config(pipeline(seed=2)["dpo"], "note", 0.5)
    families = make_families(collect([tmp_path / "runs"]))
    labels = [family.label for family in families if family.stage == "dpo"]
    assert labels == ["DPO · note none", "DPO · note 0.5"]


def test_evaluations_of_differently_trained_policies_are_no_seeds(pipeline, tmp_path):
    pipeline(seed=1)
    change_config(pipeline(seed=2)["dpo"], "beta", 0.5)
    families = make_families(collect([tmp_path / "runs"]))
    assert [len(f.runs) for f in families if f.stage == "evaluate"] == [1, 1]
    # PPO does not descend from DPO, so its seeds stay together.
    assert [len(f.runs) for f in families if f.stage == "ppo"] == [2]


def test_of_runs_with_one_seed_the_last_completed_counts(pipeline, tmp_path, edit):
    first = pipeline(seed=1)
    again = pipeline(seed=1, folder="again")
    edit(again["ppo"] / "run.json", status="failed")
    families = make_families(collect([tmp_path / "runs"]))
    ppo = next(family for family in families if family.stage == "ppo")
    assert len(ppo.runs) == 2
    assert [run.path for run in ppo.one_per_seed] == [first["ppo"]]


def test_lineage_has_an_edge_per_parent_and_names_what_is_lost(pipeline, tmp_path, edit):
    paths = pipeline()
    gone = {"role": "value", "path": "elsewhere/critic/model", "run": "elsewhere/critic"}
    again = {"role": "reference", "path": str(paths["sft"] / "model"), "run": str(paths["sft"])}
    guard = {"role": "guard", "path": "elsewhere/fisher.safetensors", "run": None}
    parents = collect([paths["ppo"]])[0].parents
    edit(paths["ppo"] / "run.json", parents=[*parents, gone, again, guard])
    lineage = trace(make_families(collect([tmp_path / "runs"])))
    into_ppo = {(e.source, e.role) for e in lineage.edges if e.target == "ppo"}
    assert into_ppo == {("sft", "model"), ("reward", "reward"), ("source:critic", "value")}
    assert lineage.nodes["source:critic"].lost
    assert not lineage.nodes["source:base"].lost
    assert lineage.nodes["dpo"].data == ["comparisons.db"]
    assert lineage.nodes["ppo"].data == ["fisher.safetensors"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("ppo", "PPO"),
        ("sft-merged", "SFT-merged"),
        ("dpo2", "DPO2"),
        ("base", "Base"),
        ("mistral", "mistral"),
        ("dpotter", "dpotter"),
        ("", ""),
    ],
)
def test_display_names(name, shown):
    assert display_name(name) == shown


def test_short_paths():
    assert short_path("runs/a/model") == "a"
    assert short_path("org/name") == "name"
    assert short_path("") == ""


def test_what_sets_a_box_apart_stands_beside_nothing_it_would_cover(pipeline, tmp_path):
    pipeline(seed=1)
    other = pipeline(seed=2)
    for stage in ("reward", "dpo"):
        change_config(other[stage], "warmup_steps", 17)
    picture = str(draw_pipeline(trace(make_families(collect([tmp_path / "runs"])))))
    notes = re.findall(r'<text x="162" y="(\d+)" class="note">(warm[^<]*)</text>', picture)
    assert {words for line, words in notes if line == "26"} == {"warmup_steps…"}  # beside PPO
    assert {words for line, words in notes if line == "46"} == {"warm…"}  # below Reward model
