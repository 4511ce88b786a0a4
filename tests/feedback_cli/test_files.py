"""`align feedback import`, `export` and `agreement`: what they print, and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align.cli import main
from feedback.labelstudio.tasks import task_data
from feedback.records import new_item
from feedback.schema import Comparison
from feedback.store import FeedbackStore

ROW = {"prompt": "p", "response_a": "x", "response_b": "y", "label": "a"}


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """`run("import", "file")`: exit code, output and error, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = 0
        try:
            main(["feedback", *arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, captured.out.strip(), captured.err.strip()

    return call


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["import", "rowz.jsonl"], 3, "No such file or directory. Fix: did you mean rows.jsonl?"),
        (["import", "."], 3, ". is a folder. Fix: name a file in it."),
        (["import", "rows"], 3, "rows: no suffix is not a known kind of feedback file."),
        (["import", "empty.jsonl"], 3, "empty.jsonl: holds no rows."),
        (["import", "empty.json"], 3, "empty.json: holds no rows."),
        (["import", "empty.csv"], 3, "empty.csv: holds no rows."),
        (["import", "rows.jsonl", "--format", "stars"], 2, "--format: 'stars' is unknown."),
        (["import", "rows.jsonl", "--format", "hh"], 3, "Fix: mend them, or set them aside"),
        (["import", "rows.jsonl", "--store", "x"], 3, "'x' is not a database URL."),
        (["export", "out.jsonl", "--store", "sqlite:///none.db"], 3, "no such file none.db."),
        (["agreement", "--store", "sqlite:///none.db"], 3, "no such file none.db."),
        (["annotators", "--store", "sqlite:///none.db"], 3, "no such file none.db."),
        (["status", "--store", "sqlite:///none.db"], 3, "no such file none.db."),
        (["push", "--store", "sqlite:///none.db"], 3, "no such file none.db."),
        (["pull", "--store", "sqlite:///none.db"], 3, "no such file none.db."),
        (["agreement", "--store", "sqlite:///nobody.db"], 3, "no judgements of pairs yet. Fix:"),
        (["annotators", "--store", "sqlite:///nobody.db"], 3, "no judgements of pairs yet. Fix:"),
        (["push", "--store", "sqlite:///nobody.db"], 2, "LABEL_STUDIO_API_KEY: is not set."),
        (["status", "--store", "sqlite:///nobody.db"], 10, "no project yet (known: none). Fix:"),
    ],
)
def test_mistakes_end_in_one_clear_error(run, arguments: list[str], code: int, expected: str):
    for name in ("empty.jsonl", "empty.json", "empty.csv"):
        Path(name).write_text("")
    Path("rows.jsonl").write_text(json.dumps(ROW) + "\n")
    FeedbackStore("sqlite:///nobody.db").close()
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    assert expected in err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert not Path("none.db").exists()
    assert not Path("feedback.db").exists()  # the default store is not made by a mistake


def test_an_import_counts_judgements_skips_and_rows_set_aside(run):
    item = new_item("pair", "p", ("x", "y"))
    choice = {
        "from_name": "pref",
        "to_name": "chat",
        "type": "choices",
        "value": {"choices": ["a1"]},
    }
    common = {"completed_by": 1, "updated_at": "2026-01-02T03:04:05Z", "lead_time": 1.0}
    annotations = [
        common | {"id": 1, "was_cancelled": False, "result": [choice]},
        common | {"id": 2, "was_cancelled": True, "result": []},
        common | {"id": 3, "was_cancelled": False, "result": [{"hello": "x"}]},
    ]
    task = {"id": 1, "project": 1, "data": task_data(item, item.id), "annotations": annotations}
    Path("export.json").write_text(json.dumps([task]))
    assert run("import", "export.json")[0] == 3
    code, out, err = run("import", "export.json", "--quarantine")
    assert code == 0
    assert out == ("export.json: 1 judgements, 1 of them new; 1 skips, 1 of them new; 1 set aside")
    assert err.startswith("export.json:1: the result does not fit the page")
    again = run("import", "export.json", "--quarantine")[1]
    assert "1 judgements, 0 of them new; 1 skips, 0 of them new" in again
    with FeedbackStore("sqlite:///feedback.db", create=False) as store:
        assert [event["kind"] for event in store.history()] == ["annotation", "skip"]


