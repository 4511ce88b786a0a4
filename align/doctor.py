"""`align doctor`: what this machine can run, what is missing, and the command that installs it.

Of the heavy packages only torch is imported, because its build and its view of the GPU cannot be
known otherwise; everything else is read from package metadata. Leaves out the network: whether a
hub or a tracking server answers is not tried.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Literal

from packaging.requirements import Requirement
from rich.table import Table
from rich.text import Text

from align import machine
from align.errors import MissingDependencyError

DISTRIBUTION = "align-rlhf"
MINIMUM_PYTHON = (3, 11)
DISK_WANTED = 10 * machine.GIB  # an environment without CUDA libraries, plus a few checkpoints

Status = Literal["ok", "missing", "warning"]
VersionOf = Callable[[str], str | None]  # a package's installed version, None if it is absent


@dataclass(frozen=True)
class Check:
    """One thing looked at. `missing` stops Align only where it is `required`."""

    name: str
    status: Status
    found: str
    fix: str = ""
    required: bool = False
    group: str = ""


@dataclass(frozen=True)
class OptionalPackage:
    """A package that some runs need."""

    package: str
    purpose: str
    fix: str


OPTIONAL = (
    OptionalPackage("vllm", "fast rollouts on GPUs", "pip install 'align-rlhf[vllm]'"),
    OptionalPackage("deepspeed", "ZeRO on several GPUs", "pip install 'align-rlhf[deepspeed]'"),
    OptionalPackage("bitsandbytes", "QLoRA (CUDA)", "pip install 'align-rlhf[quantization]'"),
    OptionalPackage(
        "flash-attn", "faster attention (CUDA)", "pip install flash-attn --no-build-isolation"
    ),
    OptionalPackage("wandb", "tracking.report_to=[wandb]", "pip install wandb"),
    OptionalPackage("mlflow", "tracking.report_to=[mlflow]", "pip install mlflow"),
    OptionalPackage("trackio", "tracking.report_to=[trackio]", "pip install trackio"),
    OptionalPackage("label-studio-sdk", "human labels", "pip install 'label-studio-sdk<2.1'"),
)


def diagnose(folder: Path | None = None) -> list[Check]:
    """Look at Python, packages, devices, memory, disk and settings; takes a few seconds.

    Args:
        folder: where runs will be written; default the working directory.
    """
    torch = _import_torch()
    return [
        check_python(sys.version_info[:3]),
        *check_requirements(_requirements(), _installed_version),
        *check_torch(torch),
        *check_machine(folder or Path.cwd(), torch),
        *check_fits(torch),
        *check_optional(OPTIONAL, _installed_version),
        *check_settings(os.environ),
    ]


def failures(checks: Iterable[Check]) -> list[Check]:
    """The checks without which Align does not run."""
    return [check for check in checks if check.required and check.status == "missing"]


def exit_code(checks: Iterable[Check]) -> int:
    """0 if everything required is there, else 9 (a missing dependency)."""
    return MissingDependencyError.exit_code if failures(checks) else 0


def render(checks: Sequence[Check]) -> Table:
    """A table in the order of the checks, a section per group; fixes stand below what was found."""
    table = Table(title="Align doctor", title_justify="left", header_style="bold")
    for column in ("", "what", "found"):
        table.add_column(column, overflow="fold")
    styles = {"ok": ("ok", "green"), "warning": ("note", "yellow"), "missing": ("optional", "dim")}
    for index, check in enumerate(checks):
        mark, style = styles[check.status]
        if check.required and check.status == "missing":
            mark, style = "MISSING", "bold red"
        # Text, not markup: the brackets of align-rlhf[vllm] are meant.
        found = Text(check.found)
        if check.fix:
            found.append(f"\n{check.fix}", style="cyan")
        last = index + 1 == len(checks) or checks[index + 1].group != check.group
        table.add_row(Text(mark, style=style), Text(check.name), found, end_section=last)
    return table


def check_python(version: tuple[int, ...]) -> Check:
    """Whether the interpreter is new enough."""
    found = ".".join(map(str, version))
    if version[:2] >= MINIMUM_PYTHON:
        return Check("Python", "ok", found, required=True, group="packages")
    wanted = ".".join(map(str, MINIMUM_PYTHON))
    fix = f"install Python {wanted} or later and make a new virtual environment"
    return Check("Python", "missing", found, fix, required=True, group="packages")


def check_requirements(requirements: Sequence[str] | None, version_of: VersionOf) -> list[Check]:
    """The required packages against the ranges that Align was released with.

    Args:
        requirements: as in the package's metadata, extras included; None if Align itself is not
            installed.
        version_of: the installed version of a package, or None.
    """
    if requirements is None:
        text = "not installed as a package"
        fix = "pip install -e . (in the checkout)"
        return [Check(DISTRIBUTION, "missing", text, fix, required=True, group="packages")]
    checks = []
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        name, wanted = requirement.name, str(requirement.specifier)
        found = version_of(name)
        fix = f"pip install '{name}{wanted}'"
        if found is None:
            check = Check(name, "missing", f"not installed, {wanted or 'any'} is needed", fix)
        elif not requirement.specifier.contains(found, prereleases=True):
            check = Check(name, "missing", f"{found}, {wanted} is needed", fix)
        else:
            check = Check(name, "ok", found)
        checks.append(replace(check, required=True, group="packages"))
    return checks


def check_optional(packages: Sequence[OptionalPackage], version_of: VersionOf) -> list[Check]:
    """Packages that some runs need, each with the command that installs it."""
    checks = []
    for package in packages:
        found = version_of(package.package)
        name = package.package
        if found is None:
            text = f"not installed: {package.purpose}"
            checks.append(Check(name, "missing", text, package.fix, group="optional"))
        else:
            checks.append(Check(name, "ok", f"{found}: {package.purpose}", group="optional"))
    return checks


def check_torch(torch: ModuleType | str) -> list[Check]:
    """The build of torch, the devices it sees and their bfloat16, as torch itself reports them."""
    group = "devices"
    if isinstance(torch, str):
        fix = "pip install torch==2.13.0 (docs/install.md)"
        return [Check("torch build", "missing", torch, fix, required=True, group=group)]
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    if getattr(torch.version, "hip", None):
        build = f"ROCm {torch.version.hip}"
    checks = [Check("torch build", "ok", f"{torch.__version__}, {build}", group=group)]
    if not torch.cuda.is_available():
        if torch.version.cuda:
            found = "none that torch can use, though it was built for CUDA"
            fix = "training runs on the CPU; nvidia-smi says whether there is a GPU and driver"
            checks.append(Check("GPU", "warning", found, fix, group=group))
        elif Path("/proc/driver/nvidia/version").exists():
            found = "there is an NVIDIA driver, but torch is a CPU build"
            fix = "pip install --force-reinstall torch==2.13.0 (docs/install.md)"
            checks.append(Check("GPU", "warning", found, fix, group=group))
        else:
            found = "none: training runs on the CPU, in float32"
            checks.append(Check("GPU", "ok", found, group=group))
        return checks
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found = f"{properties.name}, {properties.total_memory / machine.GIB:.0f} GiB"
        checks.append(Check(f"GPU {index}", "ok", found, group=group))
    if torch.cuda.is_bf16_supported(including_emulation=False):
        checks.append(Check("bfloat16", "ok", "in hardware; the default", group=group))
    else:
        found = "the GPU can only imitate it, which is slow"
        fix = "set trainer.bf16=false trainer.fp16=true"
        checks.append(Check("bfloat16", "warning", found, fix, group=group))
    return checks


def check_machine(folder: Path, torch: ModuleType | str) -> list[Check]:
    """Cores, CPU bfloat16, memory and disk."""
    group = "machine"
    cores = machine.cpu_cores()
    system = f"{platform.system()} {platform.machine()}"
    checks = [Check("CPU", "ok", f"{cores:g} cores, {machine.cpu_name()}, {system}", group=group)]
    kind = machine.cpu_bfloat16(machine.cpu_flags())
    bf16 = f"in hardware ({kind})" if kind else "not in hardware: imitated, about 20 times slower"
    checks.append(Check("CPU bfloat16", "ok", f"{bf16}; float32 is used", group=group))
    if not isinstance(torch, str) and torch.get_num_threads() > cores:
        found = f"{torch.get_num_threads()} for {cores:g} cores"
        fix = f"export OMP_NUM_THREADS={max(1, int(cores))}"
        checks.append(Check("torch threads", "warning", found, fix, group=group))
    total, available = machine.memory_total(), machine.memory_available()
    if total is not None:
        found = f"{total / machine.GIB:.1f} GiB"
        found += f", {available / machine.GIB:.1f} free" if available is not None else ""
        small = total < 4 * machine.GIB
        fix = "4 GiB are needed for the tests and the quickstart" if small else ""
        checks.append(Check("memory", "warning" if small else "ok", found, fix, group=group))
    free = machine.disk_free(folder)
    low = free < DISK_WANTED
    fix = "each checkpoint holds weights and optimizer; free space or set run.dir" if low else ""
    found = f"{free / machine.GIB:.1f} GiB free in {folder}"
    checks.append(Check("disk", "warning" if low else "ok", found, fix, group=group))
    return checks


def check_fits(torch: ModuleType | str) -> list[Check]:
    """The largest policy each stage can train here, estimated from memory alone."""
    if not isinstance(torch, str) and torch.cuda.is_available():
        memory: int | None = min(
            torch.cuda.get_device_properties(index).total_memory
            for index in range(torch.cuda.device_count())
        )
        place = "per GPU"
    else:
        memory, place = machine.memory_available() or machine.memory_total(), "here"
    if memory is None:
        return []
    return [
        Check(
            f"align {fit.stage}",
            "ok",
            f"about {machine.in_words(fit.full)} parameters in full, "
            f"{machine.in_words(fit.lora)} with LoRA ({place}, float32)",
            group="fits",
        )
        for fit in machine.largest_models(memory)
    ]


def check_settings(environment: Mapping[str, str]) -> list[Check]:
    """Hugging Face's offline and telemetry switches and the cache."""
    group = "settings"
    offline = _is_on(environment.get("HF_HUB_OFFLINE"))
    found = "on: models and data come from paths and the cache" if offline else "off"
    checks = [Check("HF_HUB_OFFLINE", "ok", found, group=group)]
    switches = ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    fix = "export HF_HUB_DISABLE_TELEMETRY=1"
    if any(_is_on(environment.get(name)) for name in switches):
        checks.append(Check("HF telemetry", "ok", "off", group=group))
    elif switches[0] in environment:
        found = "on, by HF_HUB_DISABLE_TELEMETRY: TRL and the hub report usage"
        checks.append(Check("HF telemetry", "warning", found, fix, group=group))
    else:
        found = "off in align's commands, on in your own scripts"
        checks.append(Check("HF telemetry", "ok", found, fix, group=group))
    default = Path(environment.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    cache = Path(environment.get("HF_HOME", default)).expanduser()
    free = machine.disk_free(cache) / machine.GIB
    checks.append(Check("HF cache", "ok", f"{cache}, {free:.1f} GiB free", group=group))
    return checks


def _is_on(value: str | None) -> bool:
    return (value or "").upper() in {"1", "ON", "YES", "TRUE"}


def _requirements() -> list[str] | None:
    try:
        return importlib.metadata.requires(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return None


def _installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _import_torch() -> ModuleType | str:
    """The module, or why it cannot be imported (a broken build raises OSError too)."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return f"cannot be imported: {error}"
    return torch
