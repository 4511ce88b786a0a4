"""`make check`: every static check, all of them even when one fails, with a summary at the end."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def main() -> int:
    """Run the checks; 0 if all of them pass."""
    with tempfile.TemporaryDirectory() as site:
        commands = {
            "ruff check": ["ruff", "check", "."],
            "ruff format": ["ruff", "format", "--check", "."],
            "house rules": [sys.executable, "scripts/house_rules.py"],
            "import rules": ["lint-imports", "--no-cache"],
            "types": ["mypy"],
            "documentation": ["mkdocs", "build", "--strict", "--quiet", "--site-dir", site],
        }
        results = {name: run(name, command) for name, command in commands.items()}
    print("\n== summary")
    for name, (passed, seconds) in results.items():
        print(f"{'pass' if passed else 'FAIL'}  {name:<15} {seconds:5.1f} s")
    return 0 if all(passed for passed, _ in results.values()) else 1


def run(name: str, command: list[str]) -> tuple[bool, float]:
    """Run one check from this environment's programs; whether it passed, and its seconds."""
    print(f"\n== {name}", flush=True)
    started = time.monotonic()
    program = command[0] if Path(command[0]).is_absolute() else str(BIN / command[0])
    done = subprocess.run([program, *command[1:]], cwd=ROOT, stdin=subprocess.DEVNULL, check=False)
    return done.returncode == 0, time.monotonic() - started


if __name__ == "__main__":
    sys.exit(main())
