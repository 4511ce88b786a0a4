"""KTO's stage beside TRL's own trainer, its loss by hand, and the order and weight of its rows."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from safetensors.torch import load_file

from align.config.load import load_config
from align.config.stages import STAGES
from align.engine.head import completion_logprobs
from align.engine.models import load_causal_lm
from align.engine.tokenizer import load_tokenizer
from align.engine.trainers import KTOTrainer
from align.errors import ConfigError, DataError
from align.run import open_run
from align.stages import kto
from align.stages.guard_source import Source

STEPS = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "seed": 42}


def run_stage(tmp_path, policy_dir, rows: Dataset, name: str = "run", *overrides: str) -> Any:
    file = tmp_path / f"{name}.jsonl"
    rows.to_json(file)
    given = [f"run.dir={tmp_path / name}", f"model.path={policy_dir}", f"data.train={file}"]
    given += ["data.validation_fraction=0", "tracking.report_to=[none]", "run.seed=42"]
    given += [f"trainer.{key}={value}" for key, value in STEPS.items() if key != "seed"]
    config = load_config(STAGES["kto"], None, [*given, *overrides])
    with open_run(config) as opened:
        kto.run(config, opened)
        return opened


@pytest.fixture(scope="module")
def marked(preference_rows) -> Dataset:
    rows = []
    for number, row in enumerate(preference_rows):
        good = number % 2 == 0
        answer = row["chosen" if good else "rejected"]
        rows.append({"prompt": row["prompt"], "completion": answer, "label": good})
    return Dataset.from_list(rows)


@pytest.mark.parametrize("loss", kto.LOSS_TYPES)
def test_the_stage_trains_as_trl_does(loss, tmp_path, policy_dir, marked):
    run_stage(tmp_path, policy_dir, marked, "run", f"trainer.loss_type={loss}")
    model, reference = (load_causal_lm(str(policy_dir)) for _ in range(2))
    args = trl.KTOConfig(
        output_dir=str(tmp_path / "trl"), loss_type=loss, bf16=False, use_cpu=True,
        gradient_checkpointing=False, report_to=[], save_strategy="no", disable_tqdm=True,
        max_length=128, **STEPS,
    )  # fmt: skip
    theirs = trl.KTOTrainer(
        model=model,
        ref_model=reference,
        args=args,
        train_dataset=kto.unpaired(marked, 42),
        processing_class=load_tokenizer(policy_dir),
    )
    theirs.train()
    start = load_file(policy_dir / "model.safetensors")
    ours = load_file(tmp_path / "run" / "model" / "model.safetensors")
    weights = dict(theirs.model.named_parameters())
    assert max(float((ours[n] - start[n]).abs().max()) for n in ours) > 1e-3
    for name, value in ours.items():
        assert torch.allclose(weights[name], value, atol=2e-5), name


def test_the_loss_is_equation_7(tmp_path, tiny_llama, tiny_tokenizer, marked):
    """1 - sigmoid(beta (r - z)) of good answers, 1 - sigmoid(beta (z - r)) of bad ones."""
    model, reference = tiny_llama(seed=1), tiny_llama(seed=2)
    args = trl.KTOConfig(
        output_dir=str(tmp_path), bf16=False, use_cpu=True, gradient_checkpointing=False,
        report_to=[], per_device_train_batch_size=6, max_length=96, beta=0.05,
        desirable_weight=2.0, undesirable_weight=0.5,
    )  # fmt: skip
    trainer = KTOTrainer(
        model=model, ref_model=reference, args=args, train_dataset=marked,
        processing_class=tiny_tokenizer,
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(6)])

    def ratios(prefix: str) -> torch.Tensor:
        ids, attention = batch[f"{prefix}input_ids"], batch[f"{prefix}attention_mask"]
        mask = batch[f"{prefix}completion_mask"][:, 1:].float()
        found = [(completion_logprobs(m, ids, attention, mask)[0] * mask).sum(1)
                 for m in (model, reference)]  # fmt: skip
        return found[0] - found[1]

    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, copy.copy(batch)).item()
        z, r = ratios("KL_").mean().clamp(min=0), ratios("")
    good = batch["label"]
    expected = torch.where(
        good, 2.0 * (1 - torch.sigmoid(0.05 * (r - z))), 0.5 * (1 - torch.sigmoid(0.05 * (z - r)))
    )
    assert len(set(good.tolist())) == 2
    assert loss == pytest.approx(expected.mean().item(), abs=1e-6)


def test_comparisons_become_two_answers_each_and_rows_are_mixed(preference_rows):
    rows = kto.unpaired(Dataset.from_list(preference_rows), 7)
    assert len(rows) == 2 * len(preference_rows)
    assert sum(rows["label"]) == len(preference_rows)
    first = rows["label"][: len(preference_rows)]
    assert 4 < sum(first) < len(preference_rows) - 4  # TRL alone has every good one first
    again, other = (kto.unpaired(Dataset.from_list(preference_rows), s) for s in (7, 8))
    assert rows["prompt"] == again["prompt"] != other["prompt"]
    answers = {str(row["chosen"]) for row in preference_rows}
    assert all((str(row["completion"]) in answers) == row["label"] for row in rows)


@pytest.mark.parametrize(
    ("good", "bad", "weight", "said"),
    [
        (10, 10, 1.0, None),
        (12, 10, 1.0, None),
        (20, 10, 1.0, "undesirable_weight=2"),
        (10, 30, 1.0, "desirable_weight=3"),
        (10, 30, 3.0, None),
        (10, 20, 2.0, None),
        (20, 10, 2.0, "undesirable_weight=4"),
    ],
)
def test_labels_that_weigh_unequally_are_said_with_the_weight(good, bad, weight, said):
    class Noted:
        def __init__(self) -> None:
            self.warnings: list[str] = []
            self.kept: dict[str, Any] = {}

        def warn(self, line: str) -> None:
            self.warnings = [line]

        def update(self, **values: Any) -> None:
            self.kept = values

    args = trl.KTOConfig(output_dir="unused", desirable_weight=weight, bf16=False, use_cpu=True)
    noted = Noted()
    kto.weigh(Dataset.from_dict({"label": [True] * good + [False] * bad}), args, noted)  # type: ignore[arg-type]
    assert noted.kept["desirable"] == good
    assert math.isclose(noted.kept["weight_ratio"], weight * good / bad)
    assert (said is None and not noted.warnings) or said in noted.warnings[0]


def test_what_cannot_work_is_refused_all_at_once(tmp_path, policy_dir, marked):
    wrong = ["trainer.loss_type=bco", "trainer.undesirable_weight=0"]
    with pytest.raises(ConfigError) as found:
        run_stage(tmp_path, policy_dir, marked, "wrong", *wrong)
    text = str(found.value)
    assert "'bco' is no loss type" in text
    assert "trainer.undesirable_weight: 0.0 is not above 0" in text
    alone = ["trainer.per_device_train_batch_size=1", "trainer.train_sampling_strategy=random"]
    with pytest.raises(ConfigError) as found:
        run_stage(tmp_path, policy_dir, marked, "alone", *alone)
    assert "pairs each prompt with another row's answer" in str(found.value)
    assert "trainer.train_sampling_strategy" in str(found.value)
    order = ["data.curriculum={difficulty: length}", "data.sampler=[{by: source}]"]
    order.append("data.batches=grouped")
    with pytest.raises(ConfigError, match=r"data.curriculum(.|\n)*data.sampler(.|\n)*data.batches"):
        run_stage(tmp_path, policy_dir, marked, "order", *order)
    with pytest.raises(DataError, match="every training row is marked good"):
        run_stage(tmp_path, policy_dir, marked.filter(lambda row: row["label"]), "good")


def test_bad_answers_count_by_their_weight():
    class Noted:
        said = ""

        def warn(self, line: str) -> None:
            self.said = line

        def update(self, **values: Any) -> None:
            pass

    args = trl.KTOConfig(output_dir="unused", undesirable_weight=0.5, bf16=False, use_cpu=True)
    for bad, said in ((20, ""), (10, "undesirable_weight=1")):
        noted = Noted()
        kto.weigh(Dataset.from_dict({"label": [True] * 10 + [False] * bad}), args, noted)  # type: ignore[arg-type]
        assert (not noted.said) if not said else said in noted.said


def test_comparisons_that_name_no_better_answer_are_left_out(tmp_path, policy_dir, preference_rows):
    rows = [dict(row) for row in preference_rows[:12]]
    for number, row in enumerate(rows):
        row["soft_label"] = 0.5 if number % 3 == 0 else 1.0
        row["weight"] = 0.0 if number == 1 else 1.0
    opened = run_stage(tmp_path, policy_dir, Dataset.from_list(rows), "ties")
    assert (opened.record["desirable"], opened.record["undesirable"]) == (7, 7)
    assert any("5 comparisons name no better answer" in line for line in opened.record["warnings"])
    for row in rows:
        row["soft_label"] = 0.5
    with pytest.raises(DataError, match="no comparison names a better answer"):
        run_stage(tmp_path, policy_dir, Dataset.from_list(rows), "all")


def test_a_neighbours_answer_stays_within_the_context(tmp_path, policy_dir, marked, monkeypatch):
    """Context 128: a long prompt with another row's long answer is cut there."""
    seen: list[Any] = []
    original = kto.build_trainer

    def build(kind, **given):
        seen.append(given["args"].max_length)
        return original(kind, **given)

    monkeypatch.setattr(kto, "build_trainer", build)
    run_stage(tmp_path, policy_dir, marked, "cut", "trainer.max_length=null")
    assert seen == [128]


