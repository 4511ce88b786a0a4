"""The page: self-contained, equal to the JSON files, safe, and never broken by what is missing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import statistics
import subprocess

import pytest

from align.errors import DataError, RunError
from align.report import build_report
from align.report.build import MAX_BYTES


def test_the_page_loads_nothing(pipeline, page, tmp_path):
    pipeline()
    made = page(tmp_path / "runs")
    assert made.open == []
    for tag, values in made.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form"), tag
        assert not values.get("src")
        assert (values.get("href") or "#").startswith("#")
    assert not re.search(r"@import|url\(", made.source)
    for script in made.scripts:
        assert not re.search(r"fetch\(|XMLHttpRequest|import\(|WebSocket|sendBeacon", script)
    assert len(made.source.encode()) < MAX_BYTES


def test_only_our_script_may_run(pipeline, page, tmp_path):
    pipeline()
    made = page(tmp_path / "runs")
    metas = [values["content"] for tag, values in made.elements if "http-equiv" in values]
    digest = base64.b64encode(hashlib.sha256(made.scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in metas[0]
    assert "default-src 'none'" in metas[0]
    assert not [name for _, values in made.elements for name in values if name.startswith("on")]


def test_links_within_the_page_lead_somewhere_and_ids_are_unique(pipeline, page, tmp_path):
    pipeline()
    made = page(tmp_path / "runs")
    targets = {values["href"][1:] for tag, values in made.elements if tag == "a"}
    assert targets <= set(made.ids)
    assert len(made.ids) == len(set(made.ids))


def test_figures_are_those_of_the_json_files(pipeline, page, read, tmp_path):
    paths = pipeline()
    saved = read(paths["evaluate"] / "evaluation.json")
    figures = page(tmp_path / "runs").figures
    for row in saved["win_rates"]:
        key = f"win_rates.{row['a']}.{row['b']}.{row['judge']}"
        for name in ("rate", "wins", "ties", "losses", "n", "score_difference"):
            assert figures[f"{key}.{name}"] == row[name], name
        assert figures[f"{key}.p_value"] == row["p_adjusted"]
    best = max((r for r in saved["win_rates"] if r["judge"] == "gold"), key=lambda r: r["rate"])
    assert figures[f"headline.win_rates.{best['a']}.sft.gold"] == best["rate"]
    for model, values in saved["models"].items():
        for name, value in values.items():
            if isinstance(value, float) and not name.endswith(("_low", "_high")):
                assert figures[f"models.{model}.{name}"] == value
    reward = saved["reward_model"]
    for name in ("accuracy", "log_loss", "ece", "auc", "n"):
        assert figures[f"reward_model.{name}"] == reward[name]
    assert figures["reward_model.length_baseline"] == reward["length_baseline"]["accuracy"]
    logged = (paths["ppo"] / "metrics.jsonl").read_text().splitlines()
    last = [json.loads(line) for line in logged if "kl/k3" in line][-1]
    assert figures["curve.ppo.kl/k3"] == last["kl/k3"]
    logged = (paths["sft"] / "metrics.jsonl").read_text().splitlines()
    assert figures["curve.sft.eval_loss"] == json.loads(logged[-2])["eval_loss"]


def test_several_seeds_are_averaged_and_each_is_shown(pipeline, page, read, tmp_path):
    files = [pipeline(seed=seed)["evaluate"] / "evaluation.json" for seed in (1, 2, 3)]
    rates = [
        next(r["rate"] for r in read(file)["win_rates"] if (r["a"], r["judge"]) == ("ppo", "gold"))
        for file in files
    ]
    made = page(tmp_path / "runs")
    assert made.figures["win_rates.ppo.sft.gold.rate"] == pytest.approx(statistics.mean(rates))
    for seed, rate in zip((1, 2, 3), rates, strict=True):
        assert made.figures[f"win_rates.ppo.sft.gold.seed {seed}.rate"] == rate
    assert "mean of 3 seeds, n = 200 each" in made.text
    embedded = json.loads(made.scripts[-1])
    row = next(r for r in embedded["win_rates"] if (r["a"], r["judge"]) == ("ppo", "gold"))
    assert list(row["seeds"].values()) == rates
    assert row["over"] == "seeds"
    seed_dots = [values for tag, values in made.elements if values.get("class") == "seed"]
    assert len(seed_dots) >= 3 * 4


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'><svg onload=alert(3)>"


def test_hostile_texts_stay_texts(pipeline, page, read, edit, tmp_path):
    paths = pipeline()
    file = paths["evaluate"] / "evaluation.json"
    saved = read(file)
    saved["samples"][0] |= {"prompt": HOSTILE, "scores": {}}
    saved["samples"][0]["completions"] = {HOSTILE: HOSTILE}
    saved["samples"][1]["prompt"] = [{"role": HOSTILE, "content": HOSTILE}]
    saved["win_rates"][0]["judge"] = HOSTILE
    saved["models"][HOSTILE] = {"length_mean": 3.0}
    saved["extra"] = {"words": HOSTILE}
    edit(file, **saved)
    edit(
        paths["ppo"] / "run.json",
        error=HOSTILE,
        device=HOSTILE,
        warnings=[HOSTILE],
        command=[HOSTILE],
        status=HOSTILE,
    )
    (paths["ppo"] / "config.yaml").write_text(f"stage: ppo\nnote: {json.dumps(HOSTILE)}\n")
    with (paths["ppo"] / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({"step": 1, HOSTILE: 1.0}) + "\n")
        stream.write(json.dumps({"step": 2, HOSTILE: 2.0}) + "\n")
    made = page(tmp_path / "runs", title=HOSTILE, summary={HOSTILE: HOSTILE})
    assert made.open == []
    assert sum(tag == "script" for tag, _ in made.elements) == 2  # ours and the data
    assert not [tag for tag, _ in made.elements if tag == "img"]
    assert not [name for _, values in made.elements for name in values if name.startswith("on")]
    assert HOSTILE in made.text
    assert json.loads(made.scripts[-1])["summary"] == {HOSTILE: HOSTILE}


TRAINED = ("config.yaml", "metrics.jsonl", "data_card.json")
FILES = [
    *((stage, name) for stage in ("sft", "reward", "dpo", "ppo") for name in TRAINED),
    ("evaluate", "config.yaml"),
    ("evaluate", "evaluation.json"),
]


@pytest.mark.parametrize(("stage", "name"), FILES)
@pytest.mark.parametrize("how", ["missing", "torn", "wrong"])
def test_a_missing_or_torn_file_never_breaks_the_page(pipeline, page, tmp_path, stage, name, how):
    file = pipeline(steps=12)[stage] / name
    if how == "missing":
        file.unlink()
    elif how == "torn":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] + b"\xff\xfe")
    else:
        file.write_text('["not", {"what": "was"}, "expected"]\n')
    made = page(tmp_path / "runs")
    assert made.open == []
    assert name in made.text or how == "torn"


@pytest.mark.parametrize("stage", ["sft", "evaluate"])
def test_an_unreadable_run_json_never_breaks_the_page(pipeline, page, tmp_path, stage):
    (pipeline()[stage] / "run.json").write_text('{"stage": "s')
    made = page(tmp_path / "runs")
    assert "run.json cannot be read" in made.text


WRONG = [None, "text", 3, [1, None], {"a": None}, [{"a": []}]]


@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_values_of_the_wrong_kind_never_break_the_page(pipeline, page, read, edit, tmp_path, value):
    paths = pipeline(steps=12)
    for key in read(paths["evaluate"] / "evaluation.json"):
        shutil.copy(paths["evaluate"] / "evaluation.json", tmp_path / "kept.json")
        edit(paths["evaluate"] / "evaluation.json", **{key: value})
        assert page(tmp_path / "runs").open == []
        shutil.copy(tmp_path / "kept.json", paths["evaluate"] / "evaluation.json")
    saved = read(paths["evaluate"] / "evaluation.json")
    for part in ("win_rates", "samples"):
        rows = [dict.fromkeys(saved[part][0], value), *saved[part]]
        edit(paths["evaluate"] / "evaluation.json", **{part: rows})
    wrong = dict.fromkeys(saved["reward_model"], value)
    edit(paths["evaluate"] / "evaluation.json", reward_model=wrong, models={"sft": value})
    for name in ("run.json", "data_card.json"):
        whole = read(paths["dpo"] / name)
        edit(paths["dpo"] / name, **{key: value for key in whole if key != "stage"})
    assert page(tmp_path / "runs").open == []


def test_a_run_without_an_evaluation(pipeline, page):
    made = page(pipeline()["sft"])
    assert "Not judged yet" in made.text
    assert "No evaluation is among these runs" in made.text
    assert "No samples are recorded" in made.text
    assert "curve.sft.loss" in made.figures


def test_samples_of_training_runs_are_shown(pipeline, page):
    path = pipeline()["sft"]
    rows = [{"prompt": "How?", "before": "no idea", "after": "like so"}]
    rows.append({"prompt": "Why?", "completions": {"base": "hm", "sft": "hence"}})
    rows.append({"prompt": "Who?", "completion": "me", "score": 0.25})
    (path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = page(path)
    assert all(word in made.text for word in ("no idea", "like so", "hence", "Who?", "0.25"))


def test_a_heavy_run_stays_below_the_limit(pipeline, page, read, edit, tmp_path):
    paths = pipeline(steps=600)
    sample = {"prompt": "p" * 9000, "completions": {"sft": "s" * 9000, "ppo": "q" * 9000}}
    edit(paths["evaluate"] / "evaluation.json", samples=[sample] * 400)
    with (paths["ppo"] / "metrics.jsonl").open("a") as stream:
        for step in range(3000):
            row = {f"extra/m{i}": step * 0.1234567 * i for i in range(40)}
            stream.write(json.dumps({"step": step} | row) + "\n")
    made = page(tmp_path / "runs")
    assert len(made.source.encode()) < MAX_BYTES
    assert "of 400 recorded samples fit on this page" in made.text
    assert "Long series are thinned" in made.text


def test_where_the_page_goes(pipeline, tmp_path):
    path = pipeline()["sft"]
    assert build_report([path], tmp_path) == tmp_path / "report.html"
    assert build_report([path], tmp_path / "a" / "b.html").is_file()
    assert not list(tmp_path.glob(".*.tmp"))
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write the report .*Fix"):
        build_report([path], tmp_path / "file" / "report.html")


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(DataError, match="at least one run directory"):
        build_report([], tmp_path / "r.html")
    with pytest.raises(RunError, match="does not exist"):
        build_report([tmp_path / "nowhere"], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_title_and_summary_are_printed(pipeline, page):
    made = page(pipeline()["sft"], title="Help desk", summary={"gold": {"ppo": 0.7812}})
    assert "Help desk" in made.text
    assert "0.7812" in made.source
    assert json.loads(made.scripts[-1])["summary"] == {"gold": {"ppo": 0.7812}}


@pytest.mark.integration
def test_the_script_runs_in_a_browser(pipeline, page, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    pipeline()
    page(tmp_path / "runs")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --dump-dom "
    flags += "--disable-background-networking --disable-component-update --disable-sync "
    flags += f"--enable-logging=stderr --user-data-dir={tmp_path / 'profile'}"
    url = (tmp_path / "out" / "report.html").as_uri()
    done = subprocess.run(
        [browser, *flags.split(), url], capture_output=True, text=True, timeout=480, check=True
    )
    assert "1–4 of 24" in done.stdout  # the pager is the script's work
    assert 'data-controls="curves" hidden' not in done.stdout
    assert "CONSOLE" not in done.stderr
