"""Run every benchmark and write its figures into docs/benchmarks.md: `python -m benchmarks`.

Each module writes JSON with `ratio`, `pairs`, `peer`, `versions`, `device` and `peak_memory_ratio`;
one that compares no times writes what it measures under its own names and has no `ratio`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- figures: written by make bench -->", "<!-- end of figures -->"
MODULES = (
    "acquisition",
    "acquisition_pool",
    "batches",
    "digits",
    "digits_peers",
    "dpo",
    "guards",
    "label_studio",
    "ppo",
    "reward",
    "reward_heads",
    "rollout",
    "scoring",
    "sft",
    "soft_labels",
    "worst",
)


def main() -> int:
    """Run the benchmarks named, or all."""
    parser = argparse.ArgumentParser(description="Run benchmarks, and write docs/benchmarks.md.")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(MODULES)}; default: all")
    given = parser.parse_args()
    unknown = set(given.names) - set(MODULES)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(MODULES)}")
    with tempfile.TemporaryDirectory() as folder:
        figures = {}
        for name in given.names or MODULES:
            path = Path(folder) / f"{name}.json"
            command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(path)]
            print(f"== {' '.join(command[1:3])}", flush=True)
            subprocess.run(command, cwd=ROOT, check=True)
            figures[name] = json.loads(path.read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(replace_rows(page, figures), encoding="utf-8")
    return 0


def replace_rows(page: str, figures: dict[str, dict[str, Any]]) -> str:
    """The page with new rows for these benchmarks; rows of others stay."""
    head, rest = page.split(BEGIN)
    table, tail = rest.split(END)
    rows = {line.split("|")[1].strip(): line for line in table.splitlines() if "| `" in line}
    for name, found in figures.items():
        for part, one in comparisons(name, found):
            rows[f"`{part}`"] = row(part, one, found)
    header = (
        "\n| benchmark | peer | ratio (range) | ours | peer's | memory ratio | device |\n"
        "|---|---|---|---|---|---|---|\n"
    )
    return head + BEGIN + header + "".join(f"{rows[k]}\n" for k in sorted(rows)) + END + tail


def comparisons(name: str, found: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Every timed comparison of a benchmark's figures, named."""
    parts = {key: one for key, one in found.items() if isinstance(one, dict) and "ratio" in one}
    return [(f"{name} {key}", one) for key, one in parts.items()] or (
        [(name, found)] if "ratio" in found else []
    )


def row(part: str, one: dict[str, Any], found: dict[str, Any]) -> str:
    """One line of the table."""
    low, high = one["ratio_range"]
    name = one.get("peer", found["peer"])
    peer = f"{name} {found['versions'].get(name, '')}".strip()
    return (
        f"| `{part}` | {peer} | {one['ratio']:.2f} ({low:.2f}–{high:.2f}) | "
        f"{one['ours_seconds']:.2f} s | {one['peer_seconds']:.2f} s | "
        f"{one['peak_memory_ratio']:.2f} | {found['device']} |"
    )


if __name__ == "__main__":
    raise SystemExit(main())
