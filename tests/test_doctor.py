"""The doctor on this machine, and on machines described by values and files."""

from __future__ import annotations

import io
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from rich.console import Console

from align import doctor, machine
from align.errors import MissingDependencyError

GIB = machine.GIB


def text_of(checks: list[doctor.Check], width: int = 160) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(doctor.render(checks))
    return console.export_text()


class TestHere:
    def test_finds_what_is_installed_and_passes(self, tmp_path: Path) -> None:
        started = time.monotonic()
        checks = doctor.diagnose(tmp_path)
        assert time.monotonic() - started < 60
        by_name = {check.name: check for check in checks}
        import transformers

        assert by_name["transformers"].found == transformers.__version__
        assert by_name["Python"].found == ".".join(map(str, sys.version_info[:3]))
        assert str(tmp_path) in by_name["disk"].found
        assert doctor.failures(checks) == []
        assert doctor.exit_code(checks) == 0

    def test_every_declared_requirement_is_looked_at(self) -> None:
        project = Path(__file__).parents[1] / "pyproject.toml"
        declared = tomllib.loads(project.read_text())["project"]["dependencies"]
        names = {check.name for check in doctor.diagnose()}
        assert {Requirement(text).name for text in declared} <= names

    def test_every_check_that_is_not_ok_says_what_to_do(self) -> None:
        assert all(check.fix for check in doctor.diagnose() if check.status != "ok")

    def test_stages_of_the_cli_all_have_an_estimate(self) -> None:
        names = " ".join(check.name for check in doctor.diagnose() if check.group == "fits")
        assert all(f"align {stage}" in names for stage in ("sft", "reward", "dpo", "ppo"))


class TestRequirements:
    requirements = ("trl<1.17,>=1.16", "rich>=13", 'vllm>=0.22; extra == "vllm"')

    def check(self, **versions: str) -> dict[str, doctor.Check]:
        found = doctor.check_requirements(self.requirements, versions.get)
        return {check.name: check for check in found}

    def test_within_range(self) -> None:
        checks = self.check(trl="1.16.2", rich="15.0")
        assert set(checks) == {"trl", "rich"}  # extras are not required
        assert doctor.exit_code(checks.values()) == 0

    @pytest.mark.parametrize("version", ["1.17.0", "1.15.9", "not-a-version"])
    def test_out_of_range_names_both_versions_and_the_command(self, version: str) -> None:
        checks = self.check(trl=version, rich="15.0")
        assert checks["trl"].status == "missing"
        assert version in checks["trl"].found
        assert "<1.17" in checks["trl"].found
        assert checks["trl"].fix == "pip install 'trl<1.17,>=1.16'"
        assert doctor.exit_code(checks.values()) == MissingDependencyError.exit_code == 9

    def test_local_versions_count_as_their_release(self) -> None:
        checks = doctor.check_requirements(["torch>=2.10,<2.14"], lambda _: "2.13.0+cpu")
        assert [check.status for check in checks] == ["ok"]

    def test_absent(self) -> None:
        checks = self.check(trl="1.16.0")
        assert checks["rich"].found.startswith("not installed")
        assert [check.name for check in doctor.failures(checks.values())] == ["rich"]

    def test_align_itself_not_installed(self) -> None:
        (check,) = doctor.check_requirements(None, lambda _: None)
        assert doctor.exit_code([check]) == 9
        assert "pip install -e ." in check.fix

    def test_old_python(self) -> None:
        assert doctor.check_python((3, 11, 0)).status == "ok"
        assert doctor.check_python((3, 10, 13)).status == "missing"
        assert doctor.exit_code([doctor.check_python((3, 10, 13))]) == 9


class TestOptional:
    def test_absence_is_no_failure_and_names_the_command(self) -> None:
        checks = doctor.check_optional(doctor.OPTIONAL, lambda _: None)
        assert {check.status for check in checks} == {"missing"}
        assert doctor.exit_code(checks) == 0
        shown = text_of(checks)
        for extra in ("vllm", "deepspeed", "quantization"):
            assert f"pip install 'align-rlhf[{extra}]'" in shown  # brackets survive the markup

    def test_extras_named_in_fixes_exist(self) -> None:
        project = Path(__file__).parents[1] / "pyproject.toml"
        extras = tomllib.loads(project.read_text())["project"]["optional-dependencies"]
        named = [p.fix.split("[")[1].split("]")[0] for p in doctor.OPTIONAL if "[" in p.fix]
        assert named
        assert set(named) <= set(extras)


def fake_torch(
    *, gpus: tuple[int, ...] = (), cuda: str | None = None, bf16: bool = True, threads: int = 1
) -> SimpleNamespace:
    """What doctor reads of torch, for machines that this one is not."""
    return SimpleNamespace(
        __version__="2.13.0",
        version=SimpleNamespace(cuda=cuda, hip=None),
        get_num_threads=lambda: threads,
        cuda=SimpleNamespace(
            is_available=lambda: bool(gpus),
            device_count=lambda: len(gpus),
            is_bf16_supported=lambda including_emulation=True: bf16 or including_emulation,
            get_device_properties=lambda i: SimpleNamespace(name="H100", total_memory=gpus[i]),
        ),
    )


