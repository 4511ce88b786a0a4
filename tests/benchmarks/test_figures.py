"""What benchmarks compute from their measurements, and the table they are written into."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import __main__ as bench
from benchmarks.__main__ import BEGIN, END, replace_rows
from benchmarks.paired import compared

PAIRS = [
    ({"seconds": 1.0, "peak_mb": 100.0}, {"seconds": 4.0, "peak_mb": 300.0}),
    ({"seconds": 2.0, "peak_mb": 100.0}, {"seconds": 3.0, "peak_mb": 100.0}),
    ({"seconds": 1.5, "peak_mb": 200.0}, {"seconds": 9.0, "peak_mb": 200.0}),
]


def figures(ratio):
    found = compared(PAIRS) | {"ratio": ratio}
    return {"peer": "sdk", "versions": {"sdk": "2.0"}, "device": "cpu", "pull": found, **found}


def test_ratios_are_of_medians_and_above_one_when_ours_needs_less():
    found = compared(PAIRS)
    assert found["ratio"] == 4.0 / 1.5
    assert found["ratio_range"] == [1.5, 6.0]
    assert found["peak_memory_ratio"] == 2.0
    assert found["pairs"][1] == {"ours": PAIRS[1][0], "peer": PAIRS[1][1]}


def test_rows_are_replaced_and_the_rest_of_the_page_stays():
    page = f"above\n{BEGIN}\n{END}\nbelow"
    once = replace_rows(page, {"studio": figures(2.0)})
    assert once.startswith("above\n") and once.endswith("\nbelow")  # noqa: PT018
    assert "| `studio pull` | sdk 2.0 | 2.00 (1.50–6.00) | 1.50 s | 4.00 s | 2.00 | cpu |" in once
    twice = replace_rows(replace_rows(once, {"other": figures(5.0)}), {"studio": figures(3.0)})
    assert "2.00 (" not in twice.replace("5.00 (", "")
    assert "| `other pull` | sdk 2.0 | 5.00" in twice
    assert "| `studio pull` | sdk 2.0 | 3.00" in twice
    assert twice.count("| benchmark |") == 1


def test_a_benchmark_without_times_adds_no_row():
    page = f"{BEGIN}\n{END}"
    assert "`soft`" not in replace_rows(page, {"soft": {"accuracy": 0.7}})


def test_every_modules_figures_are_kept(tmp_path, monkeypatch):
    """Those of a module without a ratio too, and none of an earlier run."""
    page, kept = tmp_path / "page.md", tmp_path / "kept"
    page.write_text(f"{BEGIN}\n{END}")
    kept.mkdir()
    (kept / "worst.json").write_text("an earlier run's")
    written = {"soft_labels": {"accuracy": 0.7}, "worst": figures(2.0)}

    def run(command, **_):
        name, path = command[2].removeprefix("benchmarks."), Path(command[4])
        assert not path.exists()
        path.write_text(json.dumps(written[name]))

    monkeypatch.setattr(bench, "PAGE", page)
    monkeypatch.setattr(bench.subprocess, "run", run)
    bench.main([*written, "--keep", str(kept)])
    assert {path.stem: json.loads(path.read_text()) for path in kept.iterdir()} == written
    assert "`worst pull`" in page.read_text()
