"""Rules of this repository that no linter knows: `python scripts/house_rules.py`.

Source files have at most 350 lines; every configuration file loads; the changelog knows the
version; no file holds the path of somebody's machine.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 350
CONFIG_FOLDERS = ("configs", "align/quickstart/configs")
# Folders of the machines that Align was written on. The pattern is put together so that this file
# does not match itself.
MACHINE_PATH = re.compile("(?<![\\w.])/" + "(?:work/(?:main|shared)|root/|home/\\w+/)")


def main() -> int:
    """Print every broken rule; 0 if there is none."""
    sys.path.insert(0, str(ROOT))
    files = tracked_files()
    problems = [
        *too_long(files),
        *machine_paths(files),
        *unloadable_configs(),
        *changelog(),
    ]
    print("\n".join(problems) or f"{len(files)} files keep the house rules")
    return 1 if problems else 0


def tracked_files() -> list[Path]:
    """Files that git tracks, or would: new ones count before they are committed."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return sorted(path for line in listing.stdout.splitlines() if (path := ROOT / line).is_file())


def too_long(files: list[Path]) -> Iterator[str]:
    """Python files past the limit."""
    for file in files:
        if file.suffix == ".py":
            lines = len(file.read_text(encoding="utf-8").splitlines())
            if lines > MAX_LINES:
                yield f"{file.relative_to(ROOT)}: {lines} lines, at most {MAX_LINES} are allowed"


def machine_paths(files: list[Path]) -> Iterator[str]:
    """Absolute paths of somebody's machine."""
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture
        for number, line in enumerate(text.splitlines(), start=1):
            if match := MACHINE_PATH.search(line):
                yield f"{file.relative_to(ROOT)}:{number}: holds the machine path {match.group()!r}"


def unloadable_configs() -> Iterator[str]:
    """Configuration files that their stage, or accelerate, refuses."""
    from align.config import STAGES, load_config
    from align.errors import ConfigError

    for folder in CONFIG_FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.yaml")):
            name = file.relative_to(ROOT)
            if "accelerate" in name.parts:
                yield from accelerate_problems(file)
                continue
            stage = stage_of(file, set(STAGES))
            if stage is None:
                yield f"{name}: neither its name nor its folder says which stage reads it"
                continue
            try:
                load_config(STAGES[stage], file)
            except ConfigError as error:
                yield f"{name}: {error}"


def stage_of(file: Path, stages: set[str]) -> str | None:
    """The stage that a file is for: `hh/sft.yaml`, `hh/sft-lora.yaml` or `sft/anything.yaml`."""
    candidates = (re.split(r"[-_.]", file.name)[0], file.parent.name)
    return next((name for name in candidates if name in stages), None)


def accelerate_problems(file: Path) -> Iterator[str]:
    """What accelerate says of one of its configuration files."""
    from accelerate.commands.config.config_args import load_config_from_file

    try:
        load_config_from_file(str(file))
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        yield f"{file.relative_to(ROOT)}: {error}"


def changelog() -> Iterator[str]:
    """Whether CHANGELOG.md has a heading for the version."""
    from align import __version__

    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## \[?{re.escape(__version__)}\b", text, re.MULTILINE):
        yield f"CHANGELOG.md: has no heading for version {__version__}"


if __name__ == "__main__":
    sys.exit(main())
