"""`trainer.precompute_ref_log_probs`: the values, their cache, what must not come from it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from align.engine.reference_cache import read_reference, reference_key, write_reference
from align.stages import reference

FAST = "trainer.learning_rate=0.05"  # B begins at 0 and moves slowly
ONCE = "trainer.precompute_ref_log_probs=true"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    place = tmp_path / "cache"
    monkeypatch.setenv("ALIGN_REFERENCE_CACHE", str(place))
    return place


@pytest.fixture
def computed(monkeypatch):
    """How many batches the reference was run on."""
    seen = []
    real = reference._computed

    def counted(trainer, rows, size):
        for batch in real(trainer, rows, size):
            seen.append(size)
            yield batch

    monkeypatch.setattr(reference, "_computed", counted)
    return seen


@pytest.fixture
def dpo(cli, stage, tmp_path):
    def run(name, *overrides):
        result = cli(*stage("dpo", f"run.dir={tmp_path / name}", *overrides))
        assert result.code == 0, result.text
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        return [row["loss"] for row in rows if "loss" in row], result.text, rows

    return run


def evaluated(rows):
    return [row["eval_loss"] for row in rows if "eval_loss" in row]


@pytest.mark.parametrize("peft", [(), ("peft.method=lora", "peft.kwargs={r: 4}", FAST)])
def test_it_trains_as_with_the_reference_in_every_step(dpo, computed, peft):
    each, _, rows = dpo("each", *peft)
    assert not computed
    once, _, found = dpo("once", ONCE, *peft)
    assert computed
    assert once == pytest.approx(each, abs=2e-5)
    assert evaluated(found) == pytest.approx(evaluated(rows), abs=2e-5)
    assert max(abs(loss - each[0]) for loss in each) > 1e-4  # it does train


def test_a_second_run_computes_nothing_and_is_the_same(dpo, computed, folder):
    first, said, rows = dpo("first", ONCE)
    assert "reference of train" not in said
    count = len(computed)
    again, said, found = dpo("again", ONCE)
    assert len(computed) == count
    assert "reference of train" in said
    assert again == first
    assert evaluated(found) == evaluated(rows)
    other, _, _ = dpo("other", ONCE, "trainer.beta=0.5", "run.seed=3")  # a sweep: the same rows
    assert len(computed) == count
    assert other != first
    assert len(list(folder.iterdir())) == 2  # train, validation


@pytest.mark.parametrize("change", ["model", "rows", "batch"])
def test_what_it_depends_on_is_computed_anew(dpo, computed, change, copy_model, world, tmp_path):
    dpo("first", ONCE)
    count = len(computed)
    if change == "model":
        model = copy_model()
        tensors = load_file(model / "model.safetensors")
        tensors["model.norm.weight"] *= 1.5
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
        more = f"model.path={model}"
    elif change == "rows":
        rows = [json.loads(line) for line in world.prefs.read_text().splitlines()]
        rows[0]["chosen"], rows[0]["rejected"] = rows[0]["rejected"], rows[0]["chosen"]
        file = tmp_path / "swapped.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        more = f"data.train={file}"
    else:
        more = "trainer.precompute_ref_batch_size=3"
    dpo("second", ONCE, more)
    assert len(computed) > count


@pytest.mark.parametrize("damage", ["cut", "nan", "short"])
def test_a_damaged_cache_is_computed_again(dpo, computed, folder, damage):
    first, *_ = dpo("first", ONCE)
    count = len(computed)
    for file in folder.iterdir():
        if damage == "cut":
            file.write_bytes(file.read_bytes()[:20])
            continue
        tensors = load_file(file)
        values = tensors["chosen"]
        values = values[:-1] if damage == "short" else values * float("nan")
        save_file(tensors | {"chosen": values}, file)
    again, *_ = dpo("again", ONCE)
    assert len(computed) == 2 * count
    assert again == first
    third, *_ = dpo("third", ONCE)  # and mended
    assert len(computed) == 2 * count
    assert third == first


def test_a_reference_that_moves_is_refused(cli, stage):
    result = cli(*stage("dpo", ONCE, "trainer.sync_ref_model=true"))
    assert result.code == 2
    assert "trainer.precompute_ref_log_probs: is computed once" in result.text


def test_ids_that_join_alike_have_other_keys():
    one = [[[1, 2], [3], [4]]]
    assert reference_key(["a"], one) == reference_key(["a"], one)
    assert reference_key(["a"], one) != reference_key(["a"], [[[1], [2, 3], [4]]])
    assert reference_key(["a"], one) != reference_key(["b"], one)


def test_what_is_written_is_read(tmp_path):
    file = tmp_path / "deep" / "x.safetensors"
    assert read_reference(file, 2) is None
    write_reference(file, torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    chosen, rejected = read_reference(file, 2)
    assert chosen.tolist() == [1.0, 2.0]
    assert rejected.tolist() == [3.0, 4.0]
    assert read_reference(file, 3) is None
    assert [one.name for one in file.parent.iterdir()] == ["x.safetensors"]
