"""Databases for the store's tests: SQLite, and a real PostgreSQL where one is installed."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

NUMBERS = itertools.count()


def postgres_programs() -> Path | None:
    """The folder of PostgreSQL's server programs; Debian keeps it out of the search path."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return folders[-1].parent if folders else None


@pytest.fixture(scope="session")
def postgres_folder() -> Iterator[Path]:
    """The folder of a running server's socket. It listens to nothing else and takes any password.

    PostgreSQL refuses to run as root: its own user does it then.
    """
    programs = postgres_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server (initdb) on this machine; apt-get install postgresql")
    user = "postgres" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="align-pg-"))  # a socket's path must be short
    if user:
        shutil.chown(folder, user)
    try:
        data = ["-D", str(folder / "data")]
        first = [
            programs / "initdb",
            *data,
            "-U",
            "align",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-sync",
        ]
        subprocess.run(first, check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL)
        settings = ["-k", str(folder), "-c", "listen_addresses=", "-c", "fsync=off"]
        with (folder / "log").open("w") as log:
            server = subprocess.Popen(
                [programs / "postgres", *data, *settings], user=user, cwd=folder, stderr=log
            )
        try:
            wait_until_up(folder, server)
            yield folder
        finally:
            server.send_signal(signal.SIGINT)  # its fast way out: SIGTERM waits for clients
            server.wait(30)
    finally:
        shutil.rmtree(folder)


def wait_until_up(folder: Path, server: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        try:
            psycopg.connect(host=str(folder), user="align", dbname="postgres").close()
            return
        except psycopg.OperationalError:
            assert server.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
    raise AssertionError((folder / "log").read_text())


@pytest.fixture(params=["sqlite", "postgresql"])
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """`new_url()`: the URL of an empty database, of either make."""
    if request.param == "sqlite":
        return lambda: f"sqlite:///{tmp_path / f'feedback{next(NUMBERS)}.db'}"
    folder: Path = request.getfixturevalue("postgres_folder")

    def make() -> str:
        name = f"feedback{next(NUMBERS)}"
        server = psycopg.connect(host=str(folder), user="align", dbname="postgres", autocommit=True)
        with server:
            server.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://align:secret@/{name}?host={folder}"

    return make


@pytest.fixture
def url(new_url: Callable[[], str]) -> str:
    """The URL of an empty database, of either make."""
    return new_url()
