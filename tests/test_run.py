"""Run directories: what protects one, what starts over, and how one ends."""

from __future__ import annotations

import json

import pytest

from align.config import SFTStage, load_config
from align.errors import DataError, Interrupted, RunError
from align.run import find_run, fingerprint, open_run, read_jsonl, write_json


@pytest.fixture
def config(tmp_path):
    def make(*overrides: str) -> SFTStage:
        given = ["model.path=m", "data.train=d.jsonl", f"run.dir={tmp_path / 'run'}"]
        return load_config(SFTStage, None, [*given, *overrides])

    return make


def record(folder) -> dict:
    return json.loads((folder / "run.json").read_text())


def finish(config, folder) -> None:
    with open_run(config) as run:
        run.log({"loss": 1.0}, step=1)


def test_a_run_records_what_made_it(config, tmp_path):
    folder = tmp_path / "run"
    with open_run(config("run.seed=5"), command=["align", "sft"]) as run:
        assert record(folder)["status"] == "running"
        run.warn("careful")
        run.warn("careful")
        run.finish(steps=3)
    found = record(folder)
    assert (found["status"], found["seed"], found["stage"]) == ("completed", 5, "sft")
    assert found["warnings"] == ["careful"]
    assert found["results"] == {"steps": 3}
    assert {"align", "torch", "transformers", "trl"} <= set(found["versions"])
    assert found["finished"] >= found["started"]
    assert "validation_fraction" in (folder / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("boom"), "failed"),
        (Interrupted("SIGTERM"), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_the_way_it_ended_is_written(config, tmp_path, error, status):
    with pytest.raises(type(error)), open_run(config()):
        raise error
    assert record(tmp_path / "run")["status"] == status


def test_a_run_that_trained_is_protected(config, tmp_path):
    folder = tmp_path / "run"
    finish(config(), folder)
    with pytest.raises(RunError, match=r"already holds a sft run .completed.*--resume"):
        finish(config(), folder)
    finish(config("run.overwrite=true"), folder)
    assert len(read_jsonl(folder / "metrics.jsonl")) == 1


def test_a_run_that_failed_before_training_may_be_started_again(config, tmp_path):
    with pytest.raises(DataError), open_run(config("data.train=tpyo.jsonl")):
        raise DataError("tpyo.jsonl: no such file.")
    finish(config(), tmp_path / "run")
    assert record(tmp_path / "run")["status"] == "completed"


@pytest.mark.parametrize("overrides", [[], ["run.overwrite=true"]])
def test_files_that_are_no_run_are_never_touched(config, tmp_path, overrides):
    thesis = tmp_path / "run" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years")
    with pytest.raises(RunError, match=r"holds thesis.txt and no run"):
        finish(config(*overrides), tmp_path / "run")
    assert thesis.read_text() == "years"
    assert list(thesis.parent.iterdir()) == [thesis]


def test_resume(config, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(RunError, match="holds no run"), open_run(config(), resume=True):
        pass
    assert not folder.exists()  # asking leaves nothing behind
    with pytest.raises(RunError, match=r"run.dir is not set"):
        open_run(config("run.dir=null"), resume=True).__enter__()
    same = ["trainer.logging_steps=1"]
    finish(config(*same), folder)
    with open_run(
        config("tracking.report_to=none", "run.overwrite=true", *same), resume=True
    ) as run:
        assert len(run.record["resumed"]) == 1
    assert (folder / "metrics.jsonl").is_file()
    with pytest.raises(RunError) as caught:
        open_run(config("data.split_seed=3", *same, "trainer.max_steps=9"), resume=True).__enter__()
    assert "(data.split_seed: 0 -> 3; trainer.max_steps: 'unset' -> 9)" in str(caught.value)
    (folder / "run.json").write_text("{")
    with pytest.raises(RunError, match=r"run.json is damaged"):
        open_run(config(), resume=True).__enter__()


def test_a_dry_run_leaves_no_trace(config, tmp_path):
    with open_run(config(), dry_run=True) as run:
        run.log({"loss": 1.0})
        assert run.path.is_dir()
    assert not run.path.exists()
    assert not (tmp_path / "run").exists()
    finish(config(), tmp_path / "run")
    before = sorted(p.name for p in (tmp_path / "run").iterdir())
    with open_run(config("run.overwrite=true"), dry_run=True):
        pass
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == before


def test_lineage_names_the_run_a_path_lies_in(config, tmp_path):
    finish(config(), tmp_path / "run")
    assert find_run(tmp_path / "run" / "model") == str(tmp_path / "run")
    assert find_run(tmp_path) is None


def test_fingerprints_follow_content(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text("a")
    first = fingerprint(file)
    file.write_text("b")
    assert len({first, fingerprint(file), fingerprint(tmp_path / "nothing")}) == 3


def test_json_holds_no_nan(tmp_path):
    write_json(tmp_path / "x.json", {"a": float("nan"), "b": [float("inf"), 1.0]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [None, 1.0]}
