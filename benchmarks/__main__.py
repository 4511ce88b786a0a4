"""Run the benchmarks that need no settings: `python -m benchmarks`.

Their figures go into the table of docs/benchmarks.md, and every module's JSON stays in a folder
(`--keep`), by its name. A module writes `ratio`, `pairs`, `peer`, `versions`, `device` and
`peak_memory_ratio`; one that compares no times writes what it measures under its own names, has no
`ratio` and so no line in the table. Leaves out studies that train for hours or want settings and a
folder of their own, and what needs a GPU: those are run by themselves.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
KEPT = ROOT / "runs" / "benchmarks"  # git ignores runs/
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks named, or all."""
    parser = argparse.ArgumentParser(description="Run benchmarks, and write docs/benchmarks.md.")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(MODULES)}; default: all")
    parser.add_argument("--keep", type=Path, default=KEPT, help="for their JSON; runs/benchmarks")
    given = parser.parse_args(arguments)
    unknown = set(given.names) - set(MODULES)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(MODULES)}")
    folder = given.keep.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    figures = {}
    for name in given.names or MODULES:
        path = folder / f"{name}.json"
        path.unlink(missing_ok=True)  # an earlier run's
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(path)]
        print(f"== {' '.join(command[1:3])}", flush=True)
        subprocess.run(command, cwd=ROOT, check=True)
        figures[name] = json.loads(path.read_text(encoding="utf-8"))
        print(f"{name}: {path}", flush=True)
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
    ours = f"{one['ours_seconds']:.2f} s"
    if "unique_tokens_per_second" in one:  # on a GPU
        ours += f", {one['unique_tokens_per_second']:.0f} unique tokens/s"
    if "mfu_unique" in one:
        ours += f", MFU {one['mfu_unique']:.2f}"
    return (
        f"| `{part}` | {peer} | {one['ratio']:.2f} ({low:.2f}–{high:.2f}) | "
        f"{ours} | {one['peer_seconds']:.2f} s | "
        f"{one['peak_memory_ratio']:.2f} | {found['device']} |"
    )


if __name__ == "__main__":
    raise SystemExit(main())
