"""`align reward calibrate` on a trained model, and the diagram drawn of what it saves."""

from __future__ import annotations

import json
import shutil

import pytest

from align.cli import main
from align.report.reliability import before_and_after
from reward.calibrate import load_calibration
from reward.laplace import LastLayerLaplace
from reward.model import CONFIG_KEY, RewardModel
from reward.posterior_reward import STATE
from reward.score import head_parameters


@pytest.fixture
def own(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "model", ignore=shutil.ignore_patterns(STATE))


@pytest.mark.parametrize("options", [[], ["--method", "isotonic"], ["--laplace"]])
def test_calibrate(options, own, pairs_file, capsys):
    main_ok(["reward", "calibrate", str(own), "--data", str(pairs_file), *options])
    out = capsys.readouterr().out
    state = json.loads((own / STATE / "calibration.json").read_text())
    measured = state["measured"]
    assert measured["fitted"] + measured["pairs"] == len(pairs_file.read_text().splitlines())
    for part in ("before", "after"):
        ece = measured[part]["ece"]
        assert f"{part:<6} ECE {ece['value']:.4f} [{ece['low']:.4f}, {ece['high']:.4f}]" in out
    calibration = load_calibration(own / STATE)
    assert calibration.method == ("isotonic" if "isotonic" in options else "temperature")
    assert (own / STATE / "laplace.safetensors").exists() == ("--laplace" in options)
    if "--laplace" in options:
        assert "laplace: doubt marks errors with AUROC" in out
        head = head_parameters(RewardModel.load(own).model)
        assert LastLayerLaplace.load(own / STATE, head).pairs == measured["fitted"]
    page = before_and_after(state)
    assert page.count("<svg") == 2
    assert f"After ({calibration.method}): ECE" in page


def test_laplace_changes_no_margin(own, pairs_file, capsys):
    """Scores from features, or from the model: the same calibration."""
    arguments = ["reward", "calibrate", str(own), "--data", str(pairs_file)]
    main_ok(arguments)
    first = load_calibration(own / STATE).temperature
    main_ok([*arguments, "--laplace"])
    assert load_calibration(own / STATE).temperature == pytest.approx(first, rel=1e-4)
    capsys.readouterr()


@pytest.fixture
def ranked_right(own, pairs_file, tmp_path):
    """The pairs as the model ranks them: what a model gets of the pairs that trained it."""
    scorer, file = RewardModel.load(own, normalise=False), tmp_path / "right.jsonl"
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    with file.open("w") as stream:
        for row in rows:
            pair = [row["chosen"], row["rejected"]]
            worse, better = scorer.score([row["prompt"]] * 2, pair)
            chosen, rejected = reversed(pair) if better > worse else pair
            stream.write(json.dumps(row | {"chosen": chosen, "rejected": rejected}) + "\n")
    return file


def test_laplace_is_fitted_where_no_temperature_fits(own, ranked_right, capsys):
    arguments = ["reward", "calibrate", str(own), "--data", str(ranked_right)]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 3
    assert "--method isotonic" in " ".join(capsys.readouterr().err.split())
    main_ok([*arguments, "--laplace"])
    captured = capsys.readouterr()
    said = " ".join(captured.err.split())
    assert "no calibration was fitted: all" in said
    assert "ranked right" in said
    assert str(own / STATE / "laplace.safetensors") in captured.out
    assert not (own / STATE / "calibration.json").exists()


@pytest.mark.parametrize("command", ["score", "serve"])
def test_what_does_without_statistics_is_named_by_the_command(command, own, tmp_path, capsys):
    file = own / "config.json"
    saved = {key: value for key, value in json.loads(file.read_text()).items() if key != CONFIG_KEY}
    file.write_text(json.dumps(saved))
    (tmp_path / "data.jsonl").write_text('{"prompt": "p", "completion": "c"}\n')
    data = [str(tmp_path / "data.jsonl"), str(tmp_path / "out.parquet")]
    arguments = data if command == "score" else ["--port", "0"]
    with pytest.raises(SystemExit) as ended:
        main(["reward", command, str(own), *arguments])
    said = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2, said
    assert "which saves them, or add --raw." in said


