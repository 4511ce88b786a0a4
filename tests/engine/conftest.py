"""DeepSpeed for the tests that start it, in a folder that nothing else sees."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from feedback.environments import ensure_packages

VERSION = "0.19.8"
NEEDS = ("einops", "hjson", "msgpack", "py-cpuinfo")  # ninja compiles operators: none is wanted


@pytest.fixture(scope="session")
def deepspeed_folder() -> Path:
    """Where DeepSpeed can be imported from.

    Where it is installed, accelerate imports it in every process, which takes seconds and prints.
    """
    here = importlib.util.find_spec("deepspeed")
    if here is not None and here.origin is not None:
        return Path(here.origin).parents[1]
    return ensure_packages(f"deepspeed-{VERSION}", [f"deepspeed=={VERSION}", *NEEDS])