def test_a_row_without_a_neighbour_is_left_out_and_frozen_weights_stay(
    tmp_path, policy_dir, marked
):
    rows = marked.select(range(13))
    opened = run_stage(tmp_path, policy_dir, rows, "odd", "model.freeze=[embed]")
    assert opened.record["desirable"] + opened.record["undesirable"] == 12
    assert any("no neighbour" in line for line in opened.record["warnings"])
    start = load_file(policy_dir / "model.safetensors")
    ours = load_file(opened.path / "model" / "model.safetensors")
    frozen = [name for name in start if "embed" in name]
    assert frozen
    assert all(torch.equal(ours[name], start[name]) for name in frozen)
    assert any(not torch.equal(ours[name], start[name]) for name in start)


def test_the_start_is_compared_with_the_reference(tmp_path, policy_dir, marked, monkeypatch):
    seen: list[Any] = []
    monkeypatch.setattr(kto, "check_margin", seen.append)
    run_stage(tmp_path, policy_dir, marked, "compared")
    assert len(seen) == 1


def test_a_faulty_comparison_is_named(tmp_path, policy_dir, preference_rows):
    rows = [dict(row) for row in preference_rows]
    rows[3]["chosen"] = rows[3]["rejected"]
    with pytest.raises(DataError, match="chosen equals rejected"):
        run_stage(tmp_path, policy_dir, Dataset.from_list(rows), "faulty")
    votes = ["data.labels=votes"]
    with pytest.raises(ConfigError, match=r"data\.labels"):
        run_stage(tmp_path, policy_dir, Dataset.from_list(rows), "votes", *votes)


def test_guards_remember_good_answers_alone(tmp_path, policy_dir, marked, monkeypatch):
    seen: list[Any] = []
    original = kto.finish_guards

    def finish(guards, sections, trainer, model, source: Source, rows, run):
        seen.append(list(rows))
        return original(guards, sections, trainer, model, source, rows, run)

    monkeypatch.setattr(kto, "finish_guards", finish)
    guard = "guards=[{type: replay, strength: 0.5, remember: true, samples: 5}]"
    opened = run_stage(tmp_path, policy_dir, marked, "guarded", guard)
    assert (opened.path / "guards" / "replay-0.safetensors").is_file()
    assert len(seen[0]) == 12
    assert all(row["label"] for row in seen[0])