def test_an_export_comes_back(run):
    Path("rows.jsonl").write_text(json.dumps(ROW) + "\n")
    assert run("import", "rows.jsonl")[1] == "rows.jsonl: 1 judgements, 1 of them new"
    assert run("export", "out.csv") == (0, "out.csv: 1 judgements", "")
    assert run("import", "out.csv", "--store", "sqlite:///copy.db")[0] == 0
    assert "1 judgements of 1 pairs" in run("agreement", "--store", "sqlite:///copy.db")[1]


def test_annotators_are_held_to_gold(run):
    """Answers known beforehand come first; what people say of the same pairs is compared."""
    pairs = [{"prompt": f"p{n}", "response_a": "x", "response_b": "y"} for n in range(4)]
    gold = [pair | {"label": "a", "created_at": "2026-01-01T00:00:00Z"} for pair in pairs]
    said = [
        pair | {"label": "b" if n == 0 else "a", "annotator": "ann"} for n, pair in enumerate(pairs)
    ]
    for name, rows in (("gold.jsonl", gold), ("said.jsonl", said)):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("import", "gold.jsonl", "--gold")[0] == 0
    assert run("import", "said.jsonl")[0] == 0
    code, out, err = run("annotators")
    assert (code, err) == (0, "")
    (line,) = [line for line in out.splitlines() if "ann " in line]
    assert "0.75" in line  # three of four gold questions


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.jsonl.gz"])
def test_an_export_is_everything_and_adds_nothing_to_its_own_store(run, name: str):
    talk = [{"role": "user", "content": "hi"}]
    with FeedbackStore("sqlite:///feedback.db") as store:
        for n in range(3):
            store.add_comparison(Comparison(f"p{n}", "x", "y", "a", "ann", reason="r"))
        # As a pull leaves it: an id and a raw record that no file gives.
        raw = {"id": 7, "updated_at": "2026-01-02T03:04:05Z"}
        server = Comparison("p0", "y", "x", "a", "bob", 2, True, source_a="m", lead_time=1.5)
        store.add_comparison(server, annotation="http://s/1/7", raw=raw)
        final = Comparison("p0", "x", "y", "tie", "judge", 0)
        store.add_judgements([final, Comparison(talk, "x", "y", "b", "judge")], adjudicated=True)
        thumb = new_item("thumb", talk, ("only",), ("m",))
        store.add_items([thumb])
        store.add_skip(store.pairs()[1].id, "cy")
        store.add_skip(thumb.id, "cy")
        before = store.history()
        expected = (store.comparisons(), store.adjudications(), store.settled())
    assert run("export", name) == (0, f"{name}: 6 judgements, 2 skips", "")
    code, out, _ = run("import", name)
    assert code == 0
    assert out == f"{name}: 6 judgements, 0 of them new; 2 skips, 0 of them new"
    assert run("import", name, "--store", "sqlite:///copy.db")[0] == 0
    assert "0 of them new" in run("import", name, "--store", "sqlite:///copy.db")[1]
    with (
        FeedbackStore("sqlite:///feedback.db") as store,
        FeedbackStore("sqlite:///copy.db") as copy,
    ):
        assert store.history() == before
        assert (copy.comparisons(), copy.adjudications(), copy.settled()) == expected
        assert copy.counts() == store.counts()
        assert copy.items("thumb")[0].sources == ("m",)


def test_an_old_export_overwrites_nothing_newer(run):
    with FeedbackStore("sqlite:///feedback.db") as store:
        store.add_comparison(Comparison("p", "x", "y", "a", "ann"), annotation="1")
        store.add_comparison(Comparison("q", "x", "y", "a", "ann"), annotation="2")
        assert run("export", "old.jsonl")[0] == 0
        store.add_comparison(Comparison("p", "x", "y", "b", "ann"), annotation="1")
        store.delete_annotation("2")
        assert "0 of them new" in run("import", "old.jsonl")[1]
        assert [(one.prompt, one.label) for one in store.comparisons()] == [("p", "b")]
