"""Environments in the cache: made once, whole or not at all, by one process at a time."""

from __future__ import annotations

import importlib.util
import threading

import pytest

from feedback.environments import (
    InstallError,
    cached_python,
    ensure_environment,
    ensure_packages,
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "align"


def test_it_is_made_once_however_many_ask(cache):
    count = cache.parent / "count"
    step = ["-c", f"open({str(count)!r}, 'a').write('x')"]
    found = []

    def ask():
        found.append(ensure_environment("tool", "1", [step]))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    python = cache / "tool" / "bin" / "python"
    assert found == [python] * 3
    assert count.read_text() == "x"
    assert cached_python("tool", "1") == python
    assert cached_python("tool", "2") is None
    ensure_environment("tool", "2", [step])  # other content: anew
    assert count.read_text() == "xx"


def test_nothing_half_made_stays(cache):
    told = []
    with pytest.raises(InstallError, match=r"(?s)`-c raise.*said: .*ValueError: no network"):
        ensure_environment("tool", "1", [["-c", "raise ValueError('no network')"]], told.append)
    assert told == [f"installing tool into {cache / 'tool'} (once; several minutes)"]
    assert not (cache / "tool").exists()
    assert cached_python("tool", "1") is None


def test_packages_lie_in_a_folder_of_their_own(cache, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "tiny_thing.py").write_text("VALUE = 1\n")
    (source / "setup.py").write_text(
        "from setuptools import setup\nsetup(name='tiny-thing', py_modules=['tiny_thing'])\n"
    )
    options = ["--no-build-isolation", str(source)]
    folder = ensure_packages("things", options)
    assert (folder / "tiny_thing.py").read_text() == "VALUE = 1\n"
    assert importlib.util.find_spec("tiny_thing") is None
    (source / "tiny_thing.py").write_text("VALUE = 2\n")
    assert ensure_packages("things", options) == folder
    assert (folder / "tiny_thing.py").read_text() == "VALUE = 1\n"  # made once
    with pytest.raises(InstallError):
        ensure_packages("things", ["--no-index", "there-is-no-such-thing"])
    assert not folder.exists()
