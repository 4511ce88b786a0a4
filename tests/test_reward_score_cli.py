"""`align reward score`: the command itself."""

from __future__ import annotations

import shutil
from io import StringIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from transformers import LlamaForSequenceClassification

from align.cli import main
from align.reward_cli import score as command
from reward.model import Normalisation, RewardModel, write_normalisation
from reward.pool import Progress

ROWS = [{"prompt": "Where is it? ", "completion": "There" + "!" * i} for i in range(7)]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, tiny_tokenizer, tiny_classifier):
    folder = tmp_path_factory.mktemp("models") / "judge"
    model = tiny_classifier(num_hidden_layers=1)
    write_normalisation(model, Normalisation(0.2, 3.0, 8))
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def source(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "in.parquet")
    return tmp_path / "in.parquet"


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(["reward", "score", *map(str, arguments)])
    return ended.value.code


def rewards(path):
    return pq.read_table(path)["reward"].to_pylist()


def test_scores_are_the_models(model_dir, source, tmp_path, capsys):
    prompts, answers = [r["prompt"] for r in ROWS], [r["completion"] for r in ROWS]
    for raw in (False, True):
        target = tmp_path / f"{raw}.parquet"
        options = ["--raw"] if raw else []
        assert run(model_dir, source, target, "--chunk-rows", 3, *options) in (0, None)
        found = capsys.readouterr()
        assert f"{raw}.parquet: 7 rows, 7 answers scored in" in found.out
        assert "7 of 7 rows, " in found.err
        assert "rows/s, 0:00:00 left" in found.err
        model = RewardModel.load(model_dir, normalise=not raw)
        assert rewards(target) == pytest.approx(model(prompts, answers), abs=1e-5)
    assert run(model_dir, source, target, "--raw", "--chunk-rows", 3, "--resume") in (0, None)
    assert "7 rows, 7 of them by earlier processes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"source": "gone.parquet"}, 3, "gone.parquet: no such file"),
        ({"source": "wrong.parquet"}, 3, "its columns (text) are none of answers"),
        ({"target": "there.parquet"}, 3, "there.parquet exists"),
        ({"target": "out.csv"}, 3, "a file that ends in .parquet"),
        ({"model": "nowhere/model"}, 2, "no reward model"),
    ],
)
def test_bad_input_is_answered_before_a_model_loads(
    model_dir, source, tmp_path, capsys, monkeypatch, change, code, message
):
    monkeypatch.setattr(RewardModel, "load", None)
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "wrong.parquet")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "there.parquet")
    names = {"source": "in.parquet", "target": "out.parquet"} | change
    model = change.get("model", model_dir)
    assert run(model, tmp_path / names["source"], tmp_path / names["target"]) == code
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out.parquet.parts").exists()


PAIRS = [
    {"prompt": "Where is it? ", "chosen": "There" + "!" * i, "rejected": "Who knows" + "?" * i}
    for i in range(7)
]


def test_pairs_get_the_calibrated_probability(model_dir, tmp_path, capsys):
    from scipy.special import expit

    from reward.calibrate import Isotonic, Temperature, save_calibration

    pq.write_table(
        pa.Table.from_pylist([*PAIRS, PAIRS[0] | {"chosen": None}]), tmp_path / "p.parquet"
    )
    model = Path(shutil.copytree(model_dir, tmp_path / "model"))
    source, target = tmp_path / "p.parquet", tmp_path / "out.parquet"
    assert run(model, source, target, "--calibrated") == 4
    assert "there is no calibration" in " ".join(capsys.readouterr().err.split())
    save_calibration(model / "uncertainty", Temperature(2.5))
    raw = RewardModel.load(model, normalise=False)
    sides = [
        raw([r["prompt"] for r in PAIRS], [r[k] for r in PAIRS]) for k in ("chosen", "rejected")
    ]
    wanted = expit(np.subtract(*sides) / 2.5)
    assert np.ptp(wanted) > 0.01  # so that a wrong one shows
    for options in ([], ["--raw"]):  # the scale of the rewards is no matter
        assert run(model, source, target, "--calibrated", "--overwrite", *options) in (0, None)
        table = pq.read_table(target)
        assert table.column_names[-3:] == ["reward_chosen", "reward_rejected", "probability"]
        found = table["probability"].to_pylist()
        assert found[:-1] == pytest.approx(wanted, abs=1e-5)
        assert found[-1] is None
    save_calibration(model / "uncertainty", Isotonic((-1.0, 1.0), (0.2, 0.8)))
    for options in (["--calibrated"], []):
        assert run(model, source, target, "--raw", "--resume", *options) == 3
        assert "was begun with another calibration" in " ".join(capsys.readouterr().err.split())


def test_single_answers_have_no_probability(model_dir, source, tmp_path, capsys):
    assert run(model_dir, source, tmp_path / "out.parquet", "--calibrated") == 3
    assert "a calibration is of margins" in " ".join(capsys.readouterr().err.split())


def test_a_model_without_statistics_is_refused(model_dir, source, tmp_path, capsys):
    bare = tmp_path / "bare"
    shutil.copytree(model_dir, bare)  # its tokenizer
    model = LlamaForSequenceClassification.from_pretrained(model_dir)
    del model.config.align_reward
    model.save_pretrained(bare)
    assert run(bare, source, tmp_path / "out.parquet") == 2
    assert "no normalisation statistics" in " ".join(capsys.readouterr().err.split())


def test_lines_come_now_and_then_and_a_bar_on_a_terminal(monkeypatch):
    clock = iter([100.0, 101.0, 111.0, 112.0])
    monkeypatch.setattr(command.time, "monotonic", lambda: next(clock))
    console = Console(file=StringIO(), width=200)
    show = command.lines(console)
    for rows in (100, 200, 300, 7400):
        show(Progress(rows, 7400, rows, rows / 100))
    assert console.file.getvalue().splitlines() == [
        "100 of 7400 rows, 100.0 rows/s, 0:01:13 left",
        "300 of 7400 rows, 100.0 rows/s, 0:01:11 left",
        "7400 of 7400 rows, 100.0 rows/s, 0:00:00 left",
    ]
    monkeypatch.undo()
    terminal = Console(file=StringIO(), force_terminal=True, width=100)
    with command.showing(10, terminal) as progress:
        progress(Progress(5, 10, 5, 2.0))
    assert "5/10" in terminal.file.getvalue()
    assert "2.5 rows/s" in terminal.file.getvalue()


def test_summary():
    done = Progress(10, 10, 4, 2.0, resumed=8, empty=1)
    assert command.summary(done, "out.parquet") == (
        "out.parquet: 10 rows, 8 of them by earlier processes, 4 answers scored in 2 s, "
        "1 without a reward (no text, or longer than the context)"
    )