class TestDevices:
    def test_gpus_are_listed_and_the_smallest_one_limits(self) -> None:
        torch = fake_torch(gpus=(80 * GIB, 40 * GIB), cuda="13.0")
        names = [check.name for check in doctor.check_torch(torch)]
        assert names == ["torch build", "GPU 0", "GPU 1", "bfloat16"]
        sft = doctor.check_fits(torch)[0]
        expected = machine.in_words(40 * GIB * machine.SHARE / 16)
        assert f"{expected} parameters in full" in sft.found
        assert "per GPU" in sft.found

    def test_imitated_bfloat16_is_told_from_real(self) -> None:
        old = doctor.check_torch(fake_torch(gpus=(16 * GIB,), cuda="13.0", bf16=False))
        assert old[-1].status == "warning"
        assert "fp16=true" in old[-1].fix
        new = doctor.check_torch(fake_torch(gpus=(16 * GIB,), cuda="13.0"))
        assert new[-1].status == "ok"

    def test_cuda_build_without_a_gpu_is_a_warning_not_a_failure(self) -> None:
        checks = doctor.check_torch(fake_torch(cuda="13.0"))
        assert checks[-1].status == "warning"
        assert doctor.exit_code(checks) == 0

    def test_torch_that_cannot_be_imported(self) -> None:
        reason = "cannot be imported: libcudart.so: cannot open shared object file"
        checks = doctor.check_torch(reason)
        assert doctor.exit_code(checks) == 9
        assert "libcudart" in text_of(checks)
        assert doctor.check_fits(reason)  # memory needs no torch

    def test_too_many_threads(self, tmp_path: Path) -> None:
        checks = doctor.check_machine(tmp_path, fake_torch(threads=4096))
        warning = next(check for check in checks if check.name == "torch threads")
        assert warning.fix.startswith("export OMP_NUM_THREADS=")


class TestSettings:
    def test_unset_means_that_only_the_commands_are_quiet(self) -> None:
        by_name = {check.name: check for check in doctor.check_settings({})}
        assert "your own scripts" in by_name["HF telemetry"].found
        assert by_name["HF telemetry"].fix == "export HF_HUB_DISABLE_TELEMETRY=1"
        assert by_name["HF_HUB_OFFLINE"].found == "off"

    def test_switched_off(self) -> None:
        switched = doctor.check_settings({"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "on"})
        by_name = {check.name: check for check in switched}
        assert by_name["HF telemetry"].found == "off"
        assert by_name["HF_HUB_OFFLINE"].found.startswith("on")

    def test_zero_switches_reporting_on(self) -> None:
        by_name = {c.name: c for c in doctor.check_settings({"HF_HUB_DISABLE_TELEMETRY": "0"})}
        assert by_name["HF telemetry"].status == "warning"

    def test_cache_folder_may_not_exist_yet(self, tmp_path: Path) -> None:
        checks = doctor.check_settings({"HF_HOME": str(tmp_path / "a" / "b")})
        assert str(tmp_path / "a" / "b") in checks[-1].found


class TestRender:
    def test_a_missing_requirement_stands_out(self) -> None:
        optional = doctor.Check("vllm", "missing", "not installed", "pip install x")
        assert "optional" in text_of([optional])
        assert "MISSING" not in text_of([optional])
        assert "MISSING" in text_of([replace(optional, required=True)])

    def test_commands_can_be_copied_from_a_narrow_terminal(self) -> None:
        checks = doctor.diagnose() + doctor.check_optional(doctor.OPTIONAL, lambda _: None)
        shown = text_of(checks, width=80)
        words = [word for check in checks for word in check.fix.split()]
        assert words
        assert all(word in shown for word in words)  # wrapped between words, never inside one


class TestMachine:
    def test_bytes_per_parameter_by_hand(self) -> None:
        # 16 GiB, all of it: 2^34 / 16 = 2^30 parameters in full.
        sizes = {fit.stage: fit for fit in machine.largest_models(16 * GIB, share=1.0)}
        assert sizes["sft"].full == 2**30
        assert sizes["dpo"].full == pytest.approx(2**34 / 20)  # and a reference in float32
        assert sizes["ppo (separate critic)"].full == pytest.approx(2**34 / 40)
        assert all(fit.lora > fit.full for fit in sizes.values())

    @pytest.mark.parametrize(
        ("parameters", "words"),
        [(1.24e9, "1.2B"), (12.4e9, "12B"), (3.64e8, "360M"), (9.96e8, "1.0B"), (5.81e6, "5.8M")],
    )
    def test_sizes_in_words(self, parameters: float, words: str) -> None:
        assert machine.in_words(parameters) == words

    def test_cpu_flags(self, tmp_path: Path) -> None:
        cpuinfo = tmp_path / "cpuinfo"
        cpuinfo.write_text("model name\t: Xeon\nflags\t\t: fpu avx512f avx512_bf16 amx_bf16\n")
        flags = machine.cpu_flags(cpuinfo)
        assert flags == {"fpu", "avx512f", "avx512_bf16", "amx_bf16"}
        assert machine.cpu_bfloat16(flags) == "AMX"
        assert machine.cpu_bfloat16({"avx512f", "avx2"}) is None
        assert machine.cpu_name(cpuinfo) == "Xeon"
        cpuinfo.write_text("processor : 0\nFeatures\t: fp asimd bf16\n")
        assert machine.cpu_bfloat16(machine.cpu_flags(cpuinfo)) == "ARM BF16"
        assert machine.cpu_flags(tmp_path / "none") == set()

    def test_available_memory(self, tmp_path: Path) -> None:
        meminfo = tmp_path / "meminfo"
        meminfo.write_text("MemTotal:  1024 kB\nMemAvailable:     512 kB\n")
        assert machine.memory_available(meminfo) == 512 * 1024
        assert machine.memory_available(tmp_path / "none") is None

    def test_free_disk_of_a_folder_to_be_made(self, tmp_path: Path) -> None:
        assert machine.disk_free(tmp_path / "x" / "y") > 0

    def test_cores_are_what_this_process_may_use(self) -> None:
        assert 0 < machine.cpu_cores() <= 4096
