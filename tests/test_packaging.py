"""The wheel holds everything that runs, and what is written about it agrees with what it is."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from align import __version__

ROOT = Path(__file__).parents[1]
PACKAGES = ("align", "reward", "feedback")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def sources() -> set[str]:
    """Every file of the packages, as the wheel should hold them."""
    return {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy, so that the checkout stays clean and nothing stale gets in."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    copy.mkdir()
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(folder), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def read(wheel: Path, suffix: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(suffix)]
        return archive.read(name).decode()


class TestWheel:
    def test_every_file_of_the_packages_is_in_it(self, names: set[str]) -> None:
        assert sources() - names == set()

    def test_nothing_else_is_in_it(self, names: set[str]) -> None:
        others = {name for name in names if ".dist-info/" not in name}
        assert others - sources() == set()

    def test_templates_and_type_markers(self, names: set[str]) -> None:
        assert {f"{package}/py.typed" for package in PACKAGES} <= names
        for suffix in (".jinja", ".html", ".css", ".js"):
            assert any(name.endswith(suffix) for name in names), suffix

    def test_command(self, wheel: Path) -> None:
        entry_points = configparser.ConfigParser()
        entry_points.read_string(read(wheel, ".dist-info/entry_points.txt"))
        assert dict(entry_points["console_scripts"]) == {"align": "align.cli:main"}

    def test_metadata(self, wheel: Path, names: set[str]) -> None:
        metadata = Parser().parsestr(read(wheel, ".dist-info/METADATA"))
        assert metadata["Name"] == "align-rlhf"
        assert metadata["Version"] == __version__
        assert metadata["License-Expression"] == "Apache-2.0"
        assert metadata["Requires-Python"] == ">=3.11"
        assert {"vllm", "deepspeed", "tracking", "dev"} <= set(metadata.get_all("Provides-Extra"))
        assert any(name.endswith("LICENSE") for name in names)
        assert metadata.get_payload().strip(), "the README is the description"

    @pytest.mark.slow
    def test_works_where_there_is_no_checkout(self, wheel: Path, tmp_path: Path) -> None:
        target = tmp_path / "installed"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
        program = (
            "import align, sys; from align.cli import main; print(align.__file__); "
            "sys.exit(main(['version']))"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(target)},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [str(target / "align" / "__init__.py"), __version__]


class TestSetup:
    """scripts/setup.sh repeats two things that pyproject.toml decides."""

    script = (ROOT / "scripts" / "setup.sh").read_text()

    def test_torch_that_is_installed_is_within_the_range(self) -> None:
        (wanted,) = [d for d in PROJECT["project"]["dependencies"] if d.startswith("torch")]
        allowed = SpecifierSet(wanted.removeprefix("torch"))
        pinned = set(re.findall(r"torch==([\d.]+)", self.script))
        assert pinned
        assert all(version in allowed for version in pinned)
        low, high = re.search(r"\((\d+, \d+)\) <= .* < \((\d+, \d+)\)", self.script).groups()  # type: ignore[union-attr]
        assert low.replace(", ", ".") in allowed
        assert high.replace(", ", ".") not in allowed

    def test_python_versions_agree(self) -> None:
        assert "sys.version_info < (3, 11)" in self.script
        assert PROJECT["project"]["requires-python"] == ">=3.11"

    def test_old_python_is_refused_with_the_fix(self, tmp_path: Path) -> None:
        old = tmp_path / "python3.8"
        old.write_text("#!/bin/sh\necho 'Python 3.8.1'\n[ \"$1\" = --version ]\n")
        old.chmod(0o755)
        environment = {**os.environ, "PYTHON": str(old), "VENV": str(tmp_path / "venv")}
        done = subprocess.run(
            ["sh", "scripts/setup.sh", "base"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 1
        assert "Python 3.8.1" in done.stderr
        assert "Fix:" in done.stderr
        assert not (tmp_path / "venv").exists()