@pytest.mark.parametrize(
    ("model", "data", "code", "message"),
    [
        ("nowhere/model", "pairs", 2, "no reward model"),
        ("own", "nothing.jsonl", 3, "nothing.jsonl"),
        ("own", "few", 3, "leaves nothing on one side"),
    ],
)
def test_mistakes(model, data, code, message, own, pairs_file, tmp_path, capsys):
    few = tmp_path / "few.jsonl"
    few.write_text(pairs_file.read_text().splitlines()[0] + "\n")
    files = {"pairs": pairs_file, "few": few}
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "reward",
                "calibrate",
                str(own) if model == "own" else model,
                "--data",
                str(files.get(data, data)),
            ]
        )
    assert ended.value.code == code
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (own / STATE).exists()


def test_nothing_is_drawn_of_nothing():
    assert before_and_after({}) == ""
    assert before_and_after({"method": "temperature", "measured": None}) == ""


def main_ok(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code in (0, None)


def test_bad_rows_are_refused_or_left_out(own, pairs_file, tmp_path, capsys):
    file = tmp_path / "bad.jsonl"
    bad = json.dumps({"prompt": "Say: ", "chosen": "", "rejected": "mud"})
    file.write_text(pairs_file.read_text() + bad + "\n")
    arguments = ["reward", "calibrate", str(own), "--data", str(file)]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 3
    assert "1 of" in capsys.readouterr().err
    main_ok([*arguments, "--bad-rows", "quarantine"])
    assert (own / STATE / "calibration.json").is_file()
    capsys.readouterr()


def test_long_pairs_are_left_out_and_counted(own, pairs_file, tmp_path, capsys):
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    lines = pairs_file.read_text()
    long = {"prompt": "Say: ", "chosen": "sun " * 80, "rejected": "mud"}
    file = tmp_path / "long.jsonl"
    file.write_text(lines + json.dumps(long) + "\n")
    main_ok(["reward", "calibrate", str(own), "--data", str(file)])
    assert "1 pairs longer than the model's 64 tokens left out" in capsys.readouterr().err
    measured = json.loads((own / STATE / "calibration.json").read_text())["measured"]
    assert measured["fitted"] + measured["pairs"] == len(lines.splitlines())
    file.write_text(json.dumps(long) + "\n")
    with pytest.raises(SystemExit) as ended:
        main(["reward", "calibrate", str(own), "--data", str(file)])
    assert ended.value.code == 3
    assert "all 1 pairs are longer" in capsys.readouterr().err


def test_a_place_for_the_state_is_looked_for_before_the_model_loads(
    own, pairs_file, capsys, monkeypatch
):
    monkeypatch.setattr(RewardModel, "load", None)
    (own / STATE).write_text("a file")
    with pytest.raises(SystemExit) as ended:
        main(["reward", "calibrate", str(own), "--data", str(pairs_file)])
    assert ended.value.code == 2
    assert "is no folder" in " ".join(capsys.readouterr().err.split())


def test_a_page_of_both_diagrams(own, pairs_file, tmp_path, capsys):
    page = tmp_path / "new" / "page.html"
    command = ["reward", "calibrate", str(own), "--data", str(pairs_file), "--html"]
    main_ok([*command, str(page)])
    assert str(page) in capsys.readouterr().out
    text = page.read_text()
    assert text.count("<svg") == 2
    assert "<h1>Calibration of " in text
    assert "After (temperature): ECE" in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    with pytest.raises(SystemExit) as ended:
        main([*command, str(page / "below.html")])
    assert ended.value.code == 2
    assert "is no folder" in " ".join(capsys.readouterr().err.split())
